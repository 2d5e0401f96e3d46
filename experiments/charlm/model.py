"""The character model of `experiments.charlm`: network, optimizer, train step.

Nothing here prints, or knows of files and command lines.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments.charlm.config import Settings
from experiments.harness import config
from experiments.harness.config import LAYERS, clip_gradients
from jaxrnn import metrics, placement, regularizers, training
from jaxrnn.metrics import Mean
from jaxrnn.models import LanguageModel
from jaxrnn.training import Batch, Metrics, TrainState
from jaxrnn.types import State


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
        tie_embeddings=settings.tie_embeddings,
    )


def make_schedule(settings: Settings, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step, over `steps` steps."""
    warmup_steps = math.ceil(settings.warmup * steps)
    return config.make_schedule(
        settings.learning_rate, steps, warmup_steps, settings.schedule
    )


def make_optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter, 2019) with clipping, over `steps` steps."""
    adam = optax.adamw(
        make_schedule(settings, steps),
        weight_decay=settings.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    return optax.chain(clip_gradients(settings.clip), adam)


def make_state(
    model: LanguageModel, optimizer: optax.GradientTransformation, settings: Settings
) -> Carried:
    """The state before the first step."""
    weights_key, key = jax.random.split(jax.random.key(settings.seed))
    variables = jax.jit(model.init)(weights_key, jnp.zeros((1, 1), jnp.int32))
    train = TrainState.create(variables, optimizer, key)
    return Carried(train, model.initial_state((settings.batch,)))


def place(carried: Carried, mesh: Mesh) -> Carried:
    """The same on the devices of `mesh`, the places split over them."""
    places = jax.tree.leaves(carried.memory)[0].shape[0]
    own = placement.local_batch_slice(places, mesh)
    memory = jax.tree.map(lambda leaf: leaf[own], carried.memory)
    return Carried(
        placement.replicate(carried.train, mesh),
        placement.shard_leading_axis(memory, mesh, "memory"),
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
        zeros = model.initial_state(batch["starts"].shape)
        state = jax.tree.map(
            lambda fresh, leaf: jnp.where(batch["starts"][:, None], fresh, leaf),
            zeros,
            state,
        )
        drop_key, weight_key = jax.random.split(key)
        logits, state = model.apply(
            regularizers.weight_drop(params, weight_drop, weight_key),
            batch["inputs"],
            state=state,
            train=True,
            rngs={"dropout": drop_key},
        )  # pyright: ignore[reportAssignmentType]
        nats = metrics.cross_entropy(logits, batch["targets"])
        return {"loss": Mean.of(nats)}, state

    step = training.make_stateful_train_step(loss, optimizer, mesh)

    def carried_step(carried: Carried, batch: Batch) -> tuple[Carried, Metrics]:
        train, memory, measured = step(carried.train, carried.memory, batch)
        return Carried(train, memory), measured

    return carried_step
