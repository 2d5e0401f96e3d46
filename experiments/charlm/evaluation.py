"""How well a language model predicts a text: with all that went before, and without.

Both are cross-entropies in nats per character, over every character but the first,
which is only read. One of them alone would mislead: a model that carries its state has
more to go by than one that is shown a window from nowhere, as transformers are.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxrnn import metrics, placement, training
from jaxrnn.metrics import Mean
from jaxrnn.models import LanguageModel
from jaxrnn.training import Batch, Metrics
from jaxrnn.types import State

WINDOWS = (64, 256)  # characters
# Of a batch; with the same shape in all evaluations the model is compiled once.
ROWS, TIME = 64, 64


class Evaluation:
    """The evaluations of a model on the text with these `ids` [n].

    `nats_stateful` is of one pass over the whole text, starting from a zero state.

    `nats_window_64` and `nats_window_256` are of windows of so many characters, each
    from a zero state with the character before it as first input. The windows do not
    overlap and cover the whole text; the last one may be shorter. So the three are
    means over the same characters.
    """

    def __init__(self, model: LanguageModel, ids: np.ndarray, mesh: Mesh):
        self._ids = ids
        self._rows = math.ceil(ROWS / mesh.size) * mesh.size
        # Of each batch every process makes its own rows alone.
        self._own = placement.local_batch_slice(self._rows, mesh)
        self._zeros = model.initial_state((self._own.stop - self._own.start,))
        # Far below the standard error of a mean over so many characters.
        self._nothing = 3e-3 / math.sqrt(ids.size)
        self._step = training.make_stateful_eval_step(_make_metrics(model), mesh)

    def __call__(self, params: Any) -> dict[str, float]:
        nats = {"nats_stateful": self._stateful(params)}
        for window in WINDOWS:
            nats[f"nats_window_{window}"] = self._windows(params, window)
        return nats

    def _windows(self, params: Any, window: int) -> float:
        parts = (self._read(params, rows, self._zeros)[1] for rows in self._cut(window))
        return float(metrics.merge({"nats": mean} for mean in parts)["nats"].value)

    def _stateful(self, params: Any) -> float:
        """One row after the other would be one pass, and slow. So all are read at once,
        and again, each from the state that the row before it ended with, until no state
        changes any more: soon, as states forget. Or until the mean does not: where
        products are rounded to bfloat16, states of two readings never agree. At the
        latest after as many readings as there are rows, since each makes one more of
        them exact.
        """
        per_row = math.ceil((self._ids.size - 1) / self._rows)
        [rows] = self._cut(math.ceil(per_row / TIME) * TIME)
        before = multihost_utils.process_allgather(self._zeros, tiled=True)
        nats = math.nan
        for _ in range(self._rows):
            own = jax.tree.map(lambda leaf: leaf[self._own], before)
            after, mean = self._read(params, rows, own)
            last, nats = nats, float(mean.value)
            everyone = multihost_utils.process_allgather(after, tiled=True)
            moved = jax.tree.map(_one_row_on, everyone)
            if abs(nats - last) < self._nothing or _near(before, moved):
                break
            before = moved
        return nats

    def _cut(self, length: int) -> Iterator[Batch]:
        """The text in rows of `length` characters, `ROWS` of them at a time."""
        size = self._ids.size - 1
        group = (self._own.stop - self._own.start) * length
        for batch in range(0, size, self._rows * length):
            start = min(batch + self._own.start * length, size)
            stop = min(start + group, size)
            inputs, targets = self._ids[start:stop], self._ids[start + 1 : stop + 1]
            weights = np.ones(stop - start, np.float32)
            yield {
                name: np.pad(array, (0, group - array.size)).reshape(-1, length)
                for name, array in (
                    ("inputs", inputs),
                    ("targets", targets),
                    ("weights", weights),
                )
            }

    def _read(self, params: Any, rows: Batch, state: State) -> tuple[State, Mean]:
        """The states after rows of any length, and the mean over them."""
        means = []
        for start in range(0, rows["inputs"].shape[1], TIME):
            part = {name: x[:, start : start + TIME] for name, x in rows.items()}
            state, measured = self._step(params, state, part)
            means.append(measured)
        return state, metrics.merge(jax.device_get(means))["nats"]


def _make_metrics(model: LanguageModel):
    def measure(params: Any, batch: Batch, state: State) -> tuple[Metrics, State]:
        logits, state = model.apply(params, batch["inputs"], state=state)  # pyright: ignore[reportAssignmentType]
        nats = metrics.cross_entropy(logits, batch["targets"])
        return {"nats": Mean.of(nats, batch["weights"])}, state

    return measure


def _one_row_on(leaf: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(leaf[:1]), leaf[:-1]])


def _near(left: State, right: State) -> bool:
    """Whether what two states differ by does not show in a cross-entropy."""
    return all(
        np.allclose(a, b, rtol=1e-4, atol=1e-4)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )
