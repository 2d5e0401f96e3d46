"""Data sets that tensorflow-datasets prepares, without TensorFlow.

Knows archives, directories and the network; what the examples mean, others know.
"""

import contextlib
import hashlib
import http.client
import io
import logging
import os
import shutil
import sys
import types
import unittest.mock
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import wrap_file


def load(
    name: str,
    splits: Sequence[str],
    data_dir: str | Path,
    download_dir: str | Path | None = None,
) -> tuple[str, list[list[dict[str, Any]]]]:
    """The name and version of a data set, and all examples of each of its `splits`.

    tensorflow-datasets prepares it in `data_dir`, once, from a file that is in
    `download_dir` (default: `data_dir`/downloads) or else is downloaded to there.

    Raises:
        ImportError: there is no tensorflow-datasets.
        ConnectionError: the file cannot be downloaded.
        ValueError: a directory or what is in it cannot be used.
    """
    import tensorflow_datasets as tfds  # takes a second, and is optional

    data_dir = Path(data_dir).expanduser()
    download_dir = Path(download_dir or data_dir / "downloads").expanduser()
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        if not builder.is_prepared():
            _prepare(builder, data_dir, download_dir)
        examples = [_read(builder, split) for split in splits]
    except (ImportError, ConnectionError):
        raise
    except Exception as error:  # anything: a full disk, a damaged file, other formats
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"cannot prepare {name} in {data_dir} from {download_dir}: give "
            f"other directories or remove what is damaged ({reason})"
        ) from error
    return f"{name} (tensorflow-datasets {builder.version})", examples


def _prepare(builder, data_dir: Path, download_dir: Path) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import extractor, resource

    [(url, file)] = builder.url_infos.items()
    # tensorflow-datasets finds the file in its own cache or in "manual". Left to
    # download it, it retries for minutes, without a time limit.
    manual = download_dir / "manual" / file.filename
    cached = resource.get_dl_fname(url, file.checksum)
    if not manual.exists() and not any(download_dir.rglob(f"{cached}.INFO")):
        download(url, file.checksum, manual)

    # On the way from these files to array_record files, tensorflow-datasets calls
    # TensorFlow only to open them with `tf.io.gfile`. For local files the built-in
    # functions do that, so they stand in for the length of the call.
    gfile = types.SimpleNamespace(GFile=open, isdir=os.path.isdir)
    stand_in = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile))
    itself = sys.modules[type(builder).__module__]
    print(f"preparing {builder.name} in {data_dir} (once, < 1 minute)", file=sys.stderr)
    tfds.disable_progress_bar()
    # By default it makes this directory in download_dir, which may be read-only.
    config = tfds.download.DownloadConfig(extract_dir=data_dir / "extracted")
    with (
        unittest.mock.patch.object(extractor, "tf", stand_in),
        unittest.mock.patch.object(itself, "tf", stand_in, create=True),
        Console(stderr=True).status(f"preparing {builder.name}"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        builder.download_and_prepare(download_dir=download_dir, download_config=config)


def download(url: str, sha256: str, path: Path) -> None:
    """Writes the file at `url` to `path`, whole or not at all.

    Raises:
        ConnectionError: it cannot be had, or is not the file that `sha256` names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two programs may download it at the same time.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        found = _fetch(url, partial)
        if found != sha256:
            raise ConnectionError(f"what {url} sent has sha256 {found}, not {sha256}")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _fetch(url: str, path: Path) -> str:
    """The SHA-256 of what it wrote."""
    with path.open("wb+") as file:
        try:
            # Ten seconds for each connection or read, not for all of it.
            with urllib.request.urlopen(url, timeout=10) as response:
                size = int(response.headers.get("Content-Length", 0))
                bar = {"description": path.stem, "console": Console(stderr=True)}
                with wrap_file(response, size, **bar) as source:
                    shutil.copyfileobj(source, file)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ConnectionError(f"cannot download {url}: {reason}") from error
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(builder, split: str) -> list[dict[str, Any]]:
    source = builder.as_data_source(split=split)
    # All at once: three times faster than one at a time.
    return source.__getitems__(range(len(source)))
