"""Labelled texts as word ids, and padded batches of them."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from jaxrnn import placement, training
from jaxrnn.batching import (
    bucket_batches,
    bucket_lengths,
    pad,
    pad_rows,
    truncate_middle,
)
from jaxrnn.text import Vocab, word_tokens


@dataclass(frozen=True)
class Examples:
    """Texts as word ids, int32 [t] each, and the indices of their classes [n].

    Where texts may have several labels, [n, c]: 1 in the column of each.
    """

    ids: list[np.ndarray]
    labels: np.ndarray

    @classmethod
    def encode(
        cls, texts: Sequence[str], labels: np.ndarray, vocab: Vocab
    ) -> "Examples":
        """The texts by the ids of their words in `vocab`."""
        return cls.of_tokens(map(word_tokens, texts), labels, vocab)

    @classmethod
    def of_tokens(
        cls, tokenized: Iterable[Sequence[str]], labels: np.ndarray, vocab: Vocab
    ) -> "Examples":
        """As `encode`, of texts that are tokens already."""
        return cls([vocab.encode(tokens) for tokens in tokenized], labels)

    def cut(self, max_words: int) -> "Examples":
        """Longer texts without their middle: opinions stand at both ends."""
        return Examples(
            [truncate_middle(ids, max_words) for ids in self.ids], self.labels
        )


class Batches:
    """Batches of examples in few shapes, so that little is compiled.

    Each is padded to one of `buckets` lengths and has the same number of rows, a
    multiple of the devices of `mesh`; rows added to get there have weight 0. The
    lengths are `boundaries`, or those that need the least padding. Of each batch only
    the rows of this process are made.
    """

    def __init__(
        self,
        examples: Examples,
        batch: int,
        buckets: int,
        mesh: Mesh,
        boundaries: tuple[int, ...] | None = None,
    ):
        """Prepares batches of `batch` examples on the devices of `mesh`."""
        self._examples = examples
        self._lengths = np.array([ids.size for ids in examples.ids])
        self._batch = batch
        rows = math.ceil(batch / mesh.size) * mesh.size
        self._own = placement.local_batch_slice(rows, mesh)
        self._boundaries = boundaries or bucket_lengths(self._lengths, buckets)

    @property
    def words(self) -> int:
        """Words in an epoch, padding not counted."""
        return int(self._lengths.sum())

    def order(
        self, rng: np.random.Generator | None = None
    ) -> list[tuple[np.ndarray, int]]:
        """The examples of each batch of an epoch, and the length to pad them to."""
        return bucket_batches(self._lengths, self._boundaries, self._batch, rng=rng)

    def epoch(
        self, rng: np.random.Generator | None = None
    ) -> list[Callable[[], training.Batch]]:
        """The batches of an epoch, each made when it is called."""
        return [functools.partial(self.make, *batch) for batch in self.order(rng)]

    def make(self, indices: np.ndarray, length: int) -> training.Batch:
        """This process's rows of the batch of these examples, padded to `length`."""
        indices, rows = indices[self._own], self._own.stop - self._own.start
        given = [self._examples.ids[i] for i in indices]
        tokens, lengths = pad([*given, *[()] * (rows - len(given))], length)
        others = {
            "labels": self._examples.labels[indices],
            "weights": np.ones(indices.size, np.float32),
        }
        return {"tokens": tokens, "lengths": lengths, **pad_rows(others, rows)}
