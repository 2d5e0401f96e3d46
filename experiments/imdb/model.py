"""The sentiment model of `experiments.imdb`: settings, network, steps.

Nothing here prints, or knows of files and command lines.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from experiments.harness import config
from experiments.harness.cells import LAYERS, CellName
from experiments.harness.config import CommonSettings, clip_gradients
from experiments.harness.validation import AMOUNT, COUNT, SHARE
from experiments.imdb.batches import Batches
from jaxrnn import metrics, placement, training
from jaxrnn.metrics import Mean
from jaxrnn.models import SequenceClassifier
from jaxrnn.segments import Pooling


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Hyperparameters of the model and its training."""

    cell: CellName = "lstm"
    embed: int = 64
    hidden: int = 64
    layers: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    dropout: float = 0.5
    """Dropout rate between recurrent layers and of the pooled features."""
    epochs: int = 3
    batch: int = 64
    learning_rate: float = 4e-3
    """Peak learning rate: a linear warmup over a tenth of the steps, cosine decay."""
    clip: float | None = 1.0
    patience: int | None = None
    seed: int = 0
    """Seed of initialisation, data order and dropout, and of how a --csv is split."""
    bidirectional: bool = True
    """Read the reviews in both directions."""
    pooling: tuple[Pooling, ...] = ("max", "mean")
    """How the outputs over time become one vector; several are concatenated."""
    word_dropout: float = 0.3
    """Probability of dropping a word."""
    vocab: int = 20_000
    """Vocabulary size; the most frequent words are kept."""
    pretrain: bool = True
    """Initialise the embeddings from PPMI-SVD word vectors.
    They are computed from the training and the unlabelled reviews."""
    max_words: int = 400
    """Longer training reviews lose their middle; none does when evaluated."""
    buckets: int = 8
    """Number of lengths that batches are padded to; each is compiled once."""
    embed_rate: float = 0.1
    """Learning rate of the embeddings, relative to the others'."""

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: a field is out of range; the option is named.
        """
        super().check()
        COUNT.check(self, "max_words", "buckets")
        SHARE.check(self, "word_dropout")
        AMOUNT.check(self, "embed_rate")
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
    """Return a schedule that rises for a tenth of the steps, then decays to zero."""
    return config.make_schedule(settings.learning_rate, steps, math.ceil(steps / 10))


def make_optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """Adam with clipping, over `steps` steps. Word vectors move slower: quick ones
    learn the names in the films by heart."""
    return optax.chain(
        clip_gradients(settings.clip),
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

    def measured() -> Iterator[training.Metrics]:
        for done, make_batch in enumerate(batches.epoch(), start=1):
            yield jax.device_get(eval_step(params, make_batch()))
            advance(done)

    merged = metrics.merge(measured())
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
