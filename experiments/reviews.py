"""Labelled reviews: what a data set is, a person's CSV, generated text.

Knows texts and labels only: neither words, ids and batches, nor JAX. The reviews of
IMDB have a file of their own, `imdb_reviews`.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.files import decode_utf8, read_bytes

LABELS = {"0": 0, "neg": 0, "negative": 0, "1": 1, "pos": 1, "positive": 1}
MIN_PER_LABEL = 10  # so that validation and test have one of each at 10% each


@dataclass(frozen=True)
class Split:
    """Texts and their labels, float32 [n]: 0 is negative, 1 is positive."""

    texts: list[str]
    labels: np.ndarray

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The split of the reviews at `indices`, in that order."""
        return Split([self.texts[i] for i in indices], self.labels[indices])

    def hold_out(self, parts: int, seed: int = 0) -> tuple["Split", "Split"]:
        """All but a random one of `parts` equal parts of each label, and that one."""
        rng = np.random.default_rng(seed)
        by_label = [rng.permutation(np.flatnonzero(self.labels == k)) for k in (0, 1)]
        held_out = np.concatenate([i[: len(i) // parts] for i in by_label])
        kept = np.concatenate([i[len(i) // parts :] for i in by_label])
        return self[rng.permutation(kept)], self[rng.permutation(held_out)]


@dataclass(frozen=True)
class Reviews:
    """A data set under the name that every result obtained on it must carry."""

    name: str
    train: Split
    validation: Split
    test: Split
    unlabelled: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """What tells these labelled reviews from others in a line, however they are
        divided.

        >>> generate(100).fingerprint[:13]
        '100 reviews, '
        """
        lines = sorted(
            f"{label:g} {text}"
            for part in (self.train, self.validation, self.test)
            for text, label in zip(part.texts, part.labels, strict=True)
        )
        digest = hashlib.sha256("\0".join(lines).encode()).hexdigest()
        return f"{len(lines)} reviews, {digest[:12]}"


def read_csv(path: str | Path, *, seed: int = 0) -> Reviews:
    """A person's own reviews, a random 80% to train and 10% each to validate and test.

    The file is UTF-8 with the columns `text` and `label` (0, neg, negative; 1, pos,
    positive; in any case). The split is a function of the rows and `seed`.

    Raises:
        ValueError: with file, line and value: the file is not that, a review is empty
            or longer than the csv module allows (131,072 characters), or a label has
            fewer than 10 reviews.
    """
    texts, labels = [], []
    for line, text, label in _rows(Path(path)):
        if not text.strip():
            raise ValueError(f"{path}, line {line}: the review is empty: {text!r:.40}")
        if label.strip().lower() not in LABELS:
            known = ", ".join(LABELS)
            raise ValueError(f"{path}, line {line}: label {label[:40]!r}, not {known}")
        texts.append(text)
        labels.append(LABELS[label.strip().lower()])
    negative, positive = labels.count(0), labels.count(1)
    if min(negative, positive) < MIN_PER_LABEL:
        raise ValueError(
            f"{path}: {negative} negative and {positive} positive reviews: "
            f"at least {MIN_PER_LABEL} of each are needed to train, validate and test"
        )
    return _shuffled(f"csv: {path}", Split(texts, np.array(labels, np.float32)), seed)


def _rows(path: Path):
    """Yields (line, text, label) for each row of a CSV file."""
    decoded = decode_utf8(read_bytes(path), str(path), "save the file as UTF-8")
    reader = csv.reader(io.StringIO(decoded, newline=""), strict=True)
    line = 1
    try:
        header = next(reader, [])
        for column in ("text", "label"):
            if header.count(column) != 1:
                raise ValueError(
                    f"{path}, line 1: needs one column named {column!r}, "
                    f"the header is {','.join(header)[:80]!r}"
                )
        text, label = header.index("text"), header.index("label")
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}, line {line}: {len(row)} columns, not {len(header)}: "
                    f"{','.join(row)[:40]!r}: quote texts with commas"
                )
            if row:  # not a blank line
                yield line, row[text], row[label]
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}") from error


def generate(count: int = 400, *, seed: int = 0) -> Reviews:
    """Reviews of random words, `count` of them, that a small model learns in seconds.

    Half are positive; each has a few words that occur in reviews of its label alone.
    """
    rng = np.random.default_rng(seed)
    told = (
        ["awful", "boring", "dull", "weak", "bad", "poor", "flat", "stale"],
        ["great", "lovely", "moving", "fresh", "good", "fine", "warm", "sharp"],
    )
    neutral = ["the", "film", "is", "a", "story", "of", "and", "with", "scene", "actor"]
    labels = np.arange(count) % 2
    texts = []
    for label in labels:
        words = list(rng.choice(neutral, size=rng.integers(4, 24)))
        words += list(rng.choice(told[label], size=rng.integers(2, 6)))
        texts.append(" ".join(rng.permutation(words)))
    return _shuffled("generated", Split(texts, np.array(labels, np.float32)), seed)


def _shuffled(name: str, reviews: Split, seed: int) -> Reviews:
    rest, test = reviews.hold_out(10, seed)
    train, validation = rest.hold_out(9, seed)
    return Reviews(name, train, validation, test)
