"""The choice of `--dtype auto`: which products make a training step faster here.

What the processor can do does not say it: where float32 runs in the C++ kernels and
bfloat16 in XLA's loop, float32 can win although single products are slower. So a step
of the training itself is timed, in both.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from experiments.charlm.awd import Regularization
from experiments.charlm.config import Settings
from experiments.charlm.model import (
    make_model,
    make_optimizer,
    make_state,
    make_train_step,
    shard_state,
)
from experiments.harness.timing import least_seconds
from jaxrnn import placement

Products = Literal["float32", "bfloat16"]
GAIN = 0.9  # of the time at most, for which precision is given up


def choose(settings: Settings, vocab_size: int, mesh: Mesh) -> tuple[Products, str]:
    """Return the dtype of the faster training step, and a message with both times.

    bfloat16 must take a tenth less time. All processes choose what the first one does.
    """
    steps = {
        dtype: make_step(dataclasses.replace(settings, dtype=dtype), vocab_size, mesh)
        for dtype in ("float32", "bfloat16")
    }
    seconds = least_seconds(steps)
    wins = np.array(seconds["bfloat16"] <= GAIN * seconds["float32"])
    dtype = "bfloat16" if multihost_utils.broadcast_one_to_all(wins) else "float32"
    times = ", ".join(f"{name} {1e3 * s:,.0f} ms" for name, s in seconds.items())
    return dtype, f"products in {dtype} (a step: {times})"


def make_step(settings: Settings, vocab_size: int, mesh: Mesh) -> Callable[[], Any]:
    """Return a training step on a text of one character, again and again."""
    model = make_model(settings, vocab_size)
    optimizer = make_optimizer(settings, steps=1)
    train_step = make_train_step(
        model, optimizer, mesh, settings.weight_drop, Regularization.of(settings)
    )
    state = shard_state(make_state(model, optimizer, settings), mesh)
    own = placement.local_batch_slice(settings.batch, mesh)
    rows = own.stop - own.start
    ids = np.zeros((rows, settings.seq_len), np.int32)
    batch = {"inputs": ids, "targets": ids, "starts": np.zeros(rows, bool)}

    def step() -> jax.Array:
        nonlocal state
        state, _ = train_step(state, batch)
        return state.step

    return step
