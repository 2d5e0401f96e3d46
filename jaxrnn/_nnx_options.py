"""The options of the NNX modules, for editors and type checkers.

They are the fields of the Linen modules of the same names, whose docstrings describe
them; a test compares the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from flax.typing import Initializer

from jaxrnn.combinators import Skip
from jaxrnn.equations import Activation
from jaxrnn.recurrent import Backend
from jaxrnn.segments import Pooling
from jaxrnn.types import Dtype


class RecurrentOptions(TypedDict, total=False):
    """Of `Recurrent`, and of all layers."""

    backend: Backend
    remat_chunk: int | None
    zoneout_h: float
    zoneout_c: float
    recurrent_dropout: float
    update_dropout: float
    learned_initial_state: bool
    unroll: int


class GRUOptions(RecurrentOptions, total=False):
    """Of `GRU`, and of the other layers with several cells."""

    num_layers: int
    bidirectional: bool
    dropout: float
    locked_dropout: bool
    input_dropout: float
    skip: Skip | None
    layer_norm: bool
    use_bias: bool
    kernel_init: Initializer
    recurrent_init: Initializer
    bias_init: Initializer
    dtype: Dtype | None
    param_dtype: Dtype
    torch_init: bool


class LayerOptions(GRUOptions, total=False):
    """Of `Layer`."""

    cell_options: Mapping[str, Any]


class RNNOptions(GRUOptions, total=False):
    """Of `RNN`."""

    activation: Activation


class LSTMOptions(GRUOptions, total=False):
    """Of `LSTM`."""

    proj_size: int
    forget_bias: float


class StackOptions(TypedDict, total=False):
    """Of `Stack`."""

    dropout: float
    locked_dropout: bool
    input_dropout: float
    skip: Skip | None
    layer_norm: bool
    param_dtype: Dtype
    shared_features: int


class SequenceClassifierOptions(TypedDict, total=False):
    """Of `SequenceClassifier`."""

    pooling: Sequence[Pooling]
    dropout: float
    word_dropout: float
    num_classes: int | None
    embed_init: Initializer


class LanguageModelOptions(TypedDict, total=False):
    """Of `LanguageModel`."""

    dropout: float
    locked_dropout: bool
    tie_embeddings: bool
    embed_init: Initializer
