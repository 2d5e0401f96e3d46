"""Recurrent neural networks for JAX and Flax.

The top level has the layers (`LSTM`, `GRU`, `RNN`, `Layer`, `Recurrent`,
`Bidirectional`, `Stack`), their classic cells, and `save` and `load`. Everything else
is in a module: `adversarial`, `batching`, `cells`, `checkpoints`, `functional`,
`linear_recurrence`, `metrics`, `models`, `placement`, `regularizers`,
`sampled_softmax`, `sampling`, `segments`, `serving`, `text`, `torch_weights`,
`training` and `weights`. `nnx` is imported on first use.
"""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING, Any

from jaxrnn import (
    adversarial,
    batching,
    cells,
    checkpoints,
    functional,
    linear_recurrence,
    metrics,
    models,
    placement,
    regularizers,
    sampled_softmax,
    sampling,
    segments,
    serving,
    text,
    torch_weights,
    training,
    weights,
)
from jaxrnn.cells import GRUCell, LSTMCell, ResetBeforeGRUCell, RNNCell
from jaxrnn.combinators import Bidirectional, Stack
from jaxrnn.layers import GRU, LSTM, RNN, Layer
from jaxrnn.recurrent import Recurrent
from jaxrnn.saving import load, save
from jaxrnn.types import LSTMState

if TYPE_CHECKING:
    from jaxrnn import nnx as nnx
else:

    def __getattr__(name: str) -> Any:
        if name == "nnx":
            return importlib.import_module("jaxrnn.nnx")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "GRUCell",
    "LSTMCell",
    "LSTMState",
    "Layer",
    "RNNCell",
    "Recurrent",
    "ResetBeforeGRUCell",
    "Stack",
    "adversarial",
    "batching",
    "cells",
    "checkpoints",
    "functional",
    "linear_recurrence",
    "load",
    "metrics",
    "models",
    "placement",
    "regularizers",
    "sampled_softmax",
    "sampling",
    "save",
    "segments",
    "serving",
    "text",
    "torch_weights",
    "training",
    "weights",
]
