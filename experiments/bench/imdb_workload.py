"""Train steps of `experiments.imdb` to be timed, in this library and in PyTorch.

The reviews are synthetic, with the lengths of IMDB's and Zipf-distributed words. Units
are words, padding not counted.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import jax
import numpy as np

from experiments.bench.frameworks import SEED, load
from experiments.bench.timing import Work, stepping, torch_stepping
from experiments.imdb.batches import Batches, Examples
from experiments.imdb.model import (
    Settings,
    make_loss,
    make_model,
    make_optimizer,
    make_state,
)
from jaxrnn import placement, training
from jaxrnn.batching import pack_sequences, pad_rows, plan_packing
from jaxrnn.models import SequenceClassifier
from jaxrnn.recurrent import Backend

Layout = Literal["buckets", "packed rows", "plain padding"]

# How many words IMDB's reviews have (training part; Maas et al., 2011), by
# `jaxrnn.text.word_tokens`: percentages of the reviews, and what so many have at most.
PERCENTS = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.9, 100)
WORDS = (
    10, 42, 64, 90, 120, 134, 152, 174, 206, 251, 324, 457, 597, 784, 911, 1064, 2473,
)  # fmt: skip


@dataclass(frozen=True)
class Reviews:
    """A number of reviews, and how many batches are timed to stand for all of them.

    With `sample` None that is every batch.
    """

    settings: Settings
    number: int
    sample: int | None = None

    def examples(self) -> Examples:
        """The reviews as the program trains on them: truncated to `max_words`.

        >>> reviews = Reviews(Settings(max_words=50), number=9)
        >>> max(ids.size for ids in reviews.examples().ids)
        50
        """
        rng = np.random.default_rng(SEED)
        percents = 100 * rng.random(self.number)
        lengths = np.interp(percents, PERCENTS, WORDS).astype(int)
        # Zipf's law, with Mandelbrot's 2.7 (1953) for the most frequent words.
        share = np.cumsum(1 / (np.arange(self.settings.vocab - 2) + 2.7))
        words = 2 + np.searchsorted(share / share[-1], rng.random(lengths.sum()))
        ids = np.split(words.astype(np.int32), np.cumsum(lengths)[:-1])
        labels = rng.integers(2, size=self.number).astype(np.float32)
        return Examples(ids, labels).cut(self.settings.max_words)

    def sampled(self, batches: Sequence[Any]) -> Sequence[Any]:
        """A sample of `batches`: those in the middle of equal parts.

        >>> Reviews(Settings(), number=9, sample=2).sampled("abcdefgh")
        ['c', 'g']
        """
        if self.sample is None or self.sample >= len(batches):
            return batches
        middles = (np.arange(self.sample) + 0.5) * len(batches) / self.sample
        return [batches[place] for place in middles.astype(int)]


def train(reviews: Reviews, layout: Layout) -> Work:
    """Train steps of the program on padded or packed batches.

    Rows are padded to one of the buckets or to the longest review, or are packed with
    several reviews each.

    >>> settings = Settings(hidden=4, embed=4, vocab=50, batch=4, max_words=30)
    >>> work = train(Reviews(settings, number=8), "plain padding")
    >>> int(work.run().step), work.steps, 8 < work.units <= 8 * 30
    (2, 2, True)
    """
    settings, examples = reviews.settings, reviews.examples()
    model = make_model(settings, settings.vocab)
    mesh = placement.data_mesh()
    if layout == "packed rows":
        batches, loss = _packed(settings, examples, model, mesh.size)
    else:
        settings = settings.resolve(reviews.number)
        buckets = cast(int, settings.buckets) if layout == "buckets" else 1
        # They ascend in length, so the middles of equal parts represent all.
        batches = Batches(examples, settings.batch, buckets, mesh).epoch()
        loss = make_loss(model)
    batches = reviews.sampled(batches)
    optimizer = make_optimizer(settings, steps=1_000_000)
    state = make_state(model, optimizer, SEED)
    step = training.make_train_step(loss, optimizer, mesh)
    words = sum(int(np.count_nonzero(make()["tokens"])) for make in batches)
    return Work(stepping(step, state, batches), words, len(batches))


def train_epoch(reviews: Reviews) -> Work:
    """An epoch of the program, counted as one step.

    >>> settings = Settings(hidden=4, embed=4, vocab=50, batch=4, buckets=2)
    >>> train_epoch(Reviews(settings, number=8, sample=1)).steps
    1
    """
    whole = replace(reviews, sample=None)
    return train(whole, "buckets")._replace(steps=1)


def _packed(
    settings: Settings, examples: Examples, model: SequenceClassifier, devices: int
) -> tuple[list[Callable[[], training.Batch]], Callable[..., training.Metrics]]:
    """Packed batches with rows of `max_words`, and the loss of such a batch.

    Each has about as many reviews as a padded batch.
    """
    rows = plan_packing([ids.size for ids in examples.ids], settings.max_words)
    # The longest reviews are in the first rows; shuffling makes batches similar.
    rows = [rows[k] for k in np.random.default_rng(SEED).permutation(len(rows))]
    rows_per_batch = settings.batch * len(rows) // len(examples.ids)
    rows_per_batch = max(rows_per_batch // devices, 1) * devices
    most = max(row.size for row in rows)

    def make(some: list[np.ndarray]) -> training.Batch:
        tokens, ids = pack_sequences(examples.ids, some, settings.max_words)
        labels = np.zeros((len(some), most), np.float32)
        weights = np.zeros_like(labels)
        for k, row in enumerate(some):
            labels[k, : row.size] = examples.labels[row]
            weights[k, : row.size] = 1
        batch = {"tokens": tokens, "ids": ids, "labels": labels, "weights": weights}
        return pad_rows(batch, rows_per_batch)

    def options(batch: training.Batch) -> dict[str, Any]:
        return {"segment_ids": batch["ids"], "num_segments": most}

    starts = range(0, len(rows), rows_per_batch)
    batches = [functools.partial(make, rows[k : k + rows_per_batch]) for k in starts]
    return batches, make_loss(model, options)


def train_torch(reviews: Reviews, *, packs: bool) -> Work:
    """The same model in PyTorch, without dropout, on shuffled batches.

    They are padded to their longest review and, with `packs`, converted to a
    `PackedSequence`.
    """
    torch = load("torch")
    settings = reviews.settings
    embed = torch.nn.Embedding(settings.vocab, settings.embed)
    lstm = torch.nn.LSTM(
        settings.embed,
        settings.hidden,
        batch_first=True,
        bidirectional=settings.bidirectional,
    )
    directions = 2 if settings.bidirectional else 1
    output = torch.nn.Linear(2 * directions * settings.hidden, 1)
    rnn = torch.nn.utils.rnn

    def loss_of(batch: training.Batch) -> Any:
        tokens = torch.from_numpy(batch["tokens"][:, : batch["lengths"].max()])
        lengths = torch.from_numpy(batch["lengths"])
        x = embed(tokens)
        if packs:
            x = rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
        outputs, _ = lstm(x)
        if packs:
            outputs, _ = rnn.pad_packed_sequence(outputs, batch_first=True)
        padding = (tokens == 0)[..., None]
        mean = outputs.masked_fill(padding, 0).sum(dim=1) / lengths[:, None]
        most = outputs.masked_fill(padding, -torch.inf).amax(dim=1)
        return torch.nn.functional.binary_cross_entropy_with_logits(
            output(torch.cat([most, mean], dim=1))[:, 0],
            torch.from_numpy(batch["labels"]),
        )

    one = placement.data_mesh(1)
    source = Batches(reviews.examples(), settings.batch, buckets=1, mesh=one)
    # Shuffled, because batches sorted by length would have hardly any padding.
    order = reviews.sampled(source.order(np.random.default_rng(SEED)))
    batches = [functools.partial(_no_spare_rows, source, *batch) for batch in order]
    words = sum(int(make()["lengths"].sum()) for make in batches)
    run = torch_stepping(torch, [embed, lstm, output], loss_of, batches)
    return Work(run, words, len(batches))


def _no_spare_rows(source: Batches, indices: np.ndarray, length: int) -> training.Batch:
    """The batch without rows of length 0, which PyTorch refuses."""
    batch = source.make(indices, length)
    return {name: array[: indices.size] for name, array in batch.items()}


def compile_deep(time: int, backend: Backend = "auto") -> Work:
    """Compiles the train step of three bidirectional layers and runs it once.

    The batch is a row of `time` words for each device, so compilation dominates.

    >>> compile_deep(time=4).units
    1
    """
    settings = Settings(layers=3, vocab=1000)
    model = make_model(settings, settings.vocab)
    model = model.clone(encoder=model.encoder.clone(backend=backend))
    optimizer = make_optimizer(settings, steps=1_000_000)
    template = make_state(model, optimizer, SEED)
    mesh = placement.data_mesh()
    batch = {
        "tokens": np.ones((mesh.size, time), np.int32),
        "lengths": np.full(mesh.size, time, np.int32),
        "labels": np.ones(mesh.size, np.float32),
        "weights": np.ones(mesh.size, np.float32),
    }

    def run() -> training.TrainState:
        state = jax.tree.map(jax.numpy.copy, template)  # a step donates its state
        step = training.make_train_step(make_loss(model), optimizer, mesh)
        return jax.block_until_ready(step(state, batch)[0])

    return Work(run)
