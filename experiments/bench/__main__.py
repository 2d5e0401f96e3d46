import sys

from experiments.bench import run
from experiments.harness import cli

sys.exit(cli.run(run.main, run.Options, "bench", run.__doc__))
