"""Run `experiments.plot.run`."""

import sys

from experiments.harness.launch import launch

sys.exit(launch("plot", module="run"))
