"""Fine-tuning of a pre-trained encoder: learning rates, batches, and the train step.

Howard and Ruder (2018), "Universal Language Model Fine-tuning for Text Classification":
the layers are unfrozen one after the other from the output down, each learns more
slowly than the one above, and the learning rate rises fast and falls slowly.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import keystr

from experiments.harness.config import clip_gradients
from experiments.harness.validation import COUNT, POSITIVE, SHARE
from experiments.imdb.batches import Batches, Examples
from experiments.imdb.encoder import Encoder, depth, initial_params
from experiments.imdb.mixed_objective import Objective, make_mixed_loss
from experiments.imdb.model import Settings, make_state
from jaxrnn import placement, training
from jaxrnn.batching import bucket_lengths, epoch_rng, pad, pad_rows
from jaxrnn.models import SequenceClassifier
from jaxrnn.training import Batch

SAVED_EVERY = 200  # steps, of a second and a half each
# A recurrent layer of 512 units in each direction: embed, hidden and the like are those
# of the language models.
BEST = Settings(
    embed=512,
    hidden=512,
    pooling=("last", "first", "max", "mean"),
    vocab=30_000,
    batch=32,
    learning_rate=2e-3,
    word_dropout=0.1,
    buckets=4,
    pretrain=False,
)


@dataclass(frozen=True)
class Finetuning(Objective):
    """With --preset best or --encoder: how to fine-tune, and the parts of the loss."""

    unlabelled_batch: int = 32
    """Texts without label in each batch, beside those of --batch."""
    layer_decay: float = 2.6
    """Factor by which each layer's learning rate is below that of the layer above."""
    unfreeze: float = 0.1
    """Share of the steps after which the next lower layer is unfrozen.
    The output learns from the start."""

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: a field is out of range; the option is named.
        """
        super().check()
        COUNT.check(self, "unlabelled_batch")
        POSITIVE.check(self, "layer_decay")
        SHARE.check(self, "unfreeze")


class Plan(NamedTuple):
    """How a classifier is trained: where it starts, its batches and its steps."""

    state: training.TrainState
    train_step: Callable[..., Any]
    batches: Callable[[np.random.Generator], list[Callable[[], Batch]]]
    """Of an epoch, each made when it is called."""
    rate: Callable[[int], Any]
    """The learning rate of a step."""
    steps_per_epoch: int
    words: int
    """Words in an epoch."""
    saved_every: int | None = None
    """Steps between checkpoints; None for the default."""


def plan_finetuning(
    model: SequenceClassifier,
    settings: Settings,
    finetuning: Finetuning,
    encoders: Sequence[Encoder],
    labelled: Examples,
    unlabelled: Sequence[np.ndarray],
    mesh: Mesh,
    class_weights: np.ndarray | None = None,
) -> Plan:
    """Return the plan to train from the encoders on the mixed objective."""
    parts = chunks(unlabelled, settings.max_words)
    batches = MixedBatches(
        labelled,
        parts,
        settings.batch,
        finetuning.unlabelled_batch,
        cast(int, settings.buckets),  # resolved
        mesh,
    )
    steps_per_epoch = len(batches.epoch(epoch_rng(0, 0)))
    steps = cast(int, settings.epochs) * steps_per_epoch
    optimizer = make_optimizer(settings, finetuning, steps)
    state = make_state(model, optimizer, settings.seed)
    read = np.concatenate([*labelled.ids, *parts])
    frequencies = np.bincount(read, minlength=model.vocab_size)
    params = initial_params(state.params["params"], encoders, frequencies)
    state = state.replace(params={"params": jax.tree.map(jnp.asarray, params)})
    loss = make_mixed_loss(model, finetuning, class_weights)
    return Plan(
        state,
        training.make_train_step(loss, optimizer, mesh),
        batches.epoch,
        slanted_triangular(settings.learning_rate, steps),
        steps_per_epoch,
        batches.words,
        saved_every=SAVED_EVERY,
    )


def slanted_triangular(
    peak: float, steps: int, rise: float = 0.1, ratio: float = 32.0
) -> optax.Schedule:
    """Return the learning rate as a function of the step, over `steps` steps.

    It rises linearly from `peak / ratio` for a share `rise` of the steps, then falls
    back to it (Howard and Ruder, 2018, equation 3).

    >>> schedule = slanted_triangular(32.0, steps=20)
    >>> [round(float(schedule(step)), 2) for step in (0, 1, 2, 11, 20)]
    [1.0, 16.5, 32.0, 16.5, 1.0]
    """
    top = max(math.floor(steps * rise), 1)
    low = peak / ratio
    return optax.join_schedules(
        [
            optax.linear_schedule(low, peak, top),
            optax.linear_schedule(peak, low, max(steps - top, 1)),
        ],
        [top],
    )


def make_optimizer(
    settings: Settings, finetuning: Finetuning, steps: int
) -> optax.GradientTransformation:
    """Return Adam with a rate for each layer, over `steps` steps.

    A frozen layer does not change; Adam's moments of it do, so that they are known when
    it is unfrozen. The state has the structure of that of `model.make_optimizer`, so
    that the parameters of a checkpoint can be restored with either.
    """
    schedule = slanted_triangular(settings.learning_rate, steps)
    by_layer = _scale_by_layer(schedule, settings.layers, finetuning, steps)
    return optax.chain(
        clip_gradients(settings.clip), optax.chain(optax.scale_by_adam(), by_layer)
    )


def _scale_by_layer(
    schedule: optax.Schedule, layers: int, finetuning: Finetuning, steps: int
) -> optax.GradientTransformation:
    """Multiply updates by minus the learning rate, that of each layer."""

    def init(params: Any) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def scaled(path: tuple, leaf: jax.Array) -> jax.Array:
            level = _depth(path, layers)
            first = round(level * finetuning.unfreeze * steps)
            rate = schedule(state.count) * finetuning.layer_decay**-level
            rate = jnp.where(state.count >= first, rate, 0.0)
            return -rate.astype(leaf.dtype) * leaf

        scaled_updates = jax.tree.map_with_path(scaled, updates)
        return scaled_updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def _depth(path: tuple, layers: int) -> int:
    name = keystr(path, simple=True, separator="/")
    return depth(name.removeprefix("params/"), layers)


def chunks(texts: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """The texts with words, long ones in parts of about equal length, at most `most`.

    >>> [part.tolist() for part in chunks([np.arange(5), np.arange(2)], most=3)]
    [[0, 1, 2], [3, 4], [0, 1]]
    """
    return [
        part
        for text in texts
        if text.size
        for part in np.array_split(text, math.ceil(text.size / most))
    ]


class MixedBatches:
    """Batches of texts with labels and, in their own rows, of texts without.

    Both are of one bucket of lengths, so that there is little padding. An epoch has
    each text with a label once; those without come in a random order, each of a bucket
    once before one comes again.
    """

    def __init__(
        self,
        labelled: Examples,
        unlabelled: Sequence[np.ndarray],
        batch: int,
        unlabelled_batch: int,
        buckets: int,
        mesh: Mesh,
    ):
        """Prepare batches of `batch` texts with labels, on the devices of `mesh`."""
        self._unlabelled = list(unlabelled)
        self._sizes = np.array([ids.size for ids in self._unlabelled], int)
        lengths = [ids.size for ids in labelled.ids]
        every = np.concatenate([lengths, self._sizes]).astype(np.int32)
        self._boundaries = bucket_lengths(every, buckets)
        self._labelled = Batches(labelled, batch, buckets, mesh, self._boundaries)
        others = unlabelled_batch if self._unlabelled else 0
        rows = math.ceil(others / mesh.size) * mesh.size
        self._own = placement.local_batch_slice(rows, mesh)
        self._others = others

    @property
    def words(self) -> int:
        """Words of texts with labels in an epoch."""
        return self._labelled.words

    def epoch(self, rng: np.random.Generator) -> list[Callable[[], Batch]]:
        """Return the batches of an epoch, each made when it is called."""
        takes = {
            length: self._endless(length, below, rng)
            for below, length in zip(
                (0, *self._boundaries), self._boundaries, strict=False
            )
        }
        return [
            functools.partial(self._make, indices, length, takes[length](self._others))
            for indices, length in self._labelled.order(rng)
        ]

    def _endless(
        self, length: int, below: int, rng: np.random.Generator
    ) -> Callable[[int], np.ndarray]:
        """A function that returns the next texts of a bucket, or of shorter ones."""
        pool = np.flatnonzero((self._sizes > below) & (self._sizes <= length))
        if not pool.size:
            pool = np.flatnonzero(self._sizes <= length)
        waiting = pool[:0]

        def take(count: int) -> np.ndarray:
            nonlocal waiting
            while pool.size and waiting.size < count:
                waiting = np.concatenate([waiting, rng.permutation(pool)])
            taken, waiting = waiting[:count], waiting[count:]
            return taken

        return take

    def _make(self, indices: np.ndarray, length: int, others: np.ndarray) -> Batch:
        others, rows = others[self._own], self._own.stop - self._own.start
        given = [self._unlabelled[i] for i in others]
        tokens = np.zeros((rows, length), np.int32)
        lengths = np.zeros(rows, np.int32)
        if rows:
            tokens, lengths = pad([*given, *[()] * (rows - len(given))], length)
        weights = pad_rows({"weights": np.ones(others.size, np.float32)}, rows)
        return self._labelled.make(indices, length) | {
            "other_tokens": tokens,
            "other_lengths": lengths,
            "other_weights": weights["weights"],
        }
