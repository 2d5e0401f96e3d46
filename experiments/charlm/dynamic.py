"""Dynamic evaluation: parameters that follow the text which they predict.

The text is read in segments. Each is predicted first, then the parameters take a step
down the gradient of its cross-entropy, and back towards where they were: both by the
root mean square of each parameter's gradient on the training text. So no token helps
to predict itself, but what was read before helps more than through the state alone.
The result is not comparable with that of fixed parameters, and is reported beside it.

Reference: Krause, Kahembwe, Murray and Renals (2018), "Dynamic Evaluation of Neural
Sequence Models", section 4, equations 4 to 6. As in the authors' program the average
in equation 5 is that of the means of the parameter arrays.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from experiments.charlm.units import WORDS, Units
from experiments.harness.validation import AMOUNT, COUNT
from jaxrnn import metrics
from jaxrnn.batching import tbptt_batches
from jaxrnn.models import LanguageModel

# Of a segment of words, in the authors' program, with the rates for that length.
SEGMENT, ROWS, EPSILON = 5, 100, 2e-5
SEGMENTS_OF_CHARACTERS = 20
BATCHES = 500  # of the training text at most, for the mean squares
SCANNED = 32  # segments of one call of the compiled function


@dataclass(frozen=True)
class DynamicEvaluation:
    """Parameters that follow the text (Krause et al., 2018)."""

    dynamic_evaluation: bool = False
    """Also evaluate with parameters that follow the text, beside the usual results.
    With --score, or of the best epoch at the end of a training."""
    dynamic_rate: float = 5e-5
    """Learning rate of a segment of 5; of longer ones in proportion."""
    dynamic_decay: float = 2e-3
    """Rate of the way back of a segment of 5; of longer ones in proportion."""
    dynamic_segment: int | None = None
    """Length of a segment; None: 5 words, 20 characters or bytes."""

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: a field is out of range, or without use; the option is named.
        """
        AMOUNT.check(self, "dynamic_rate", "dynamic_decay")
        COUNT.check(self, "dynamic_segment")
        if self != DynamicEvaluation() and not self.dynamic_evaluation:
            raise ValueError(
                "--dynamic-rate, --dynamic-decay and --dynamic-segment need "
                "--dynamic-evaluation"
            )

    def rule(self, units: Units) -> "Rule":
        """Return the rule that the options say.

        >>> DynamicEvaluation().rule(WORDS)
        Rule(segment=5, rate=5e-05, decay=0.002)
        """
        segment = self.dynamic_segment
        if segment is None:
            segment = SEGMENT if units is WORDS else SEGMENTS_OF_CHARACTERS
        part = segment / SEGMENT
        return Rule(segment, part * self.dynamic_rate, part * self.dynamic_decay)


@dataclass(frozen=True)
class Rule:
    """How parameters move after each segment of `segment` tokens."""

    segment: int
    rate: float
    decay: float


def root_mean_squares(
    model: LanguageModel, params: PyTree, ids: np.ndarray, segment: int
) -> PyTree:
    """Return the root mean square of each parameter's gradient on a training text.

    The gradients are of the mean cross-entropy of batches of 100 parallel streams, or
    as many as the text with these `ids` [n] fills, and `segment` tokens of each; of the
    first `BATCHES` of them.
    """
    segment = min(segment, ids.size - 1)
    rows = min(ROWS, (ids.size - 1) // segment)
    steps = min((ids.size - 1) // (rows * segment), BATCHES)

    @jax.jit
    def add(squares: PyTree, state: Any, inputs: jax.Array, targets: jax.Array):
        def loss(params: PyTree) -> tuple[jax.Array, Any]:
            logits, after = model.apply(params, inputs, state=state)  # pyright: ignore[reportAssignmentType]
            return metrics.cross_entropy(logits, targets).mean(), after

        gradients, after = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda s, g: s + g * g, squares, gradients), after

    squares, state = jax.tree.map(jnp.zeros_like, params), model.initial_state((rows,))
    streams = rows * segment * ((ids.size - 1) // (rows * segment))
    batches = tbptt_batches(ids[: streams + 1], rows, segment)
    for _, (inputs, targets) in zip(range(steps), batches, strict=False):
        squares, state = add(squares, state, inputs, targets)
    return jax.tree.map(lambda s: jnp.sqrt(s / steps), squares)


def dynamic_nats(
    model: LanguageModel, params: PyTree, rms: PyTree, ids: np.ndarray, rule: Rule
) -> Iterator[np.ndarray]:
    """Yield the cross-entropy of every token but the first, some at a time.

    `rms` is from `root_mean_squares`. With a rate of zero the parameters stay, and it
    is that of the model as it is.
    """
    means = [leaf.mean() for leaf in jax.tree.leaves(rms)]
    average = sum(means) / len(means)
    towards = jax.tree.map(lambda r: jnp.minimum(rule.decay * r / average, 1), rms)

    def follow(carry: Any, batch: Any) -> Any:
        now, state = carry
        inputs, targets, weights = batch

        def loss(now: PyTree) -> tuple[jax.Array, Any]:
            logits, after = model.apply(now, inputs[None], state=state)  # pyright: ignore[reportAssignmentType]
            nats = metrics.cross_entropy(logits[0], targets)
            return (nats * weights).sum() / jnp.maximum(weights.sum(), 1), (nats, after)

        gradients, (nats, after) = jax.grad(loss, has_aux=True)(now)
        now = jax.tree.map(
            lambda p, start, back, g, r: (
                p + back * (start - p) - rule.rate * g / (r + EPSILON)
            ),
            now,
            params,
            towards,
            gradients,
            rms,
        )
        return (now, after), nats

    scan = jax.jit(functools.partial(jax.lax.scan, follow))
    carry, group = (params, model.initial_state((1,))), rule.segment * SCANNED
    for start in range(0, ids.size - 1, group):
        part = ids[start : start + group + 1]
        size = part.size - 1
        batch = (
            np.pad(array, (0, group - size)).reshape(SCANNED, rule.segment)
            for array in (part[:-1], part[1:], np.ones(size, np.float32))
        )
        carry, nats = scan(carry, tuple(batch))
        yield np.asarray(nats).ravel()[:size]


def mean_nats(
    model: LanguageModel, params: PyTree, rms: PyTree, ids: np.ndarray, rule: Rule
) -> float:
    """Return the mean of `dynamic_nats`.

    Raises:
        ValueError: it is not finite.
    """
    parts = dynamic_nats(model, params, rms, ids, rule)
    total = sum(float(part.sum(dtype=np.float64)) for part in parts)
    if not math.isfinite(total):
        raise ValueError(
            "dynamic evaluation left the finite numbers: lower --dynamic-rate"
        )
    return total / (ids.size - 1)
