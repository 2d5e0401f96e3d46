"""Programs on top of `jaxrnn`, each with its own `--help`.

    python -m experiments.imdb      sentiment of movie reviews
    python -m experiments.charlm    a character language model
    python -m experiments.bench     speed, beside other libraries
    python -m experiments.plot      curves of several runs

`imdb` puts together `reviews`, `examples`, `sentiment` and `word_vectors`, and when it
is trained `reader` and `explanation`; `charlm` has `texts`, `language`, `evaluation`,
and when it is trained `writer`, `writing` and `neurons`. Both train with `fit` in a
`workdir`. `bench` takes turns (`timing`) in `suites` of `contenders` and of the
programs' own work.
"""
