"""The recurrent layers by the names that the command lines have for them."""

import functools
from collections.abc import Callable
from typing import Literal

import jaxrnn
from jaxrnn import cells

CellName = Literal[
    "lstm",
    "gru",
    "rnn",
    "reset-before-gru",
    "peephole-lstm",
    "coupled-lstm",
    "janet",
    "layer-norm-lstm",
    "layer-norm-gru",
    "multiplicative-lstm",
    "mogrifier-lstm",
    "mgu",
    "ugrnn",
    "li-gru",
    "rhn",
    "minimal-rnn",
    "scrn",
    "ind-rnn",
    "antisymmetric-rnn",
    "co-rnn",
    "lem",
    "leaky-rnn",
    "cfc",
    "min-gru",
    "min-lstm",
    "sru",
    "qrnn",
    "lru",
    "rg-lru",
    "s5",
]
# Those that the other frameworks of `experiments.bench` have, too.
CommonCellName = Literal["lstm", "gru", "rnn"]


def _layer(
    cell_type: type[cells.Cell], features: int, **options: object
) -> jaxrnn.Layer:
    return jaxrnn.Layer(cell_type, features=features, **options)  # pyright: ignore[reportArgumentType]


_CELLS: dict[CellName, type[cells.Cell]] = {
    "reset-before-gru": cells.ResetBeforeGRUCell,
    "peephole-lstm": cells.PeepholeLSTMCell,
    "coupled-lstm": cells.CoupledLSTMCell,
    "janet": cells.JANETCell,
    "layer-norm-lstm": cells.LayerNormLSTMCell,
    "layer-norm-gru": cells.LayerNormGRUCell,
    "multiplicative-lstm": cells.MultiplicativeLSTMCell,
    "mogrifier-lstm": cells.MogrifierLSTMCell,
    "mgu": cells.MGUCell,
    "ugrnn": cells.UGRNNCell,
    "li-gru": cells.LiGRUCell,
    "rhn": cells.RHNCell,
    "minimal-rnn": cells.MinimalRNNCell,
    "scrn": cells.SCRNCell,
    "ind-rnn": cells.IndRNNCell,
    "antisymmetric-rnn": cells.AntisymmetricRNNCell,
    "co-rnn": cells.CoRNNCell,
    "lem": cells.LEMCell,
    "leaky-rnn": cells.LeakyRNNCell,
    "cfc": cells.CfCCell,
    "min-gru": cells.MinGRUCell,
    "min-lstm": cells.MinLSTMCell,
    "sru": cells.SRUCell,
    "qrnn": cells.QRNNCell,
    "lru": cells.LRUCell,
    "rg-lru": cells.RGLRUCell,
    "s5": cells.S5Cell,
}
# What makes a layer, of its features and what else a `jaxrnn.Layer` takes by name.
LAYERS: dict[CellName, Callable[..., jaxrnn.Layer]] = {
    "lstm": jaxrnn.LSTM,
    "gru": jaxrnn.GRU,
    "rnn": jaxrnn.RNN,
    **{
        name: functools.partial(_layer, cell_type) for name, cell_type in _CELLS.items()
    },
}


def has_recurrent_matrix(name: CellName) -> bool:
    """Whether there is a `w_h`, of which weights can be dropped.

    >>> has_recurrent_matrix("lstm"), has_recurrent_matrix("min-gru")
    (True, False)
    """
    return name not in _CELLS or _CELLS[name].recurrent_gates != 0
