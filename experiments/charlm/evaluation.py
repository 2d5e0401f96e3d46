"""Cross-entropy of a language model on a text: stateful, and in separate windows.

Both are in nats per token (character, byte or word), over every token but the first,
which is only an input. With the state carried through the text a model has more context
than in windows with the state reset at each, as transformers are evaluated: hence both.
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

WINDOWS = (64, 256)  # tokens
# Shape of a batch, the same in all evaluations so that the model is compiled once.
ROWS, TIME = 64, 64


class Evaluation:
    """The mean cross-entropies of a model on a text.

    `nats_stateful`: one pass over the whole text, starting from a zero state.

    `nats_window_64`, `nats_window_256`: non-overlapping windows of 64 and 256 tokens,
    state reset at each, with the token before a window as its first input. They cover
    the whole text, the last one may be shorter: all three are means over the same
    tokens.
    """

    def __init__(self, model: LanguageModel, ids: np.ndarray, mesh: Mesh):
        """Prepare to evaluate on the text with these `ids` [n]; compiles nothing."""
        self._ids = ids
        self._rows = math.ceil(ROWS / mesh.size) * mesh.size
        # Every process makes only its own rows of a batch.
        self._own = placement.local_batch_slice(self._rows, mesh)
        self._zeros = model.initial_state((self._own.stop - self._own.start,))
        # Far below the standard error of a mean over all tokens.
        self._tolerance = 3e-3 / math.sqrt(ids.size)
        self._step = training.make_stateful_eval_step(_make_metrics(model), mesh)

    def __call__(self, params: Any) -> dict[str, float]:
        """Return the three cross-entropies under these parameters, in nats."""
        nats = {"nats_stateful": self._stateful(params)}
        for window in WINDOWS:
            nats[f"nats_window_{window}"] = self.windows(params, window)
        return nats

    def windows(self, params: Any, window: int) -> float:
        """Return the cross-entropy in windows of `window` tokens, in nats."""
        parts = (self._read(params, rows, self._zeros)[1] for rows in self._cut(window))
        return float(metrics.merge({"nats": mean} for mean in parts)["nats"].value)

    def _stateful(self, params: Any) -> float:
        """Return the mean of one pass over the text, computed in parallel rows.

        The text is cut into rows, and all rows are read again and again, each from the
        final state of the row before it in the last reading. Each reading makes one
        more row exact, so as many readings as rows always suffice. Long before that,
        since the influence of a state decays, the states or the mean stop changing (the
        mean: with bfloat16 products the states of two readings never agree).
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
            if abs(nats - last) < self._tolerance or _near(before, moved):
                break
            before = moved
        return nats

    def _cut(self, length: int) -> Iterator[Batch]:
        """Yield the text in batches of `ROWS` rows of `length` characters."""
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
        """Return the states after rows of any length, and the mean over them."""
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
    """Return whether two states are so close that cross-entropies do not differ."""
    return all(
        np.allclose(a, b, rtol=1e-4, atol=1e-4)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )
