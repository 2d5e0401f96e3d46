"""The character model of `experiments.charlm`: network, optimizer, train step.

Nothing here prints or depends on files and command lines.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments.charlm.config import Settings
from experiments.harness import config
from experiments.harness.cells import LAYERS
from experiments.harness.config import clip_gradients
from jaxrnn import metrics, placement, regularizers, training
from jaxrnn.metrics import Mean
from jaxrnn.models import LanguageModel
from jaxrnn.training import Batch, Metrics, StatefulTrainState, TrainState
from jaxrnn.types import State


def make_model(settings: Settings, vocab_size: int) -> LanguageModel:
    """Return the network: embedding, recurrent layers, logits."""
    encoder = LAYERS[settings.cell](
        settings.hidden,
        num_layers=settings.layers,
        dropout=settings.dropout if settings.layers > 1 else 0.0,
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
) -> StatefulTrainState:
    """Return the state before the first step."""
    weights_key, key = jax.random.split(jax.random.key(settings.seed))
    variables = jax.jit(model.init)(weights_key, jnp.zeros((1, 1), jnp.int32))
    train = TrainState.create(variables, optimizer, key)
    return StatefulTrainState(train, model.initial_state((settings.batch,)))


def shard_state(state: StatefulTrainState, mesh: Mesh) -> StatefulTrainState:
    """Return the state on the devices of `mesh`: streams split, the rest replicated."""
    streams = jax.tree.leaves(state.carry)[0].shape[0]
    own = placement.local_batch_slice(streams, mesh)
    carry = jax.tree.map(lambda leaf: leaf[own], state.carry)
    return StatefulTrainState(
        placement.replicate(state.train, mesh),
        placement.shard_leading_axis(carry, mesh, "carry"),
    )


def make_train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    weight_drop: float = 0.0,
) -> Callable[[StatefulTrainState, Batch], tuple[StatefulTrainState, Metrics]]:
    """Return a compiled `step(state, batch) -> (state, metrics)`.

    The train state is donated: only the returned one may be used again.
    """

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
        if weight_drop:  # refused where there is no matrix of the state
            params = regularizers.weight_drop(params, weight_drop, weight_key)
        logits, state = model.apply(
            params,
            batch["inputs"],
            state=state,
            train=True,
            rngs={"dropout": drop_key},
        )  # pyright: ignore[reportAssignmentType]
        nats = metrics.cross_entropy(logits, batch["targets"])
        return {"loss": Mean.of(nats)}, state

    step = training.make_stateful_train_step(loss, optimizer, mesh)

    def train_step(
        state: StatefulTrainState, batch: Batch
    ) -> tuple[StatefulTrainState, Metrics]:
        train, carry, measured = step(state.train, state.carry, batch)
        return StatefulTrainState(train, carry), measured

    return train_step
