"""Regularizers of the parameters, to be called in the loss of any model.

Dropout of features is an argument of the layers.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jaxtyping import Array, Key, PyTree

from jaxrnn._validation import check_scalar


def weight_drop(params: PyTree, rate: float, key: Key[Array, ""]) -> PyTree:
    """DropConnect on the recurrent weights: entries of every `w_h` are dropped.

    With probability `rate` an entry is zero; the others are divided by `1 - rate`. The
    mask is the same for all rows and all steps of a call, so that the recurrence itself
    is unchanged and as fast as without. Other parameters are returned as they are.

    Raises:
        ValueError: `rate` is not from 0 to below 1; there is no `w_h`, which the cells
            of this library call their recurrent matrix.

    Reference: Merity, Keskar and Socher (2018), "Regularizing and optimizing LSTM
    language models", section 2; DropConnect of Wan et al. (2013).

    >>> params = {"l0": {"w_h": jnp.ones((4, 4)), "b": jnp.ones(4)}}
    >>> dropped = weight_drop(params, 0.5, jax.random.key(0))
    >>> sorted(set(dropped["l0"]["w_h"].ravel().tolist())), dropped["l0"]["b"].tolist()
    ([0.0, 2.0], [1.0, 1.0, 1.0, 1.0])
    """
    rate = check_scalar(rate=rate)
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be from 0 to below 1, got {rate}")
    named = jax.tree.leaves_with_path(params)
    recurrent = [keystr(path) for path, _ in named if _is_recurrent(path)]
    if not recurrent:
        raise ValueError(
            f"no parameter is called w_h: {[keystr(path) for path, _ in named][:8]}"
        )
    keys = dict(zip(recurrent, jax.random.split(key, len(recurrent)), strict=True))

    def drop(path, weight):
        if rate == 0 or not _is_recurrent(path):
            return weight
        kept = jax.random.bernoulli(keys[keystr(path)], 1 - rate, weight.shape)
        return jnp.where(kept, weight / (1 - rate), 0)

    return jax.tree.map_with_path(drop, params)


def _is_recurrent(path: tuple) -> bool:
    return keystr(path[-1:], simple=True) == "w_h"
