"""Metrics: weighted means kept as total and weight, cross-entropies, accuracy.

Losses come unreduced, one number per prediction. `Mean` is the one reduction: it keeps
the total and the weight apart, so that parts of a batch, batches and devices merge into
exactly the mean of the whole. Nothing here knows of models or devices.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Num

from jaxrnn.types import sanitize_ids


class Mean(NamedTuple):
    """A weighted mean as numerator and denominator, so that parts can be merged.

    >>> Mean.of(jnp.array([1.0, 2.0, 9.0]), weights=jnp.array([1.0, 1.0, 0.0])).value
    Array(1.5, dtype=float32)
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]

    @classmethod
    def of(
        cls,
        values: Num[ArrayLike, "*shape"],
        weights: Num[ArrayLike, "*shape"] | None = None,
    ) -> "Mean":
        """The mean over every entry of `values`, summed in float32 or wider.

        Entries of weight zero count for nothing, whatever they hold: NaN too.

        Raises:
            ValueError: `weights` have another shape than `values`.

        >>> Mean.of(jnp.array([1.5, jnp.nan]), weights=jnp.array([2.0, 0.0]))
        Mean(total=Array(3., dtype=float32), weight=Array(2., dtype=float32))
        """
        values = _at_least_float32("values", values)
        if weights is None:
            return cls(jnp.sum(values), jnp.asarray(values.size, values.dtype))
        weights = _numbers("weights", weights)
        if weights.shape != values.shape:
            raise ValueError(
                f"weights have shape {weights.shape}, values {values.shape}: "
                "there must be one weight for each value"
            )
        weights = weights.astype(values.dtype)
        values = jnp.where(weights == 0, jnp.zeros_like(values), values)
        return cls(jnp.sum(values * weights), jnp.sum(weights))

    def merge(self, other: "Mean") -> "Mean":
        """The mean over both parts (`+` of tuples would concatenate).

        >>> Mean.of(jnp.array([1.0, 1.0, 1.0])).merge(Mean.of(jnp.array(5.0))).value
        Array(2., dtype=float32)
        """
        if not isinstance(other, Mean):
            raise TypeError(f"other must be a Mean, got {other!r}")
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> Float[Array, ""]:
        """Total divided by weight; NaN if the weight is zero.

        >>> Mean(total=jnp.float32(3), weight=jnp.float32(2)).value
        Array(1.5, dtype=float32)
        """
        return self.total / self.weight


def merge(measured: Iterable[Mapping[str, Mean]]) -> dict[str, Mean]:
    """The means over all batches, by name; an empty dict if there are none.

    A metric that only some batches report is averaged over those. Batches are merged as
    they come, so that a generator is not kept in memory.

    Raises:
        TypeError: a value is not a `Mean`.

    >>> batches = [{"loss": Mean.of(jnp.ones(3))}, {"loss": Mean.of(jnp.full(1, 5.0))}]
    >>> merge(batches)["loss"].value
    Array(2., dtype=float32)
    """
    merged: dict[str, Mean] = {}
    for means in measured:
        for name, mean in means.items():
            if not isinstance(mean, Mean):
                raise TypeError(f"{name} must be a Mean, got {mean!r}")
            merged[name] = merged[name].merge(mean) if name in merged else mean
    return merged


def cross_entropy(
    logits: Float[Array, "*b v"], ids: Num[ArrayLike, "*b"]
) -> Float[Array, "*b"]:
    """Cross-entropy in nats of each prediction, not reduced.

    An id that is none of the classes gives NaN, a negative one too.

    >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))  # log 4
    Array([1.3862944], dtype=float32)

    Raises:
        ValueError: `ids` are not integers, or do not have the shape of `logits`
            without the last axis.
    """
    logits, ids = _at_least_float32("logits", logits), _numbers("ids", ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"ids must be integers, got {ids.dtype}")
    if logits.shape[:-1] != ids.shape:
        raise ValueError(
            f"logits of shape {logits.shape} need ids of shape {logits.shape[:-1]}, "
            f"not {ids.shape}"
        )
    ids = sanitize_ids(ids, logits.shape[-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids)


def binary_cross_entropy(
    logits: Float[Array, "*b"], labels: Num[ArrayLike, "*b"]
) -> Float[Array, "*b"]:
    """Cross-entropy in nats of each prediction, labels from 0 to 1; not reduced.

    >>> binary_cross_entropy(jnp.array([0.0]), jnp.array([1]))  # log 2
    Array([0.6931472], dtype=float32)

    Raises:
        ValueError: `labels` have another shape than `logits`.
    """
    logits, labels = _at_least_float32("logits", logits), _numbers("labels", labels)
    if logits.shape != labels.shape:
        raise ValueError(
            f"logits of shape {logits.shape} need labels of the same shape, "
            f"not {labels.shape}"
        )
    return optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))


def correct(
    logits: Float[Array, "*b"] | Float[Array, "*b v"], labels: Num[ArrayLike, "*b"]
) -> Float[Array, "*b"]:
    """Whether each prediction is right, as 1 or 0; not reduced.

    With the shape of `labels` the logits are binary, and above 0 predicts 1; with one
    axis more they are classes, and the greatest is predicted. NaN is never right.

    >>> correct(jnp.array([-1.0, 2.0]), jnp.array([1, 1]))
    Array([0., 1.], dtype=float32)

    Raises:
        ValueError: the shapes fit neither case.
    """
    logits, labels = _at_least_float32("logits", logits), _numbers("labels", labels)
    if logits.shape == labels.shape:
        right = (logits > 0).astype(labels.dtype) == labels
        known = ~jnp.isnan(logits)
    elif logits.shape[:-1] == labels.shape:
        right = jnp.argmax(logits, axis=-1) == labels.astype(jnp.int32)
        known = ~jnp.isnan(logits).any(axis=-1)
    else:
        raise ValueError(
            f"logits of shape {logits.shape} need labels of shape {logits.shape} "
            f"(binary) or {logits.shape[:-1]} (classes), not {labels.shape}"
        )
    return (right & known).astype(logits.dtype)


def perplexity(nats: Float[ArrayLike, "*b"]) -> Float[Array, "*b"]:
    """Perplexity: the exponential of a cross-entropy in nats.

    >>> perplexity(math.log(8))
    Array(8., dtype=float32, weak_type=True)
    """
    return jnp.exp(_numbers("nats", nats))


def nats_to_bits(nats: Float[ArrayLike, "*b"]) -> Float[Array, "*b"]:
    """Converts a cross-entropy from nats to bits.

    >>> nats_to_bits(math.log(8))
    Array(3., dtype=float32, weak_type=True)
    """
    return _numbers("nats", nats) / math.log(2)


def _numbers(name: str, values: Num[ArrayLike, "*shape"]) -> Num[Array, "*shape"]:
    if not isinstance(values, jax.Array) and np.asarray(values).dtype.kind in "OSU":
        raise TypeError(f"{name} must be numbers, got {values!r:.80}")
    return jnp.asarray(values)


def _at_least_float32(
    name: str, values: Num[ArrayLike, "*shape"]
) -> Float[Array, "*shape"]:
    """bfloat16 has 8 significant bits: too few to sum or to take logarithms in."""
    values = _numbers(name, values)
    return values.astype(jnp.float64 if values.dtype == jnp.float64 else jnp.float32)
