"""Run `experiments.charlm.train`."""

import sys

from experiments.harness.launch import launch

sys.exit(launch("charlm"))
