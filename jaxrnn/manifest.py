"""The manifest of a checkpoint directory: its metadata and the SHA-256 of its files.

Files are in `state/`. `record.json` is written after them: a line of JSON and a line
with the SHA-256 of it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "record.json"
_ENTRIES = {"metric": float, "info": dict, "leaves": dict, "sha256": dict}


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes the record of the directory at `path` atomically.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp())
    >>> write(path, {"metric": 0.5, "info": {}, "leaves": {"w": "float32[2]"}})
    >>> read(path)["leaves"]
    {'w': 'float32[2]'}
    """
    text = json.dumps(record | {"sha256": _digests(path)})
    partial = path / f"{NAME}.partial"
    partial.write_text(f"{text}\n{_sha256(text)}\n")
    partial.replace(path / NAME)


def read(path: Path) -> dict[str, Any]:
    """The record of the directory at `path`.

    Raises:
        Exception: of any kind, where it cannot be read or is not as it was written.
    """
    text, digest, *_ = (path / NAME).read_text().split("\n")
    if digest != _sha256(text):
        raise ValueError(f"changed: {NAME}")
    record = json.loads(text)
    for name, kind in _ENTRIES.items():
        if not isinstance(record[name], kind):
            raise ValueError(f"{name} in {NAME} is no {kind.__name__}")
    spelled = [*record["leaves"], *record["leaves"].values(), *record["sha256"]]
    if not all(map(str.isprintable, spelled)):
        raise ValueError(f"control characters in {NAME}")
    return record


def verified(path: Path) -> dict[str, Any]:
    """The record, as `read`, after checking the SHA-256 of every file.

    Raises:
        Exception: as `read`, or because a file is missing or changed.
    """
    record, found = read(path), _digests(path)
    written = record["sha256"]
    changed = [name for name in written if found.get(name) != written[name]]
    if changed:
        raise ValueError("missing or changed: " + ", ".join(changed))
    return record


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(path: Path) -> dict[str, str]:
    """The SHA-256 of every file in `state/`: Orbax does not notice a flipped bit."""
    digests = {}
    for file in sorted((path / "state").rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            digests[file.relative_to(path).as_posix()] = digest
    return digests
