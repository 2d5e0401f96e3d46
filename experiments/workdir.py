"""The directory of one run: settings, metrics, results, and who may write to it.

    settings.json     what the results depend on; a run with others is refused
    vocab.txt         the tokens that the model knows, by id
    metrics.jsonl     one JSON object a line
    results.json      written last: a run that has it is finished
    checkpoints/      see jaxrnn.checkpoints

Every file appears whole or not at all. Nothing here knows what is trained.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jaxrnn
from jaxrnn.text import Vocab

PACKAGES = ("flax", "jax", "numpy", "optax")
Settings = TypeVar("Settings")


class WorkDir:
    """The work directory at `path`.

    >>> import tempfile
    >>> workdir = WorkDir(Path(tempfile.mkdtemp()))
    >>> workdir.claim({"seed": 0})
    >>> workdir.finish({"accuracy": 0.5})
    >>> WorkDir(workdir.path).results
    {'accuracy': 0.5}
    """

    def __init__(self, path: Path):
        self.path = path

    def claim(self, settings: dict[str, Any]) -> None:
        """Makes the directory that of a run with `settings`, if it is not already.

        Raises:
            ValueError: it cannot be written to, or belongs to a run with other
                settings: every difference is named.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = self.settings
            if found is None:
                return self._write("settings.json", settings)
        except OSError as error:
            raise ValueError(
                f"cannot write to work directory {self.path} ({error.strerror}): "
                "give another --workdir"
            ) from error
        wanted = json.loads(json.dumps(settings))  # As JSON has it: tuples are lists.
        if found != wanted:
            raise ValueError(
                f"work directory {self.path} belongs to a run with other settings "
                f"({_differences(found, wanted)}): give another --workdir, or its own "
                "settings to continue it"
            )

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings of the run; None if there is no run."""
        return self._read("settings.json")

    def settings_as(self, kind: type[Settings]) -> Settings:
        """The settings of the run as a `kind`, a dataclass of some of them.

        Raises:
            ValueError: there is no run, or one of them is not among its settings.
        """
        known = self.settings or {}
        names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(
                f"{self.path}/settings.json is of another version, without {missing}"
            )
        return kind(**{name: known[name] for name in names})

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the run, which `claim` was given the fingerprint of.

        Raises:
            ValueError: the file is damaged, or another vocabulary's.
        """
        vocab = Vocab.load(self.path / "vocab.txt")
        expected = (self.settings or {}).get("vocabulary")
        if fingerprint(vocab) != expected:
            raise ValueError(
                f"{self.path}/vocab.txt is not the vocabulary of the run: it has "
                f"{fingerprint(vocab)}, the run {expected}"
            )
        return vocab

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> dict[str, Any] | None:
        """What the finished run found; None if it is not finished."""
        return self._read("results.json")

    def finish(self, results: dict[str, Any]) -> None:
        self._write("results.json", results)

    def write_metrics(self, lines: Sequence[dict[str, Any]]) -> None:
        """All metrics of the run so far, one JSON object a line."""
        self._replace("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in lines))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What `write_metrics` wrote last; nothing if it wrote nothing."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return [dict(json.loads(line)) for line in lines]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it") from error

    def _read(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None if there is no such file."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): remove it") from error
        return content

    def _write(self, name: str, content: Any) -> None:
        self._replace(name, json.dumps(content, indent=2) + "\n")

    def _replace(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path / name)


def fingerprint(vocab: Vocab) -> str:
    """What tells one vocabulary from another in a line.

    >>> fingerprint(Vocab(("a", "b")))
    '2 tokens, 7e18f737311b'
    """
    digest = hashlib.sha256("\n".join(vocab.tokens).encode()).hexdigest()
    return f"{len(vocab)} tokens, {digest[:12]}"


def environment() -> dict[str, Any]:
    """What a result must say about where it came from: versions and machine."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {
            "jaxrnn": jaxrnn.__version__,
            "python": platform.python_version(),
            **versions,
        },
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = sorted(
        name for name in found.keys() | wanted if found.get(name) != wanted.get(name)
    )
    return ", ".join(
        f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in names
    )
