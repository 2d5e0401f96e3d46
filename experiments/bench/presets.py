"""Number and size of the cases that `experiments.bench` measures: three presets."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from experiments.bench.imdb_workload import Reviews
from experiments.charlm import config as charlm
from experiments.harness.cells import CellName, CommonCellName
from experiments.imdb import model as imdb

SuiteName = Literal[
    "layers",
    "bidirectional",
    "cells",
    "recurrences",
    "imdb",
    "charlm",
    "growth",
    "devices",
    "memory",
    "compile",
]
Shape = tuple[int, int, int, int]  # batch, time, inputs, hidden


@dataclass(frozen=True)
class Scale:
    """Number and size of the cases of each suite."""

    suites: tuple[SuiteName, ...]
    """Suites to run by default."""
    cells: tuple[CommonCellName, ...]
    variants: bool
    """Also measure this library on one device and with backend="scan"."""
    training: tuple[bool, ...]
    ragged: tuple[bool, ...]
    shapes: tuple[Shape, ...]
    some_shapes: tuple[Shape, ...]
    """Shapes of the suites bidirectional, devices and memory."""
    steps: int
    """Batch size times sequence length where both vary."""
    every_cell: tuple[CellName, ...]
    """Cells of the suite "cells"."""
    cell_shapes: tuple[Shape, ...]
    """Shapes of the suite "cells"."""
    long_times: tuple[int, ...]
    """Sequence lengths of the suite "recurrences"."""
    times: tuple[int, ...]
    batches: tuple[int, ...]
    hiddens: tuple[int, ...]
    reviews: Reviews
    torch_reviews: Reviews
    epoch: bool
    """Also measure steps with vocabularies of two sizes, and a whole epoch."""
    characters: charlm.Settings
    length: int
    """Length of the generated texts."""
    texts: tuple[int, ...]
    """Numbers of texts that are generated in one batch."""
    deep_times: tuple[int, ...]
    seconds: float
    """Time limit for the rounds of a case, by default."""


FULL = Scale(
    suites=get_args(SuiteName),
    cells=("lstm", "gru", "rnn"),
    variants=True,
    training=(True, False),
    ragged=(False, True),
    shapes=(
        (32, 256, 20, 64),
        (32, 256, 64, 128),
        (64, 40, 256, 512),
        (32, 256, 256, 512),
        (64, 128, 512, 1024),
    ),
    some_shapes=((32, 256, 20, 64), (32, 256, 64, 128), (32, 256, 256, 512)),
    steps=16_384,
    every_cell=get_args(CellName),
    cell_shapes=((32, 256, 64, 128),),
    long_times=(256, 1024, 4096, 16_384),
    times=(128, 256, 512, 1024, 2048, 4096),
    batches=(8, 16, 32, 64, 128, 256),
    hiddens=(64, 128, 256, 512, 1024),
    reviews=Reviews(imdb.Settings(), number=22_500, sample=16),
    torch_reviews=Reviews(imdb.Settings(), number=22_500, sample=2),
    epoch=True,
    characters=charlm.PRESETS["chapter"],
    length=300,
    texts=(1, 64),
    deep_times=(64, 2048),
    seconds=10.0,
)
QUICK = replace(
    FULL,
    suites=("layers", "imdb", "charlm"),
    cells=("lstm",),
    variants=False,
    training=(True,),
    ragged=(False,),
    shapes=((32, 256, 20, 64), (64, 40, 256, 512)),
    some_shapes=((32, 256, 64, 128),),
    long_times=(256, 4096),
    times=(128, 1024),
    batches=(16, 64),
    hiddens=(128, 512),
    reviews=Reviews(imdb.Settings(buckets=2), number=2_000, sample=2),
    torch_reviews=Reviews(imdb.Settings(), number=2_000, sample=1),
    epoch=False,
    texts=(1,),
    seconds=2.0,
)
_TINY = imdb.Settings(embed=4, hidden=4, vocab=50, batch=4, buckets=1)
SMOKE = replace(
    QUICK,
    suites=FULL.suites,
    variants=True,
    ragged=(False, True),
    shapes=((4, 6, 3, 4),),
    some_shapes=((8, 6, 3, 4),),
    steps=32,
    every_cell=("lstm", "min-gru"),
    cell_shapes=((4, 6, 3, 4),),
    long_times=(8,),
    times=(8,),
    batches=(4,),
    hiddens=(4,),
    reviews=Reviews(_TINY, number=8),
    torch_reviews=Reviews(_TINY, number=8, sample=1),
    characters=charlm.Settings(embed=4, hidden=4, batch=2, seq_len=3),
    length=3,
    texts=(2,),
    deep_times=(4,),
    seconds=0.0,
)
