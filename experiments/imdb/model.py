"""The sentiment model of `experiments.imdb`: settings, network, steps.

Nothing here prints, or knows of files and command lines.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from experiments.harness.config import LAYERS, CellName
from experiments.harness.validation import AMOUNT, COUNT, POSITIVE, SEED, SHARE
from experiments.imdb.batches import Batches
from jaxrnn import metrics, placement, training
from jaxrnn.metrics import Mean
from jaxrnn.models import SequenceClassifier
from jaxrnn.segments import Pooling


@dataclass(frozen=True)
class Settings:
    """What a result depends on, the reviews aside."""

    cell: CellName = "lstm"
    """Recurrent cell."""
    embed: int = 64
    """Features of the vector that a word becomes."""
    hidden: int = 64
    """Features of each direction of each recurrent layer."""
    layers: int = 1
    """Recurrent layers on top of each other."""
    bidirectional: bool = True
    """Read the reviews in both directions."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the factors in the layers' products. Sums, states and weights stay float32.
    bfloat16 is faster where the processor multiplies it: TPU, recent GPU or CPU."""
    pooling: tuple[Pooling, ...] = ("max", "mean")
    """How the outputs over time become one vector; several stand side by side."""
    dropout: float = 0.5
    """Probability of dropping a pooled feature, and one between layers."""
    word_dropout: float = 0.3
    """Probability of dropping a word."""
    vocab: int = 20_000
    """Words the model knows, the most frequent ones."""
    pretrain: bool = True
    """Start from word vectors that tell which words keep the same company.
    They are learned from the reviews to train on and the unlabelled ones."""
    max_words: int = 400
    """Longer reviews lose their middle in training; none does when evaluated."""
    buckets: int = 8
    """Lengths that batches are padded to; each is compiled once."""
    epochs: int = 3
    """Passes over the training reviews."""
    batch: int = 64
    """Reviews in a step."""
    learning_rate: float = 4e-3
    """Greatest learning rate of Adam, after a tenth of the steps; it ends at zero."""
    embed_rate: float = 0.1
    """Learning rate of the word vectors, relative to the others'."""
    clip: float = 1.0
    """Greatest norm of a gradient; longer ones are scaled down."""
    seed: int = 0
    """Of the weights, of the order of the reviews and of dropout.
    Also of how those of a --csv are divided."""

    def check(self) -> None:
        """Whether they make sense.

        Raises:
            ValueError: they do not; the option is named.
        """
        COUNT.check(self, "embed", "hidden", "layers")
        COUNT.check(self, "max_words", "buckets", "epochs", "batch")
        SHARE.check(self, "dropout", "word_dropout")
        AMOUNT.check(self, "learning_rate", "embed_rate")
        POSITIVE.check(self, "clip")
        SEED.check(self, "seed")
        if self.vocab < 3:
            raise ValueError(
                f"--vocab must be at least 3, got {self.vocab}: two entries stand for "
                "padding and for unknown words"
            )
        if not self.pooling:
            raise ValueError("--pooling must be at least one of max, mean, first, last")


SMOKE = Settings(embed=8, hidden=8, vocab=100, buckets=2, epochs=4, batch=16)


def make_model(settings: Settings, vocab_size: int) -> SequenceClassifier:
    """The network: embedding, recurrent layers, pooling, one logit."""
    encoder = LAYERS[settings.cell](
        settings.hidden,
        num_layers=settings.layers,
        bidirectional=settings.bidirectional,
        dropout=settings.dropout,
        dtype=jnp.dtype(settings.dtype),
    )
    return SequenceClassifier(
        vocab_size,
        settings.embed,
        encoder,
        pooling=settings.pooling,
        dropout=settings.dropout,
        word_dropout=settings.word_dropout,
    )


def make_schedule(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate: it rises for a tenth of the steps and falls to zero."""
    warmup = math.ceil(steps / 10)
    return optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, warmup, max(steps, warmup + 1)
    )


def make_optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """Adam with clipping, over `steps` steps. Word vectors move slower: quick ones
    learn the names in the films by heart."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adam(make_schedule(settings, steps)),
        optax.masked(optax.scale(settings.embed_rate), _is_embedding),
    )


def _is_embedding(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: "embed" in keystr(path), params)


def make_state(
    model: SequenceClassifier,
    optimizer: optax.GradientTransformation,
    seed: int,
    vectors: np.ndarray | None = None,
) -> training.TrainState:
    """The state before the first step, with `vectors` as embedding if given."""
    weights_key, key = jax.random.split(jax.random.key(seed))
    variables = jax.jit(model.init)(weights_key, jnp.zeros((1, 1), jnp.int32))
    if vectors is not None:
        variables["params"]["embed"]["embedding"] = jnp.asarray(vectors)
    return training.TrainState.create(variables, optimizer, key)


def make_loss(
    model: SequenceClassifier,
    options: Callable[[training.Batch], dict[str, Any]] = lambda batch: {
        "lengths": batch["lengths"]
    },
) -> Callable[..., training.Metrics]:
    """The loss that `training.make_train_step` wants; `options` says of a batch where
    its reviews are, in the model's words."""

    def loss(params: Any, batch: training.Batch, key: jax.Array) -> training.Metrics:
        logits: Any = model.apply(
            params,
            batch["tokens"],
            **options(batch),
            train=True,
            rngs={"dropout": key},
        )
        return _measure(logits, batch)

    return loss


def make_metrics(model: SequenceClassifier) -> Callable[..., training.Metrics]:
    """The metrics that `training.make_eval_step` wants: loss, accuracy, and the share
    of each cell of the confusion matrix, `truth` then `prediction`."""

    def evaluate(params: Any, batch: training.Batch) -> training.Metrics:
        logits: Any = model.apply(params, batch["tokens"], lengths=batch["lengths"])
        measured = _measure(logits, batch)
        for truth in (0, 1):
            for prediction in (0, 1):
                cell = (batch["labels"] == truth) & ((logits > 0) == bool(prediction))
                measured[f"confusion_{truth}{prediction}"] = Mean.of(
                    cell.astype(jnp.float32), batch["weights"]
                )
        return measured

    return evaluate


def _measure(logits: jax.Array, batch: training.Batch) -> training.Metrics:
    nats = metrics.binary_cross_entropy(logits, batch["labels"])
    correct = metrics.correct(logits, batch["labels"])
    return {
        "loss": Mean.of(nats, batch["weights"]),
        "accuracy": Mean.of(correct, batch["weights"]),
    }


def evaluate_classifier(
    eval_step: Callable[[Any, training.Batch], training.Metrics],
    params: Any,
    batches: Batches,
    advance: Callable[..., None] = lambda done: None,
) -> dict[str, float]:
    """The metrics over all examples; `advance` is told how many batches are done."""
    merged: training.Metrics = {}
    for done, make_batch in enumerate(batches.epoch(), start=1):
        for name, mean in jax.device_get(eval_step(params, make_batch())).items():
            merged[name] = merged[name].merge(mean) if name in merged else mean
        advance(done)
    return {name: float(mean.value) for name, mean in merged.items()}


def predict_probabilities(
    model: SequenceClassifier, params: Any, batches: Batches, mesh: Mesh
) -> np.ndarray:
    """The probability that each example, in its order, is positive."""

    everywhere = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=everywhere)
    def positive(params: Any, batch: training.Batch) -> jax.Array:
        logits: Any = model.apply(params, batch["tokens"], lengths=batch["lengths"])
        return jax.nn.sigmoid(logits.squeeze(-1))

    params = placement.replicate(params, mesh)
    order = batches.order()
    found = np.zeros(sum(indices.size for indices, _ in order))
    for indices, length in order:
        batch = placement.shard_batch(batches.make(indices, length), mesh)
        found[indices] = positive(params, batch)[: indices.size]
    return found
