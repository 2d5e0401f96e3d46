"""What type checkers and editors see of the library; pyright reads it, nothing runs it.

Lines that must be an error have a comment to ignore it, which is an error without one.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from flax import nnx

import jaxrnn
from jaxrnn import cells, models


def layers() -> None:
    """As Linen modules."""
    jaxrnn.LSTM(64, num_layers=2, proj_size=8)
    jaxrnn.GRU(features=64, bidirectional=True)
    jaxrnn.RNN(64, activation="relu")
    jaxrnn.Layer(cells.MGUCell, features=64)
    jaxrnn.LSTMCell(64)
    jaxrnn.Stack([jaxrnn.LSTM(4), jaxrnn.Bidirectional(jaxrnn.GRU(4), jaxrnn.GRU(4))])
    models.SequenceClassifier(100, 16, jaxrnn.LSTM(8), pooling=("mean",))
    jaxrnn.LSTM(64, num_layer=2)  # pyright: ignore[reportCallIssue]
    jaxrnn.LSTM(32, 64)  # pyright: ignore[reportCallIssue]
    jaxrnn.RNN(64, activation="relux")  # pyright: ignore[reportArgumentType]
    jaxrnn.Layer(cells.MGUCell, 64)  # pyright: ignore[reportCallIssue]


def nnx_layers(rngs: nnx.Rngs) -> None:
    """As NNX modules."""
    jaxrnn.nnx.LSTM(3, 8, num_layers=2, forget_bias=0.0, rngs=rngs)
    jaxrnn.nnx.LSTM(3, 8, num_layer=2, rngs=rngs)  # pyright: ignore[reportCallIssue]
    jaxrnn.nnx.GRU(3, 8, dropout="0.5", rngs=rngs)  # pyright: ignore[reportArgumentType]
