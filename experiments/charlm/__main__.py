import sys

from experiments.charlm import train
from experiments.charlm.options import Options, defaults
from experiments.harness import cli

sys.exit(cli.run(train.main, Options, "charlm", train.__doc__, defaults))
