"""The recurrent layers by the names that the command lines have for them."""

from typing import Literal

import jaxrnn

CellName = Literal["lstm", "gru", "rnn"]
LAYERS = {"lstm": jaxrnn.LSTM, "gru": jaxrnn.GRU, "rnn": jaxrnn.RNN}
