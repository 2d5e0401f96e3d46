"""The weights of other libraries, in and out: PyTorch, Keras, Flax and Haiku.

    from_torch, to_torch      torch.nn.RNN, LSTM, GRU: state dicts, safetensors files
    from_keras, to_keras      Keras 3: layers, models, .weights.h5 files
    from_linen, to_linen      cells of flax.linen
    from_nnx, to_nnx          cells of flax.nnx
    from_haiku, to_haiku      cells of Haiku

`from_*` returns the variables of a layer, which must be as wide and deep as the other
one; `to_*` takes them. Everything is numpy: none of the libraries is imported.
"""

from jaxrnn.torch_weights import (
    from_torch,
    load_safetensors,
    save_safetensors,
    to_torch,
)
from jaxrnn.weights.flax import from_linen, from_nnx, to_linen, to_nnx
from jaxrnn.weights.haiku import from_haiku, to_haiku
from jaxrnn.weights.keras import from_keras, to_keras

__all__ = [
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_torch",
    "load_safetensors",
    "save_safetensors",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_torch",
]
