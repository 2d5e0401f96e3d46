"""Data sets that tensorflow-datasets prepares, without TensorFlow.

Knows archives, directories and the network, but not what the examples mean.
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
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import wrap_file

from experiments.harness.temporary import removed_at_exit

DATA_DIR = Path("~/tensorflow_datasets")  # tensorflow-datasets' own default


def load(
    name: str,
    splits: Sequence[str],
    data_dir: str | Path | None = None,
    download_dir: str | Path | None = None,
) -> tuple[str, list[list[dict[str, Any]]]]:
    """Return the name and version of a data set, and the examples of each split.

    tensorflow-datasets prepares it in `data_dir` (default: ~/tensorflow_datasets),
    once, from a file that is in `download_dir` (default: `data_dir`/downloads) or else
    is downloaded to there.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        ConnectionError: the file cannot be downloaded.
        ValueError: a directory or its content cannot be used, or one of the two above
            if a directory was named: then no other data may take their place.
    """
    try:
        return _load(
            name,
            splits,
            Path(data_dir or DATA_DIR).expanduser(),
            None if download_dir is None else Path(download_dir).expanduser(),
        )
    except (ImportError, ConnectionError) as error:
        if data_dir is None and download_dir is None:
            raise
        places = {"--data-dir": data_dir, "--download-dir": download_dir}
        named = " and ".join(f"{k} {v}" for k, v in places.items() if v is not None)
        raise ValueError(
            f"{named}: there is no {name} ({error}): name the folder that has it, or "
            "leave the option out to train on what there is"
        ) from error


def _load(
    name: str, splits: Sequence[str], data_dir: Path, download_dir: Path | None
) -> tuple[str, list[list[dict[str, Any]]]]:
    import tensorflow_datasets as tfds  # takes a second, and is optional

    if download_dir is None:
        download_dir = data_dir / "downloads"
    elif not download_dir.is_dir():  # not made: it may be mistyped
        raise ValueError(
            f"--download-dir {download_dir} is not a folder: name the one with the "
            f"file of {name}, or make a new one to download it to"
        )
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
    manual = download_dir / "manual" / file.filename
    # Left to download the file, tensorflow-datasets retries for minutes without a time
    # limit. It looks first into its own cache of downloads and into "manual".
    cached = resource.get_dl_fname(url, file.checksum)
    if not manual.exists() and not any(download_dir.rglob(f"{cached}.INFO")):
        download(url, file.checksum, manual)

    print(f"preparing {builder.name} in {data_dir} (once, < 1 minute)", file=sys.stderr)
    tfds.disable_progress_bar()
    # By default it extracts into download_dir, which may be read-only.
    config = tfds.download.DownloadConfig(extract_dir=data_dir / "extracted")
    with (
        _local_gfile(extractor, sys.modules[type(builder).__module__]),
        Console(stderr=True).status(f"preparing {builder.name}"),
        # It prints a summary that is not for the readers of this program's output.
        contextlib.redirect_stdout(io.StringIO()),
    ):
        builder.download_and_prepare(download_dir=download_dir, download_config=config)


@contextlib.contextmanager
def _local_gfile(*modules: types.ModuleType) -> Iterator[None]:
    """Replace the `tf` of these modules by the built-in functions, for the block.

    Even when writing array_record files tensorflow-datasets imports TensorFlow, only to
    open local files with `tf.io.gfile`.
    """
    gfile = types.SimpleNamespace(GFile=open, isdir=os.path.isdir)
    stand_in = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile))
    before = {module: vars(module)["tf"] for module in modules if "tf" in vars(module)}
    try:
        for module in before:
            vars(module)["tf"] = stand_in
        yield
    finally:
        for module, tf in before.items():
            vars(module)["tf"] = tf


def download(url: str, sha256: str, path: Path) -> None:
    """Write the file at `url` to `path`, whole or not at all.

    Raises:
        ConnectionError: it cannot be had, or is not the file that `sha256` names.
    """
    # Two programs may download it at the same time.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with removed_at_exit(partial):
        found = _fetch(url, partial)
        if found != sha256:
            raise ConnectionError(f"what {url} sent has sha256 {found}, not {sha256}")
        partial.rename(path)


def _fetch(url: str, path: Path) -> str:
    """Write what is at `url` to `path` and return its SHA-256."""
    try:
        # Ten seconds for each connection or read, not for all of it.
        with urllib.request.urlopen(url, timeout=10) as response:
            # Only now: without a network nothing is created.
            path.parent.mkdir(parents=True, exist_ok=True)
            size = int(response.headers.get("Content-Length", 0))
            bar = {"description": path.stem, "console": Console(stderr=True)}
            with path.open("wb+") as file, wrap_file(response, size, **bar) as source:
                shutil.copyfileobj(source, file)
                file.seek(0)
                return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(f"cannot download {url}: {reason}") from error


def _read(builder, split: str) -> list[dict[str, Any]]:
    source = builder.as_data_source(split=split)
    # All at once: three times faster than one at a time.
    return source.__getitems__(range(len(source)))
