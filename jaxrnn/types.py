"""Type aliases of the whole library, and helpers for dtypes and token ids.

Shapes are written in types, with these letters (jaxtyping):

    b  batch: rows of a padded array        d  features going into a layer
    t  time: steps of a row                 h  features coming out of a layer
    s  segments: sequences sharing a row    g  gates times hidden features
    v  vocabulary: distinct tokens          p  features after a projection
    c  classes of sequences                 e  features of an embedding

`*b` is any number of batch axes, none included.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import export
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

Array: TypeAlias = jax.Array
Dtype: TypeAlias = DTypeLike

__all__ = [
    "Array",
    "Bool",
    "CellState",
    "Dtype",
    "Float",
    "Int",
    "LSTMState",
    "State",
    "accumulation_dtype",
    "sanitize_ids",
]


class LSTMState(NamedTuple):
    """What an LSTM cell remembers: its last output `h` and its memory cell `c`.

    >>> state = LSTMState(h=jnp.zeros((2, 4)), c=jnp.ones((2, 4)))
    >>> h, c = state
    >>> jax.tree.map(jnp.shape, state)
    LSTMState(h=(2, 4), c=(2, 4))
    """

    h: Float[Array, "*b h"]
    c: Float[Array, "*b h"]


# So that what `jax.export` compiled for a state can be written to a file.
export.register_namedtuple_serialization(
    LSTMState, serialized_name="jaxrnn.types.LSTMState"
)

# The state of one cell: a pytree whose leaves all lead with the batch axes. An
# `LSTMState` for the LSTM, the array `h` for the RNN and the GRU, anything for others.
CellState: TypeAlias = Any

# The state of a layer: one entry per cell, in PyTorch's order (layer 0 forward,
# layer 0 reverse, layer 1 forward, ...).
State: TypeAlias = tuple[CellState, ...]


def accumulation_dtype(dtype: Dtype) -> Dtype:
    """The dtype for sums, logarithms and states: at least float32.

    bfloat16 has 8 significant bits, which are too few.

    >>> [accumulation_dtype(dtype).__name__ for dtype in (jnp.bfloat16, jnp.float64)]
    ['float32', 'float64']
    """
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def sanitize_ids(ids: Int[Array, "*b"], number: int) -> Int[Array, "*b"]:
    """The ids as int32; those outside 0 to `number` - 1 become `number`.

    A lookup among `number` entries fills NaN for that. JAX would count negative ids
    from the end.

    >>> sanitize_ids(jnp.array([2, 3, -1]), 3).tolist()
    [2, 3, 3]
    """
    # First what is too great: in int32 some of it is negative, or another id.
    greatest = jnp.iinfo(ids.dtype).max  # Of bytes it may be below `number`.
    ids = jnp.minimum(ids, min(number, greatest)).astype(jnp.int32)
    return jnp.where(ids < 0, number, ids)
