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

from experiments.charlm import awd
from experiments.charlm.awd import Regularization
from experiments.charlm.config import Settings
from experiments.charlm.nt_asgd import average_iterates
from experiments.harness import config
from experiments.harness.cells import LAYERS
from experiments.harness.config import clip_gradients
from jaxrnn import Stack, metrics, placement, regularizers, training
from jaxrnn.metrics import Mean
from jaxrnn.models import LanguageModel
from jaxrnn.training import Batch, Metrics, StatefulTrainState, TrainState
from jaxrnn.types import State

NO_REGULARIZATION = Regularization()


def make_model(settings: Settings, vocab_size: int) -> LanguageModel:
    """Return the network: embedding, recurrent layers, logits."""
    make_layer, dtype = LAYERS[settings.cell], jnp.dtype(settings.dtype)
    between = settings.layer_dropout
    between = settings.dropout if between is None else between
    options = {
        "dropout": between if settings.layers > 1 else 0.0,
        "locked_dropout": settings.locked_dropout,
        "input_dropout": settings.input_dropout,
    }
    if settings.last_hidden is None:
        encoder = make_layer(
            settings.hidden, num_layers=settings.layers, dtype=dtype, **options
        )
    else:
        sizes = [settings.hidden] * (settings.layers - 1) + [settings.last_hidden]
        encoder = Stack([make_layer(size, dtype=dtype) for size in sizes], **options)
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


def make_optimizer(
    settings: Settings, steps: int, rate: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """Return the optimizer of the settings with clipping, over `steps` steps.

    It is AdamW (Loshchilov and Hutter, 2019), or NT-ASGD (Merity, Keskar and Socher,
    2018), whose weight decay is that of the gradient, of all parameters. A `rate` takes
    the place of that of the settings.
    """
    rate = rate or make_schedule(settings, steps)
    if settings.optimizer == "nt-asgd":
        return optax.chain(
            clip_gradients(settings.clip),
            optax.add_decayed_weights(settings.weight_decay),
            optax.scale_by_learning_rate(rate),
            average_iterates(),
        )
    adam = optax.adamw(
        rate,
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
    regularization: Regularization = NO_REGULARIZATION,
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
        logits, state, penalty = awd.apply(
            model, params, batch["inputs"], state, drop_key, regularization
        )
        nats = metrics.cross_entropy(logits, batch["targets"])
        if penalty is None:
            return {"loss": Mean.of(nats)}, state
        # Each device has as many tokens: the mean of their penalties is added.
        return {"loss": Mean.of(nats + penalty), "nats": Mean.of(nats)}, state

    step = training.make_stateful_train_step(loss, optimizer, mesh)

    def train_step(
        state: StatefulTrainState, batch: Batch
    ) -> tuple[StatefulTrainState, Metrics]:
        train, carry, measured = step(state.train, state.carry, batch)
        return StatefulTrainState(train, carry), measured

    return train_step
