"""Programs on top of `jaxrnn`, each with its own `--help`.

    python -m experiments.imdb      sentiment of movie reviews
    python -m experiments.charlm    a character language model
    python -m experiments.bench     speed, beside other libraries
    python -m experiments.plot      curves of several runs

`imdb` has its command line in `review_options` and puts together `reviews`,
`imdb_reviews`, `examples`, `sentiment` and `word_vectors`; when it is trained `judging`
has a `reader` and `explanation`. `charlm` has `character_options`, `texts`, `language`
and `evaluation`; when it is trained `writing` has a `writer` and `neurons`. Both take
data that is `prepared`, name cells as `layers` has them, draw `plots`, write `pages`,
and train with `fit`, which has a `table`, `events` and `interrupt`, in a `workdir`.

`bench` takes turns (`timing`) in `suites` of `contenders` and of the programs' own
`work` (`review_work`, `character_work`), on `scales`, shows the `standings` and keeps
the `measurements`. Every `program` sets up its `runtime`, `cluster` and `mesh`, reads
`files`, writes `records`, checks `ranges` and the `fields` of both, and tells its
`environment`.
"""
