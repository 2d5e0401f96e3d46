import sys

from experiments.harness import cli
from experiments.imdb import train
from experiments.imdb.options import Options

sys.exit(cli.run(train.main, Options, "imdb", train.__doc__))
