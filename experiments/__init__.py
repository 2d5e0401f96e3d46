"""Programs on top of `jaxrnn`, each with its own `--help`.

    python -m experiments.imdb      sentiment of movie reviews
    python -m experiments.charlm    a character language model
    python -m experiments.bench     speed, beside other libraries
    python -m experiments.plot      curves of several runs

`experiments.harness` has what they share. Imports go one way: `bench` may use `imdb`
and `charlm`, every package may use `harness`, and the two programs do not know each
other.
"""
