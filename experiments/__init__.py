"""Programs on top of `jaxrnn`, each with its own `--help`.

    python -m experiments.imdb      sentiment of movie reviews
    python -m experiments.charlm    a character language model
    python -m experiments.bench     speed, beside other libraries
    python -m experiments.cells     every cell in the character model
    python -m experiments.plot      curves of several runs

`experiments.harness` has what they share. Imports go one way: `cells` may use `bench`
and `charlm`, `bench` may use `imdb` and `charlm`, every package may use `harness`, and
`imdb` and `charlm` do not know each other.
"""
