"""Run `experiments.cells.compare`."""

import sys

from experiments.harness.launch import launch

sys.exit(launch("cells", module="compare"))
