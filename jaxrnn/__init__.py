"""Recurrent networks for JAX: right, fast and pleasant."""

__version__ = "0.1.0"

from jaxrnn.cells import GRUCell, LSTMCell, ResetBeforeGRUCell, RNNCell
from jaxrnn.combinators import Bidirectional, Stack
from jaxrnn.layers import GRU, LSTM, RNN
from jaxrnn.recurrent import Recurrent
from jaxrnn.types import LSTMState

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "GRUCell",
    "LSTMCell",
    "LSTMState",
    "RNNCell",
    "Recurrent",
    "ResetBeforeGRUCell",
    "Stack",
]
