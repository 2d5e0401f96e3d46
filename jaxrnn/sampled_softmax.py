"""Cross-entropy over a large vocabulary, estimated from a sample of its classes.

In training, the softmax over all classes is the most expensive part of a language model
with many words. Its denominator is a sum over the classes, which a weighted sum over a
few of them estimates: the candidates, drawn anew at each step and shared by all
predictions of a batch, so that one small matrix product gives all logits.

The estimator is that of Horvitz and Thompson (1952): a candidate counts as often as its
probability of being drawn is in 1, so that the expected denominator is the true one.
Jean et al. (2015), "On Using Very Large Target Vocabulary for Neural Machine
Translation", equation 10, weight candidates the same way, but draw them with
replacement. Here no class is drawn twice, and those that would be drawn more than once
always are: the frequent words of a language then have no sampling error. With as many
candidates as classes the cross-entropy is exact.

It is for training only: evaluate with `metrics.cross_entropy` of all logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrnn._validation import check_min
from jaxrnn.types import Array, Float, Int, accumulation_dtype, sanitize_ids

_BITS = 30  # of the integers that stand for probabilities


class CandidateSampler(NamedTuple):
    """Draws a fixed number of different classes, with given probabilities.

    It is systematic sampling (Madow, 1949): the probabilities of being drawn stand side
    by side on a line of the length `size`, and the classes are taken at equal distances
    of 1 from a random offset.

    Attributes:
        ends: the ends of the classes on the line, int32 [v], in units of `1 / unit`.
        size: how many are drawn.
        unit: the length 1 in integers.

    >>> sampler = CandidateSampler.of([8, 1, 1, 1, 1], size=3)
    >>> sampler.probabilities.tolist()
    [1.0, 0.5, 0.5, 0.5, 0.5]
    >>> sampler.draw(jax.random.key(0)).tolist()
    [0, 1, 3]
    """

    ends: Int[np.ndarray, "v"]
    size: int
    unit: int

    @classmethod
    def of(cls, weights: ArrayLike, size: int) -> "CandidateSampler":
        """The sampler with probabilities proportional to `weights`, but at most 1.

        The weights are numbers of occurrences, for instance, to a power below 1.

        Raises:
            ValueError: a weight is not finite and above 0, or so small that its class
                would never be drawn; `size` is below 1 or above the number of classes.

        >>> CandidateSampler.of([3, 2, 1], size=3).probabilities.tolist()
        [1.0, 1.0, 1.0]
        """
        weights = np.asarray(weights, np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights <= 0).any():
            raise ValueError(
                "weights must be one finite number above 0 for each class, got "
                f"{weights!r:.80}"
            )
        size = check_min(1, size=size)
        if size > weights.size:
            raise ValueError(
                f"size = {size} candidates of {weights.size} classes: at most all"
            )
        unit = 2 ** (_BITS - (size - 1).bit_length())
        lengths = _integers(_at_most_one(weights, size), size, unit)
        if (lengths < 1).any():
            raise ValueError(
                f"a class has a probability below 1 / {unit}: raise the smallest "
                f"weight, {weights.min():.3g}, or lower the greatest"
            )
        return cls(np.cumsum(lengths).astype(np.int32), size, unit)

    @property
    def probabilities(self) -> Float[np.ndarray, "v"]:
        """The probability of being drawn of each class, float32 [v].

        >>> CandidateSampler.of([1, 1], size=1).probabilities.tolist()
        [0.5, 0.5]
        """
        return (np.diff(self.ends, prepend=0) / self.unit).astype(np.float32)

    def draw(self, key: Array) -> Int[Array, "k"]:
        """The ids of `size` different classes, ascending.

        >>> CandidateSampler.of([1, 1, 1], size=3).draw(jax.random.key(0)).tolist()
        [0, 1, 2]
        """
        offset = jax.random.randint(key, (), 0, self.unit, jnp.int32)
        places = offset + jnp.arange(self.size, dtype=jnp.int32) * self.unit
        found = jnp.searchsorted(jnp.asarray(self.ends), places, side="right")
        return found.astype(jnp.int32)


def _at_most_one(weights: np.ndarray, size: int) -> np.ndarray:
    """`min(1, c * weights)`, with the `c` for which the sum is `size`."""
    descending = np.sort(weights)[::-1]
    # The first k are 1, and the others share what is left of `size`.
    rest = np.cumsum(descending[::-1])[::-1]
    left = size - np.arange(weights.size)
    k = int((descending * left <= rest).argmax())
    return np.minimum(1.0, weights * (left[k] / rest[k]))


def _integers(probabilities: np.ndarray, size: int, unit: int) -> np.ndarray:
    """The probabilities in units of `1 / unit`, whose sum is `size * unit`."""
    numbers = np.floor(probabilities * unit).astype(np.int64)
    below = np.flatnonzero(numbers < unit)
    numbers[below[: size * unit - numbers.sum()]] += 1
    return numbers


def sampled_cross_entropy(
    features: Float[Array, "*b d"],
    table: Float[Array, "v d"],
    bias: Float[Array, "v"],
    targets: Int[Array, "*b"],
    candidates: Int[Array, "k"],
    probabilities: Float[ArrayLike, "v"],
) -> Float[Array, "*b"]:
    """An estimate in nats of the cross-entropy of each prediction, not reduced.

    The logits are `features @ table.T + bias`, of which only those of the targets and
    of the candidates are computed. The expected denominator of the softmax is the true
    one; its logarithm is less on average, by about half the variance of the estimate
    divided by the square of its mean, which falls with the number of candidates.

    Args:
        features: what the logits are computed from.
        table: a row for each class; the embedding, if it is tied.
        bias: a number for each class.
        targets: the true classes. One that is none has a loss of NaN.
        candidates: `CandidateSampler.draw` of this step.
        probabilities: those of the sampler.

    Raises:
        ValueError: shapes do not fit.

    Reference: Jean et al. (2015), equation 10; Horvitz and Thompson (1952).

    >>> sampler = CandidateSampler.of([1, 1, 1, 1], size=4)
    >>> candidates = sampler.draw(jax.random.key(0))
    >>> features, table, bias = jnp.ones((1, 2)), jnp.zeros((4, 2)), jnp.zeros(4)
    >>> sampled_cross_entropy(
    ...     features, table, bias, jnp.array([2]), candidates, sampler.probabilities
    ... )  # log 4
    Array([1.3862944], dtype=float32)
    """
    probabilities = jnp.asarray(probabilities)
    classes = (table.shape[0],)
    if bias.shape != classes or probabilities.shape != classes:
        raise ValueError(
            f"table has {classes[0]} classes, but bias has shape {bias.shape} and "
            f"probabilities {probabilities.shape}"
        )
    if features.shape[:-1] != targets.shape or features.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"features of shape {features.shape} need targets of shape "
            f"{features.shape[:-1]}, not {targets.shape}, and a table with rows of "
            f"{features.shape[-1]}, not {table.shape[-1]}"
        )
    sums = accumulation_dtype(features.dtype)
    targets = sanitize_ids(targets, table.shape[0])
    rows = jnp.take(table, targets, axis=0).astype(sums)
    true = (features.astype(sums) * rows).sum(axis=-1)
    true = true + jnp.take(bias, targets, axis=0).astype(sums)
    corrected = bias.astype(sums) - jnp.log(probabilities).astype(sums)
    flat = features.reshape(-1, features.shape[-1])
    others = jnp.matmul(flat, table[candidates].T, preferred_element_type=sums)
    others = others + corrected[candidates][None]
    # A target among the candidates would count twice.
    flat_targets = targets.reshape(-1).astype(candidates.dtype)
    same = flat_targets[:, None] == candidates[None]
    others = jnp.where(same, -jnp.inf, others)
    rest = jax.nn.logsumexp(others, axis=-1).reshape(targets.shape)
    return jnp.logaddexp(true, rest) - true
