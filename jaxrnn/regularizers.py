"""Regularizers of the parameters and of outputs, to be called in the loss of any model.

Dropout of features and zoneout are arguments of the layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxrnn._validation import check_scalar
from jaxrnn.types import accumulation_dtype


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
    # In a box of Flax with metadata, its value has a name, too.
    return "w_h" in [keystr((entry,), simple=True) for entry in path[-2:]]


def embedding_dropout(params: PyTree, rate: float, key: Key[Array, ""]) -> PyTree:
    """Return the parameters with whole vectors of embeddings dropped.

    Each row of a parameter called `embedding`, as Flax's `nn.Embed` has it, is zero
    with probability `rate`, else divided by `1 - rate`: a word is dropped wherever it
    occurs in the batch. All else is left alone.

    Raises:
        ValueError: `rate` is not from 0 to below 1; no parameter is called `embedding`.

    Reference: Merity, Keskar and Socher (2018), "Regularizing and optimizing LSTM
    language models", section 4.3, after Gal and Ghahramani (2016).

    >>> params = {"embed": {"embedding": jnp.ones((4, 2))}, "b": jnp.ones(2)}
    >>> dropped = embedding_dropout(params, 0.5, jax.random.key(0))
    >>> [len(set(vector)) for vector in dropped["embed"]["embedding"].tolist()]
    [1, 1, 1, 1]
    """
    rate = check_scalar(rate=rate)
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be from 0 to below 1, got {rate}")
    named = jax.tree.leaves_with_path(params)
    tables = [keystr(path) for path, _ in named if _is_embedding(path)]
    if not tables:
        names = [keystr(path) for path, _ in named][:8]
        raise ValueError(f"no parameter is called embedding: {names}")
    keys = dict(zip(tables, jax.random.split(key, len(tables)), strict=True))

    def drop(path, table):
        if rate == 0 or not _is_embedding(path):
            return table
        kept = jax.random.bernoulli(keys[keystr(path)], 1 - rate, (table.shape[0], 1))
        return jnp.where(kept, table / (1 - rate), 0)

    return jax.tree.map_with_path(drop, params)


def activation_regularization(
    outputs: Float[Array, "*b t h"], valid: Bool[ArrayLike, "*b t"] | None = None
) -> Float[Array, ""]:
    """Return the mean square of outputs over valid steps (AR).

    It is added to a loss times a constant: 2 in the paper, of the outputs of the last
    layer after dropout.

    Raises:
        ValueError: `outputs` are not floating point, or `valid` is not boolean or not
            of the shape of their steps.

    Reference: Merity, McCann and Socher (2017), "Revisiting activation regularization
    for language RNNs", arXiv:1708.01009.

    >>> outputs = jnp.array([[1.0, 3.0], [5.0, 5.0]])
    >>> activation_regularization(outputs, jnp.array([True, False])).tolist()
    5.0
    """
    outputs = _floating(outputs)
    if valid is not None:
        valid = jnp.asarray(valid)
        if valid.dtype != jnp.bool_:
            raise ValueError(f"valid must be boolean, got {valid.dtype}")
        _check_steps(outputs, valid=valid)
    return _mean_square(outputs, valid)


def temporal_activation_regularization(
    outputs: Float[Array, "*b t h"],
    segment_ids: Int[ArrayLike, "*b t"] | None = None,
) -> Float[Array, ""]:
    """Return the mean square change of outputs from one step to the next (TAR).

    It is over steps that are neighbours in one sequence, zero if there are none, and is
    added to a loss times a constant: 1 in the paper, of the outputs of the last layer
    before dropout.

    Raises:
        ValueError: `outputs` are not floating point, or `segment_ids` are not integers
            or not of the shape of their steps.

    Reference: Merity, McCann and Socher (2017), "Revisiting activation regularization
    for language RNNs", arXiv:1708.01009.

    >>> outputs = jnp.array([[1.0], [3.0], [9.0]])
    >>> temporal_activation_regularization(outputs, jnp.array([1, 1, 2])).tolist()
    4.0
    """
    outputs = _floating(outputs)
    change = outputs[..., 1:, :] - outputs[..., :-1, :]
    valid = None
    if segment_ids is not None:
        ids = jnp.asarray(segment_ids)
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"segment_ids must be integers, got {ids.dtype}")
        _check_steps(outputs, segment_ids=ids)
        valid = (ids[..., 1:] == ids[..., :-1]) & (ids[..., 1:] > 0)
    return _mean_square(change, valid)


def _floating(outputs: Float[ArrayLike, "*b t h"]) -> Float[Array, "*b t h"]:
    """As an array in the dtype that it is summed in."""
    outputs = jnp.asarray(outputs)
    if outputs.ndim < 2 or not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(
            "outputs must be floating point, [*b, t, h], got "
            f"{outputs.dtype} {outputs.shape}"
        )
    return outputs.astype(accumulation_dtype(outputs.dtype))


def _check_steps(outputs: Float[Array, "*b t h"], **named: Array) -> None:
    """Refuses what has not one entry for each step of the outputs."""
    ((name, array),) = named.items()
    if array.shape != outputs.shape[:-1]:
        raise ValueError(
            f"{name} has shape {array.shape}, but batch and time of outputs are "
            f"{outputs.shape[:-1]}"
        )


def _mean_square(values: Float[Array, "*b t h"], valid: Any) -> Float[Array, ""]:
    if valid is None:
        return jnp.square(values).sum() / max(values.size, 1)
    valid = jnp.asarray(valid)[..., None]
    # Zero before they are squared: 0 * NaN would reach the gradient.
    total = jnp.square(jnp.where(valid, values, 0)).sum()
    number = valid.sum() * values.shape[-1]
    return total / jnp.maximum(number, 1).astype(total.dtype)


def _is_embedding(path: tuple) -> bool:
    return "embedding" in [keystr((entry,), simple=True) for entry in path[-2:]]
