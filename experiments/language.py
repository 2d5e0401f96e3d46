"""The character model of `experiments.charlm`: settings, streams of text, steps.

Nothing here prints, or knows of files and command lines.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments import ranges
from experiments.layers import LAYERS, CellName
from experiments.texts import pieces
from jaxrnn import metrics, placement, regularizers, training
from jaxrnn.batching import epoch_rng, streams
from jaxrnn.metrics import Mean
from jaxrnn.models import LanguageModel
from jaxrnn.text import Vocab, char_tokens
from jaxrnn.training import Batch, Metrics, TrainState
from jaxrnn.types import State


@dataclass(frozen=True)
class Settings:
    """What a result depends on, the text aside."""

    cell: CellName = "gru"
    """Recurrent cell."""
    embed: int = 64
    """Features of the vector that a character becomes."""
    hidden: int = 256
    """Features of each recurrent layer."""
    layers: int = 1
    """Recurrent layers on top of each other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the factors in the layers' products. Sums, states and weights stay float32.
    bfloat16 is faster where the processor multiplies it: TPU, recent GPU or CPU."""
    tied: bool = False
    """Use the vectors of the characters as weights of the output, too."""
    dropout: float = 0.0
    """Probability of dropping a feature between layers and before the output."""
    locked_dropout: bool = False
    """Drop the same features at all characters of a place in a step."""
    weight_drop: float = 0.0
    """Probability of dropping a recurrent weight, for a step in all places."""
    epochs: int = 4
    """Passes over the training text."""
    batch: int = 16
    """Places of the text that are read at once, in a step."""
    time: int = 128
    """Characters read at each place in a step: how far back a gradient reaches."""
    forget: float = 0.05
    """Probability that a place forgets before a step what it has read.
    A model that never does can get lost where a text begins, and stay so."""
    learning_rate: float = 1e-2
    """Greatest learning rate of Adam."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises to it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What it does then: fall to zero along a cosine, or stay."""
    weight_decay: float = 0.01
    """Share of each weight that a step takes off, times the learning rate.
    Not of biases."""
    clip: float | None = 1.0
    """Greatest norm of a gradient; longer ones are scaled down."""
    patience: int | None = 3
    """Stop early after so many epochs without a better validation."""
    seed: int = 0
    """Of the weights, of the order of the text and of dropout; and of what is drawn."""

    def check(self) -> None:
        """Whether they make sense.

        Raises:
            ValueError: they do not; the option is named.
        """
        ranges.COUNT.check(self, "embed", "hidden", "layers")
        ranges.COUNT.check(self, "epochs", "batch", "time", "patience")
        ranges.SHARE.check(self, "dropout", "forget", "warmup")
        ranges.SHARE_BELOW_1.check(self, "weight_drop")
        ranges.AMOUNT.check(self, "learning_rate", "weight_decay")
        ranges.POSITIVE.check(self, "clip")
        ranges.SEED.check(self, "seed")

    def fit_to(self, characters: int) -> "Settings":
        """The same with as many rows and steps as a training text can fill.

        >>> Settings(batch=16, time=128).fit_to(1000).batch
        7
        """
        time = min(self.time, characters - 1)
        batch = min(self.batch, (characters - 1) // time)
        return dataclasses.replace(self, batch=batch, time=time)


PRESETS = {
    # One layer, to be had in a minute.
    "quick": Settings(),
    # What two layers reach when they are given the time. Of all that keeps so many
    # weights from learning a short text by heart, their decay does the most.
    "best": Settings(
        cell="lstm", embed=128, hidden=512, layers=2, dtype="bfloat16", dropout=0.4,
        locked_dropout=True, weight_drop=0.2, epochs=20, batch=32, time=64,
        learning_rate=4e-3, weight_decay=0.2,
    ),
    # Raschka, Liu and Mirjalili (2022), "Machine Learning with PyTorch and
    # Scikit-Learn", chapter 15, which models The Mysterious Island: 10,000 steps.
    "chapter": Settings(
        cell="lstm", embed=256, hidden=512, epochs=25, batch=64, time=40, forget=0.0,
        learning_rate=5e-3, warmup=0.0, schedule="constant", weight_decay=0.0,
        clip=None, patience=None,
    ),
}  # fmt: skip


def encode(text: str, vocab: Vocab) -> np.ndarray:
    """The ids of the characters of a text.

    >>> encode("abba", Vocab(("a", "b")))
    array([0, 1, 1, 0], dtype=int32)
    """
    return np.concatenate([vocab.encode(char_tokens(piece)) for piece in pieces(text)])


SMOKE = Settings(
    cell="lstm", embed=8, hidden=32, epochs=3, batch=8, time=16, learning_rate=2e-2,
    patience=None,
)  # fmt: skip


class Streams:
    """The training batches: the text is read at `batch` places at once, `time`
    characters in a step, each place going on where the step before ended.

    An epoch starts a little later than the first character, by as much as its seed says
    and leaves over: so steps begin and end elsewhere in each. Its seed also says where
    a place forgets what it has read. Batches have the places `own` alone.
    """

    def __init__(self, ids: np.ndarray, settings: Settings, own: slice = slice(None)):
        self._ids, self._own = ids, own
        self._rows, self._time = settings.batch, settings.time
        self._forget, self._seed = settings.forget, settings.seed
        self._steps = (ids.size - 1) // (self._rows * self._time)

    @property
    def characters(self) -> int:
        """How many an epoch predicts."""
        return self._rows * self._time * self._steps

    def epoch(self, epoch: int) -> Sequence[Callable[[], Batch]]:
        """The batches of an epoch, each made when it is called: inputs, targets, and
        the rows that start with a state of zeros."""
        rng = epoch_rng(self._seed, epoch)
        first = rng.integers(self._ids.size - self.characters)
        text = self._ids[first : first + self.characters + 1]
        starts = rng.random((self._steps, self._rows)) < self._forget
        starts[0] = True
        return [
            functools.partial(
                dict, inputs=inputs[self._own], targets=targets[self._own], starts=rows
            )
            for (inputs, targets), rows in zip(
                streams(text, self._rows, self._time), starts[:, self._own], strict=True
            )
        ]


class Carried(flax.struct.PyTreeNode):
    """All that training goes on with: also what the model remembers of each place."""

    train: TrainState
    memory: State

    @property
    def step(self) -> jax.Array:
        return self.train.step


def make_model(settings: Settings, vocab_size: int) -> LanguageModel:
    """The network: embedding, recurrent layers, logits."""
    encoder = LAYERS[settings.cell](
        settings.hidden,
        num_layers=settings.layers,
        dropout=settings.dropout,
        locked_dropout=settings.locked_dropout,
        dtype=jnp.dtype(settings.dtype),
    )
    return LanguageModel(
        vocab_size,
        settings.embed,
        encoder,
        dropout=settings.dropout,
        locked_dropout=settings.locked_dropout,
        tied=settings.tied,
    )


def make_schedule(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate after each of `steps` steps."""
    warmup, top = math.ceil(settings.warmup * steps), settings.learning_rate
    then = optax.constant_schedule(top)
    if settings.schedule == "cosine":
        then = optax.cosine_decay_schedule(top, max(steps - warmup, 1))
    rise = optax.linear_schedule(0.0, top, max(warmup, 1))
    return optax.join_schedules([rise, then], [warmup])


def make_optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019) with clipping, over `steps` steps."""
    clip = optax.identity()
    if settings.clip is not None:
        clip = optax.clip_by_global_norm(settings.clip)
    adam = optax.adamw(
        make_schedule(settings, steps),
        weight_decay=settings.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    return optax.chain(clip, adam)


def make_state(
    model: LanguageModel, optimizer: optax.GradientTransformation, settings: Settings
) -> Carried:
    """The state before the first step."""
    weights_key, key = jax.random.split(jax.random.key(settings.seed))
    variables = jax.jit(model.init)(weights_key, jnp.zeros((1, 1), jnp.int32))
    train = TrainState.create(variables, optimizer, key)
    return Carried(train, model.zero_state((settings.batch,)))


def place(carried: Carried, mesh: Mesh) -> Carried:
    """The same on the devices of `mesh`, the places split over them."""
    places = jax.tree.leaves(carried.memory)[0].shape[0]
    own = placement.process_rows(places, mesh)
    memory = jax.tree.map(lambda leaf: leaf[own], carried.memory)
    return Carried(
        placement.replicate(carried.train, mesh),
        placement.split_rows(memory, mesh, "memory"),
    )


def make_train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    weight_drop: float = 0.0,
) -> Callable[[Carried, Batch], tuple[Carried, Metrics]]:
    """A compiled `step(carried, batch) -> (carried, metrics)`; the state is donated."""

    def loss(
        params: Any, batch: Batch, state: State, key: jax.Array
    ) -> tuple[Metrics, State]:
        zeros = model.zero_state(batch["starts"].shape)
        state = jax.tree.map(
            lambda fresh, leaf: jnp.where(batch["starts"][:, None], fresh, leaf),
            zeros,
            state,
        )
        drop_key, weight_key = jax.random.split(key)
        logits, state = model.apply(
            regularizers.weight_drop(params, weight_drop, weight_key),
            batch["inputs"],
            state,
            train=True,
            rngs={"dropout": drop_key},
        )  # pyright: ignore[reportAssignmentType]
        nats = metrics.cross_entropy(logits, batch["targets"])
        return {"loss": Mean.of(nats)}, state

    step = training.make_carried_train_step(loss, optimizer, mesh)

    def carried_step(carried: Carried, batch: Batch) -> tuple[Carried, Metrics]:
        train, memory, measured = step(carried.train, carried.memory, batch)
        return Carried(train, memory), measured

    return carried_step
