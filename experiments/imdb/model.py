"""The classifier of `experiments.imdb`: settings, network, optimizer, loss, metrics.

No files, printing or command lines here.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from experiments.harness import config
from experiments.harness.arguments import default_is
from experiments.harness.cells import LAYERS, CellName
from experiments.harness.config import CommonSettings, clip_gradients
from experiments.harness.validation import AMOUNT, COUNT, SHARE
from experiments.imdb.batches import Batches
from jaxrnn import metrics, placement, training
from jaxrnn.metrics import Mean
from jaxrnn.models import SequenceClassifier
from jaxrnn.segments import Pooling

FEWEST_EPOCHS = 3  # by default, however many texts there are


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
    epochs: Annotated[
        int | None,
        default_is("about 1,000 steps, but 3 to 10 epochs; 5 to 10 with perturbations"),
    ] = None
    """Passes over the training texts."""
    batch: int = 64
    learning_rate: float = 4e-3
    """Peak learning rate: a linear warmup over a tenth of the steps, cosine decay.
    With --preset best or --encoder the decay is linear."""
    clip: float | None = 1.0
    patience: int | None = None
    seed: int = 0
    """Seed of initialisation, data order and dropout, and of how a --csv is split."""
    bidirectional: bool = True
    """Use both directions; --no-bidirectional uses the forward direction only."""
    pooling: tuple[Pooling, ...] = ("max", "mean")
    """How the outputs over time become one vector; several are concatenated."""
    word_dropout: float = 0.3
    """Probability of dropping a word."""
    vocab: int = 20_000
    """Vocabulary size; the most frequent words are kept."""
    pretrain: bool = True
    """Initialise the embeddings from word vectors (PPMI-SVD); without them randomly.
    The vectors are computed from the training and the unlabelled texts.
    Not with --preset best or --encoder."""
    max_words: int = 400
    """Training texts with more words lose their middle; evaluation has all words."""
    buckets: Annotated[
        int | None, default_is("one for 2,000 training texts, from 2 to 8")
    ] = None
    """Number of lengths that batches are padded to; each is compiled once."""
    class_weights: Literal["uniform", "balanced"] = "uniform"
    """Weights of the classes in the loss.
    balanced: inversely proportional to their frequencies in training."""
    linear: Literal["auto", "on", "off"] = "auto"
    """Add the logits of a linear classifier on words and word pairs.
    The weights of the sum are fitted on the validation part.
    auto: on with up to 100,000 training texts, to which it is fitted in a minute."""
    multi_label: Annotated[str | None, default_is("none")] = None
    """Texts may have several labels, separated by this in the label column.
    Each label has a probability of its own (sigmoid, binary cross-entropy)."""
    embed_rate: float = 0.1
    """Learning rate of the embeddings, relative to the others'.
    Not with --preset best or --encoder."""

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: a field is out of range; the option is named.
        """
        super().check()
        COUNT.check(self, "max_words", "buckets")
        SHARE.check(self, "word_dropout")
        AMOUNT.check(self, "embed_rate")
        if self.multi_label == "":
            raise ValueError("--multi-label is empty: name the separator of labels")
        if self.vocab < 3:
            raise ValueError(
                f"--vocab must be at least 3, got {self.vocab}: two entries stand for "
                "padding and for unknown words"
            )
        if not self.pooling:
            raise ValueError("--pooling must be at least one of max, mean, first, last")

    def resolve(self, texts: int, fewest_epochs: int = FEWEST_EPOCHS) -> "Settings":
        """The settings with the values that depend on the number of training texts.

        >>> settings = Settings(epochs=7).resolve(2_000)
        >>> settings.epochs, settings.buckets, settings.linear
        (7, 2, 'on')
        """
        epochs, buckets, linear = self.epochs, self.buckets, self.linear
        if epochs is None:
            steps = math.ceil(texts / self.batch)
            epochs = min(max(1_000 // steps, fewest_epochs), 10)
        if buckets is None:
            buckets = min(max(texts // 2_000, 2), 8)
        if linear == "auto":
            linear = "on" if texts <= 100_000 else "off"
        return replace(self, epochs=epochs, buckets=buckets, linear=linear)


SMOKE = Settings(
    embed=8, hidden=8, vocab=100, buckets=2, epochs=4, batch=16, linear="off"
)


def make_model(
    settings: Settings, vocab_size: int, num_classes: int = 2
) -> SequenceClassifier:
    """The network: embedding, recurrent layers, pooling, and a linear output.

    Two classes have one logit, that of the second; more have one each, and so have the
    labels where a text may have several.
    """
    one_logit = num_classes == 2 and settings.multi_label is None
    encoder = LAYERS[settings.cell](
        settings.hidden,
        num_layers=settings.layers,
        bidirectional=settings.bidirectional,
        dropout=settings.dropout if settings.layers > 1 else 0.0,
        dtype=jnp.dtype(settings.dtype),
    )
    return SequenceClassifier(
        vocab_size,
        settings.embed,
        encoder,
        pooling=settings.pooling,
        dropout=settings.dropout,
        word_dropout=settings.word_dropout,
        num_classes=None if one_logit else num_classes,
    )


def make_schedule(settings: Settings, steps: int) -> optax.Schedule:
    """Return a schedule that rises for a tenth of the steps, then decays to zero."""
    return config.make_schedule(settings.learning_rate, steps, math.ceil(steps / 10))


def make_optimizer(
    settings: Settings, steps: int, rate: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """Adam with gradient clipping, over `steps` steps.

    The embeddings have a lower learning rate: otherwise they overfit to names in the
    films. A `rate` takes the place of that of the settings.
    """
    return optax.chain(
        clip_gradients(settings.clip),
        optax.adam(rate or make_schedule(settings, steps)),
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
    """The train state before the first step, with `vectors` as embedding if given."""
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
    class_weights: np.ndarray | None = None,
) -> Callable[..., training.Metrics]:
    """The loss for `training.make_train_step`: the mean cross-entropy of a batch.

    Args:
        model: has the logits.
        options: the keyword arguments of the model for a batch, beside its tokens.
        class_weights: as `balanced_weights` returns them; equal by default.
    """

    def loss(params: Any, batch: training.Batch, key: jax.Array) -> training.Metrics:
        logits: Any = model.apply(
            params,
            batch["tokens"],
            **options(batch),
            train=True,
            rngs={"dropout": key},
        )
        return _measure(logits, batch, class_weights)

    return loss


def balanced_weights(labels: np.ndarray) -> np.ndarray:
    """Class weights by which each class has the same share of the loss, float32 [c].

    n / (c * count), as scikit-learn and Keras define "balanced". Where texts may have
    several labels, [n, c], the classes are the texts without and those with a label:
    float32 [2, c].

    >>> balanced_weights(np.array([0, 0, 0, 1]))
    array([0.6666667, 2.       ], dtype=float32)
    >>> balanced_weights(np.array([[0, 1], [0, 1], [0, 1], [1, 0]]))
    array([[0.6666667, 2.       ],
           [2.       , 0.6666667]], dtype=float32)
    """
    if labels.ndim == 2:
        return np.stack([balanced_weights(column) for column in labels.T], axis=1)
    counts = np.bincount(labels)
    return (labels.size / (counts.size * counts)).astype(np.float32)


def _measure(
    logits: jax.Array, batch: training.Batch, class_weights: np.ndarray | None = None
) -> training.Metrics:
    labels, weights = batch["labels"], batch["weights"]
    # In rows that texts share both have an axis of texts.
    if labels.ndim > weights.ndim:
        return _measure_label_sets(logits, batch, class_weights)
    if logits.shape == labels.shape:
        nats = metrics.binary_cross_entropy(logits, labels)
    else:
        nats = metrics.cross_entropy(logits, labels)
    correct = metrics.correct(logits, labels)
    loss_weights = weights
    if class_weights is not None:
        loss_weights = weights * jnp.asarray(class_weights)[labels.astype(jnp.int32)]
    return {
        "loss": Mean.of(nats, loss_weights),
        "accuracy": Mean.of(correct, weights),
    }


def _measure_label_sets(
    logits: jax.Array, batch: training.Batch, class_weights: np.ndarray | None
) -> training.Metrics:
    """The mean over texts and labels, and the share of texts with the right labels."""
    labels, weights = batch["labels"], batch["weights"]
    loss_weights = jnp.broadcast_to(weights[:, None], labels.shape)
    if class_weights is not None:
        without, having = jnp.asarray(class_weights)
        loss_weights *= jnp.where(labels == 1, having[None], without[None])
    right = metrics.correct(logits, labels).min(axis=1)
    return {
        "loss": Mean.of(metrics.binary_cross_entropy(logits, labels), loss_weights),
        "subset_accuracy": Mean.of(right, weights),
    }


def make_predictor(model: SequenceClassifier, mesh: Mesh) -> Callable[..., np.ndarray]:
    """A function of variables and `Batches` that returns the logits of each example.

    They are float32 [n, 1] for two classes, else [n, c]. A third argument, if given, is
    called with the number of batches done. It compiles once for each shape of a batch.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=everywhere)
    def compute(params: Any, batch: training.Batch) -> jax.Array:
        logits: Any = model.apply(params, batch["tokens"], lengths=batch["lengths"])
        return logits.reshape(logits.shape[0], -1)

    def predict(
        params: Any,
        batches: Batches,
        advance: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        params = placement.replicate(params, mesh)
        order = batches.order()
        number = sum(indices.size for indices, _ in order)
        found = np.zeros((number, model.num_classes or 1), np.float32)
        for done, (indices, length) in enumerate(order, start=1):
            batch = placement.shard_batch(batches.make(indices, length), mesh)
            found[indices] = np.asarray(compute(params, batch))[: indices.size]
            advance(done)
        return found

    return predict


def divide_logits(variables: Any, temperature: float) -> Any:
    """The variables of a network whose logits are divided by the temperature.

    >>> variables = {"params": {"embed": 3.0, "output": {"bias": 1.0, "kernel": 2.0}}}
    >>> divide_logits(variables, 4.0)["params"]
    {'embed': 3.0, 'output': {'bias': 0.25, 'kernel': 0.5}}
    """
    params = variables["params"]
    output = jax.tree.map(lambda leaf: leaf / temperature, params["output"])
    return {**variables, "params": {**params, "output": output}}
