"""Dropout with one draw for all steps of a sequence, also where sequences share a row.

Gal and Ghahramani (2016), "A theoretically grounded application of dropout in recurrent
neural networks", called variational there and locked by Merity, Keskar and Socher
(2018), "Regularizing and optimizing LSTM language models".
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrnn import segments
from jaxrnn.types import Array, Dtype, Float, Int


def sequence_mask(
    key: Array,
    rate: float,
    shape: tuple[int, ...],
    segment_ids: Int[ArrayLike, "*b t"] | None = None,
    dtype: Dtype = jnp.float32,
) -> Float[Array, "*b t h"]:
    """Return factors `[*b, t, h]`, the same at all steps of a sequence.

    They are 0 with probability `rate`, else `1 / (1 - rate)`. Without `segment_ids` a
    row is one sequence.

    >>> ids = jnp.array([1, 1, 0, 1, 2])
    >>> mask = sequence_mask(jax.random.key(0), 0.5, (5, 64), ids)
    >>> [bool((mask[t] == mask[0]).all()) for t in (1, 2, 3, 4)]
    [True, True, True, False]
    """
    *batch, time, features = shape
    if segment_ids is None:
        drawn = _draw(key, rate, (*batch, 1, features), dtype)
        return jnp.broadcast_to(drawn, shape)
    drawn = _draw(key, rate, shape, dtype)
    steps = jnp.broadcast_to(jnp.arange(time), (*batch, time))
    # That of the step at which the sequence starts; a row's first padding has step 0.
    starts = jnp.where(segments.starts(jnp.asarray(segment_ids)), steps, 0)
    last_start = jax.lax.cummax(starts, axis=starts.ndim - 1)
    return jnp.take_along_axis(drawn, last_start[..., None], axis=-2)


def _draw(key: Array, rate: float, shape: tuple[int, ...], dtype: Dtype) -> Array:
    if rate >= 1:  # 1 / 0 is no number.
        return jnp.zeros(shape, dtype)
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, jnp.asarray(1 / (1 - rate), dtype), 0)
