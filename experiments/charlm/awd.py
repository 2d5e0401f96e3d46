"""What the AWD-LSTM has beside dropout of layers and of recurrent weights.

Whole words of the input embedding are dropped, and the activations of the last layer
are kept small (AR) and slow (TAR).

Reference: Merity, Keskar and Socher (2018), "Regularizing and Optimizing LSTM Language
Models", sections 4.3 and 4.6.
"""

from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jaxtyping import PyTree

from experiments.charlm.config import Settings
from jaxrnn import regularizers
from jaxrnn.models import LanguageModel
from jaxrnn.types import State


class Regularization(NamedTuple):
    """How much of each; nothing by default.

    Attributes:
        embedding_dropout: probability of dropping a word's input embedding.
        activation: factor of the mean square of the last layer's dropped outputs.
        temporal: factor of the mean square change of its outputs from step to step.
    """

    embedding_dropout: float = 0.0
    activation: float = 0.0
    temporal: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> "Regularization":
        """Those of the settings."""
        return cls(
            settings.embedding_dropout,
            settings.activation_penalty,
            settings.temporal_penalty,
        )


def apply(
    model: LanguageModel,
    params: PyTree,
    tokens: jax.Array,
    state: State,
    key: jax.Array,
    regularization: Regularization,
) -> tuple[jax.Array, State, jax.Array | None]:
    """Return logits and state of a training step, and the penalty of its loss.

    It is None without AR and TAR. A dropped word is dropped wherever it is read in the
    batch, but not where it is predicted, even with tied embeddings: so the table is
    left alone, and the output of the model's embedding layer is changed.
    """
    if not any(regularization):
        logits, state = model.apply(
            params, tokens, state=state, train=True, rngs={"dropout": key}
        )  # pyright: ignore[reportAssignmentType]
        return logits, state, None
    word_key, key = jax.random.split(key)
    rate = regularization.embedding_dropout
    kept = jax.random.bernoulli(word_key, 1 - rate, (model.vocab_size,))
    found: dict[str, Any] = {}

    def watch(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        made = call(*arguments, **options)
        path = context.module.path
        if context.method_name != "__call__":
            return made
        if path == ("embed",) and rate:
            scale = kept.astype(made.dtype) / (1 - rate)
            return made * scale[arguments[0]][..., None]
        if path == ("encoder",):
            found["outputs"] = made[0]
        if path == ("drop",):
            found["dropped"] = made
        return made

    with nn.intercept_methods(watch):
        logits, state = model.apply(
            params, tokens, state=state, train=True, rngs={"dropout": key}
        )  # pyright: ignore[reportAssignmentType]
    _, activation, temporal = regularization
    if not (activation or temporal):
        return logits, state, None
    small = regularizers.activation_regularization(found["dropped"])
    slow = regularizers.temporal_activation_regularization(found["outputs"])
    return logits, state, activation * small + temporal * slow
