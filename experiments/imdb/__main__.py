"""Run `experiments.imdb.train`."""

import sys

from experiments.harness.launch import launch

sys.exit(launch("imdb"))
