"""The settings that both models share, and what is built from them."""

from dataclasses import dataclass
from typing import Literal

import optax

from experiments.harness.cells import CellName
from experiments.harness.validation import (
    AMOUNT,
    COUNT,
    EPOCHS,
    FEATURES,
    LAYERS,
    POSITIVE,
    SEED,
    SHARE,
)


@dataclass(frozen=True)
class CommonSettings:
    """Hyperparameters of the model and its training.

    A program's `Settings` is a subclass that gives every field its default.
    """

    cell: CellName
    """Recurrent cell."""
    embed: int
    """Embedding size."""
    hidden: int
    """Hidden size of each recurrent layer, per direction."""
    layers: int
    """Number of stacked recurrent layers."""
    dtype: Literal["float32", "bfloat16"]
    """Compute dtype of matrix products; parameters, states and sums stay float32.
    bfloat16 is faster on TPUs and recent GPUs; on CPUs float32 has C++ kernels."""
    dropout: float
    """Dropout rate between recurrent layers and before the output layer."""
    epochs: int
    """Passes over the training data."""
    batch: int
    """Batch size."""
    learning_rate: float
    """Peak learning rate, reached at the end of the warmup."""
    clip: float | None
    """Global norm that gradients are clipped to; None: no clipping."""
    patience: int | None
    """Early stopping: epochs without a better validation metric; None: never."""
    seed: int
    """Seed of initialisation, data order, dropout and sampling."""

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: a field is out of range; the option is named.
        """
        COUNT.check(self, "batch", "patience")
        FEATURES.check(self, "embed", "hidden")
        LAYERS.check(self, "layers")
        EPOCHS.check(self, "epochs")
        SHARE.check(self, "dropout")
        AMOUNT.check(self, "learning_rate")
        POSITIVE.check(self, "clip")
        SEED.check(self, "seed")


def make_schedule(
    peak: float,
    steps: int,
    warmup_steps: int,
    decay: Literal["cosine", "constant"] = "cosine",
) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    It rises linearly from 0 to `peak` in `warmup_steps`, then falls to 0 at `steps`
    along a cosine (Loshchilov and Hutter, 2017, without restarts) or stays.

    >>> schedule = make_schedule(1.0, steps=10, warmup_steps=2)
    >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    after = optax.constant_schedule(peak)
    if decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup_steps, 1))
    rise = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    return optax.join_schedules([rise, after], [warmup_steps])


def clip_gradients(norm: float | None) -> optax.GradientTransformation:
    """Return clipping to a global norm; of None the identity.

    >>> clip_gradients(None).update({"w": 3.0}, None)[0]
    {'w': 3.0}
    """
    return optax.identity() if norm is None else optax.clip_by_global_norm(norm)
