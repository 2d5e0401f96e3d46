"""Run `experiments.bench.run`."""

import sys

from experiments.harness.launch import launch

sys.exit(launch("bench", module="run"))
