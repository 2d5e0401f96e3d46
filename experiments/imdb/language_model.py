"""The language model that pre-trains the encoder: settings, network, loss, metrics.

No files, printing or command lines here.

References: Dai and Le (2015), "Semi-supervised Sequence Learning"; Merity, Keskar and
Socher (2018), "Regularizing and optimizing LSTM language models", for the dropouts and
the tied embeddings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import config
from experiments.harness.cells import LAYERS, CellName, has_recurrent_matrix
from experiments.harness.config import CommonSettings, clip_gradients
from experiments.harness.validation import COUNT, POSITIVE, SHARE_BELOW_1
from jaxrnn import metrics, regularizers, segments
from jaxrnn.metrics import Mean
from jaxrnn.models import LanguageModel
from jaxrnn.sampled_softmax import CandidateSampler, sampled_cross_entropy
from jaxrnn.training import Batch, Metrics, StatefulTrainState, TrainState
from jaxrnn.types import Array, Float, State

Direction = Literal["forward", "backward"]
# A classifier normalizes the embeddings and makes up for it in w_x and b. That is right
# for cells whose inputs are in `x @ w_x + b` and nowhere else, not for these.
UNSUITED = {
    *("layer-norm-gru", "layer-norm-lstm", "li-gru", "lru", "minimal-rnn", "rg-lru"),
    *("mogrifier-lstm", "multiplicative-lstm", "rhn", "s5", "scrn", "sru"),
}


@dataclass(frozen=True)
class LanguageSettings(CommonSettings):
    """Hyperparameters of the language model and its training."""

    direction: Direction = "forward"
    """backward: the texts are read from their last word to the first."""
    cell: CellName = "lstm"
    embed: int = 256
    hidden: int = 512
    layers: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    dropout: float = 0.1
    """Dropout rate of the outputs, of the same features at all steps."""
    weight_drop: float = 0.1
    """DropConnect: probability of dropping a weight between hidden units."""
    epochs: int = 4
    batch: int = 128
    """Number of texts that are read side by side."""
    seq_len: int = 64
    """Words of truncated backpropagation through time."""
    learning_rate: float = 3e-3
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises; then it falls to 0."""
    clip: float | None = 1.0
    patience: int | None = None
    seed: int = 0
    """Seed of initialisation, data order, dropout and candidates."""
    vocab: int = 30_000
    """Vocabulary size; the most frequent words are kept."""
    candidates: int = 2_048
    """Words in the softmax at each training step, beside the true ones.
    They are the frequent ones and a sample of the others."""

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: a field is out of range; the option is named.
        """
        super().check()
        if self.cell in UNSUITED:
            raise ValueError(
                f"--cell {self.cell} is not for language models to be fine-tuned, "
                "whose inputs are multiplied by one matrix"
            )
        COUNT.check(self, "seq_len", "candidates")
        SHARE_BELOW_1.check(self, "dropout", "weight_drop", "warmup")
        POSITIVE.check(self, "learning_rate")
        if self.vocab < 3:
            raise ValueError(
                f"--vocab must be at least 3, got {self.vocab}: two entries stand for "
                "the end of a text and for unknown words"
            )

    def fit_to(self, words: int) -> "LanguageSettings":
        """The settings with a batch small enough for 50 steps an epoch, if it can be.

        >>> settings = LanguageSettings(batch=128, seq_len=64)
        >>> [settings.fit_to(words).batch for words in (10, 50_000, 10_000_000)]
        [1, 15, 128]
        """
        batch = min(max(words // (50 * self.seq_len), 1), self.batch)
        return replace(self, batch=batch)


def make_language_model(settings: LanguageSettings, vocab_size: int) -> LanguageModel:
    """Return the network: embedding, recurrent layers, tied logits."""
    return LanguageModel(
        vocab_size,
        settings.embed,
        make_encoder(settings),
        dropout=settings.dropout,
        locked_dropout=True,
        tie_embeddings=True,
    )


def make_encoder(settings: LanguageSettings) -> Any:
    """Return its recurrent layers alone."""
    return LAYERS[settings.cell](
        settings.hidden,
        num_layers=settings.layers,
        dropout=settings.dropout if settings.layers > 1 else 0.0,
        locked_dropout=True,
        dtype=jnp.dtype(settings.dtype),
    )


def make_sampler(
    settings: LanguageSettings, texts: list[np.ndarray], vocab_size: int
) -> CandidateSampler:
    """Return the sampler of candidates, by the frequencies of the words in the texts.

    To the power of 0.75, as Mikolov et al. (2013) sample words.
    """
    counts = sum(np.bincount(text, minlength=vocab_size) for text in texts)
    counts = counts + np.bincount([0], minlength=vocab_size) * len(texts)  # the ends
    size = min(settings.candidates, vocab_size)
    return CandidateSampler.of(np.maximum(counts, 1.0) ** 0.75, size)


def make_schedule(settings: LanguageSettings, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step, over `steps` steps."""
    warmup = math.ceil(settings.warmup * steps)
    return config.make_schedule(settings.learning_rate, steps, warmup)


def make_optimizer(
    settings: LanguageSettings, steps: int
) -> optax.GradientTransformation:
    """Return Adam with gradient clipping, over `steps` steps."""
    return optax.chain(
        clip_gradients(settings.clip), optax.adam(make_schedule(settings, steps))
    )


def make_state(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    settings: LanguageSettings,
) -> StatefulTrainState:
    """Return the state before the first step."""
    weights_key, key = jax.random.split(jax.random.key(settings.seed))
    variables = jax.jit(model.init)(weights_key, jnp.zeros((1, 1), jnp.int32))
    train = TrainState.create(variables, optimizer, key)
    return StatefulTrainState(train, model.initial_state((settings.batch,)))


def make_loss(
    model: LanguageModel, settings: LanguageSettings, sampler: CandidateSampler
) -> Callable[..., tuple[Metrics, State]]:
    """Return the loss for `training.make_stateful_train_step`.

    It is the mean cross-entropy, estimated with the candidates of the sampler.
    """
    probabilities = sampler.probabilities
    drops_weights = settings.weight_drop and has_recurrent_matrix(settings.cell)

    def loss(
        params: Any, batch: Batch, state: State, key: Array
    ) -> tuple[Metrics, State]:
        drop_key, weight_key, candidate_key = jax.random.split(key, 3)
        if drops_weights:
            params = regularizers.weight_drop(params, settings.weight_drop, weight_key)
        features, state = _features(
            model, params, batch, state, train=True, rngs={"dropout": drop_key}
        )
        nats = sampled_cross_entropy(
            features,
            params["params"]["embed"]["embedding"],
            params["params"]["bias"],
            batch["targets"],
            sampler.draw(candidate_key),
            probabilities,
        )
        return {"loss": Mean.of(nats)}, state

    return loss


def make_metrics(model: LanguageModel) -> Callable[..., tuple[Metrics, State]]:
    """Return the metrics for `training.make_stateful_eval_step`.

    They are the exact cross-entropies over the whole vocabulary.
    """

    def measure(params: Any, batch: Batch, state: State) -> tuple[Metrics, State]:
        features, state = _features(model, params, batch, state)
        table, bias = params["params"]["embed"]["embedding"], params["params"]["bias"]
        logits = features @ table.T + jnp.expand_dims(bias, (0, 1))
        nats = metrics.cross_entropy(logits, batch["targets"])
        return {"nats": Mean.of(nats, batch["weights"])}, state

    return measure


def _features(
    model: LanguageModel, params: Any, batch: Batch, state: State, **options: Any
) -> tuple[Float[Array, "b t e"], State]:
    """Return what the model multiplies with its embeddings, and the state.

    A text starts with a fresh one. The logits of all words are too many for one array.
    """
    ids, own = segments.from_resets(batch["starts"], state)
    return model.apply(  # pyright: ignore[reportReturnType]
        params,
        batch["inputs"],
        segment_ids=ids,
        state=own,
        method="pre_logits",
        **options,
    )
