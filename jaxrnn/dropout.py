"""Dropout with one draw for all steps of a sequence, also where sequences share a row.

Gal and Ghahramani (2016), "A theoretically grounded application of dropout in recurrent
neural networks", called variational there and locked by Merity, Keskar and Socher
(2018), "Regularizing and optimizing LSTM language models".
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from jaxrnn import segments
from jaxrnn.types import Array, Dtype, Float, Int


def drop(
    module: nn.Module,
    dropout: nn.Dropout,
    x: Float[Array, "*b h"],
    segment_ids: Int[ArrayLike, "*b t"] | None,
    *,
    train: bool,
) -> Float[Array, "*b h"]:
    """Apply `dropout`, a submodule of `module`, to the features of sequences.

    If it is locked (it has `broadcast_dims`, time), sequences that share a row each
    have their own draw.

    >>> class Drop(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, segment_ids):
    ...         dropout = nn.Dropout(0.5, broadcast_dims=(-2,))
    ...         return drop(self, dropout, x, segment_ids, train=True)
    >>> x, ids = jnp.ones((4, 64)), jnp.array([1, 1, 2, 2])
    >>> y = Drop().apply({}, x, ids, rngs={"dropout": jax.random.key(0)})
    >>> [bool((y[t] == y[0]).all()) for t in (1, 2, 3)]
    [True, False, False]
    """
    locked = dropout.broadcast_dims and segment_ids is not None
    if not (locked and train and dropout.rate):
        return dropout(x, deterministic=not train)
    ids = jnp.asarray(segment_ids)
    ids = segments.resolve(x.shape[: ids.ndim], None, ids)
    key = module.make_rng("dropout")
    return x * sequence_mask(key, dropout.rate, x.shape, ids, x.dtype)


def sequence_mask(
    key: Array,
    rate: float,
    shape: tuple[int, ...],
    segment_ids: Int[ArrayLike, "*b t"] | None = None,
    dtype: Dtype = jnp.float32,
) -> Float[Array, "*b h"]:
    """Return the factors of `dropout_mask`, the same at all steps of a sequence.

    Without `segment_ids` a row is one sequence, and the shape is `[*b, t, h]`.

    >>> ids = jnp.array([1, 1, 0, 1, 2])
    >>> mask = sequence_mask(jax.random.key(0), 0.5, (5, 64), ids)
    >>> [bool((mask[t] == mask[0]).all()) for t in (1, 2, 3, 4)]
    [True, True, True, False]
    """
    if segment_ids is None:
        *batch, _, features = shape
        drawn = dropout_mask(key, rate, (*batch, 1, features), dtype)
        return jnp.broadcast_to(drawn, shape)
    drawn = dropout_mask(key, rate, shape, dtype)
    ids = jnp.asarray(segment_ids)
    time = ids.ndim - 1
    steps = jnp.broadcast_to(jnp.arange(shape[time]), ids.shape)
    # That of the step at which the sequence starts; a row's first padding has step 0.
    starts = jnp.where(segments.starts(ids), steps, 0)
    last_start = jax.lax.cummax(starts, axis=time)
    last_start = jnp.expand_dims(last_start, range(ids.ndim, len(shape)))
    return jnp.take_along_axis(drawn, last_start, axis=time)


def dropout_mask(
    key: Array, rate: float, shape: tuple[int, ...], dtype: Dtype = jnp.float32
) -> Float[Array, "*b h"]:
    """Return factors, each 0 with probability `rate`, else `1 / (1 - rate)`.

    >>> sorted(set(dropout_mask(jax.random.key(0), 0.75, (64,)).tolist()))
    [0.0, 4.0]
    """
    if rate >= 1:  # 1 / 0 is no number.
        return jnp.zeros(shape, dtype)
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, jnp.asarray(1 / (1 - rate), dtype), 0)
