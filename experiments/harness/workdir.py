"""The directory of one run: settings, metrics, results, and who may write to it.

    settings.json     what the results depend on; a run with others is refused
    vocab.txt         the tokens that the model knows, by id
    metrics.jsonl     one JSON object a line
    results.json      written last: a run that has it is finished
    checkpoints/      see jaxrnn.checkpoints
    lock              held by the program that trains; empty

Every file appears whole or not at all. Of several processes, which must share the
directory, the first one writes. Nothing here knows what is trained.
"""

import contextlib
import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import jax
from jax.experimental import multihost_utils

from experiments.harness.files import (
    describe_differences,
    format_json,
    matches_type,
    parse_object,
    read_json,
    replace_file,
    unwritable_message,
)
from experiments.harness.provenance import environment
from jaxrnn.text import Vocab

Settings = TypeVar("Settings")
OPTION = "--workdir"  # says where the directory is


@dataclass(frozen=True)
class About:
    """What the settings of every run have."""

    dataset: str


class ClaimError(ValueError):
    """A run cannot have the directory: it is another's, or cannot be written to."""


class WorkDir:
    """The work directory at `path`.

    >>> import tempfile
    >>> workdir = WorkDir(Path(tempfile.mkdtemp()))
    >>> with workdir.claimed({"seed": 0}):
    ...     workdir.finish({"accuracy": 0.5})
    >>> (WorkDir(workdir.path).results or {})["accuracy"]
    0.5
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @contextlib.contextmanager
    def claimed(self, settings: dict[str, Any]) -> Iterator[None]:
        """Makes the directory that of a run with `settings`, if it is not already, and
        keeps other programs from it until the end of the block.

        Raises:
            ClaimError: it cannot be written to, another program holds it, or it belongs
                to a run with other settings: every difference is named.
        """
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(self._locked())
                if not self._begun:
                    self._write("settings.json", settings)
            multihost_utils.sync_global_devices("experiments.workdir.claim")
            self._check(settings)
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a")
        except OSError as error:
            raise ClaimError(unwritable_message(self.path, error, OPTION)) from error
        with lock:
            try:
                # The system lets go of it when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ClaimError(
                    f"another program is at work in {self.path}: wait for its end, or "
                    "give another --workdir"
                ) from error
            except OSError as error:
                raise ClaimError(
                    unwritable_message(self.path, error, OPTION)
                ) from error
            yield

    @property
    def _begun(self) -> bool:
        """Whether there is anything of a run: one that ended before its first
        checkpoint does not hold the directory for its settings."""
        if self.settings is None:
            return False
        return self.results is not None or any(self.checkpoints.glob("*/record.json"))

    def _check(self, settings: dict[str, Any]) -> None:
        found = self.settings
        if found is None:
            raise ValueError(
                f"process {jax.process_index()} does not see what process 0 wrote to "
                f"{self.path}: give a --workdir that all of them share"
            )
        self.require({**dict.fromkeys(found), **settings})

    def require(self, settings: dict[str, Any]) -> None:
        """Refuses another run than one with these settings, among others.

        Raises:
            ClaimError: every difference is named.
        """
        wanted = json.loads(json.dumps(settings))  # As JSON has it: tuples are lists.
        found = {name: (self.settings or {}).get(name) for name in wanted}
        if _compared(found) != _compared(wanted):
            differences = describe_differences(found, wanted)
            raise ClaimError(
                f"work directory {self.path} belongs to a run with other settings "
                f"({differences}): give another --workdir, or its own settings to "
                "continue it"
            )

    def require_trained(self, program: str) -> None:
        """Refuses a directory without a run; `program` is what makes one.

        Raises:
            ValueError: it is such a directory.
        """
        if self.settings is None:
            raise ValueError(
                f"there is no trained model in {self.path}: train one with "
                f"`python -m experiments.{program} --workdir {self.path}`"
            )

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings of the run; None if there is no run."""
        return read_json(self.path / "settings.json")

    def settings_as(self, kind: type[Settings]) -> Settings:
        """The settings of the run as a `kind`, a dataclass of some of them.

        Raises:
            ValueError: there is no run, or one of them is not among its settings, or
                of another type.
        """
        known, hints = self.settings or {}, get_type_hints(kind)
        missing = [name for name in hints if name not in known]
        if missing:
            raise ValueError(
                f"{self.path}/settings.json is of another program or version: it has "
                f"no {', '.join(missing)}"
            )
        for name, hint in hints.items():
            if not matches_type(known[name], hint):
                raise ValueError(
                    f"{self.path}/settings.json is damaged: {name} is "
                    f"{known[name]!r:.40}, not {getattr(hint, '__name__', hint)}"
                )
        return kind(**{name: known[name] for name in hints})

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the run, whose fingerprint the settings have.

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

    def write_vocab(self, vocab: Vocab) -> None:
        """The vocabulary of the run."""
        self._replace("vocab.txt", vocab.save)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> dict[str, Any] | None:
        """What the finished run found; None if it is not finished."""
        return read_json(self.path / "results.json")

    def tell_unfinished(self, doing: str) -> None:
        """Says, if the run is not finished, that the program is `doing` what it can."""
        if self.results is None:
            print(
                f"the run in {self.path} is not finished: {doing} with what it has so "
                "far",
                file=sys.stderr,
            )

    def print_if_finished(self, summary: Callable[[dict[str, Any]], str]) -> bool:
        """Whether the run is finished; then prints that, and `summary(results)`.

        Raises:
            ValueError: the results are not what `summary` expects.
        """
        results = self.results
        if results is None:
            return False
        try:
            found = summary(results)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path}/results.json is damaged ({error!r}): remove it"
            ) from error
        print(f"{self.path} holds a finished run\n{found}")
        return True

    def finish(self, results: dict[str, Any]) -> None:
        """Writes what the finished run found, with the versions and the machine."""
        self._write("results.json", environment() | results)

    def write_metrics(self, lines: Sequence[dict[str, Any]]) -> None:
        """All metrics of the run so far, one JSON object a line."""
        self._write_text("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in lines))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What `write_metrics` wrote last; nothing if it wrote nothing."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        found = []
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                found.append(parse_object(line.decode()))
            except (RecursionError, ValueError) as error:
                raise ValueError(
                    f"{path} is damaged (line {number}: {error}): remove that line"
                ) from error
        return found

    def _write(self, name: str, content: Any) -> None:
        self._write_text(name, format_json(content))

    def _write_text(self, name: str, text: str) -> None:
        self._replace(name, lambda path: path.write_text(text, encoding="utf-8"))

    def _replace(self, name: str, make: Callable[[Path], Any]) -> None:
        """The file of that name becomes what `make` writes to the path it is given."""
        if jax.process_index() == 0:
            replace_file(self.path / name, make, OPTION)


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a person's own data ("csv: mine.csv") the kind without the path, which can be
    spelled in many ways: beside it stands a hash of what was read."""
    kind, _, _ = str(settings.get("dataset")).partition(": ")
    return settings | {"dataset": kind}


def fingerprint(vocab: Vocab) -> str:
    """What tells one vocabulary from another in a line.

    >>> fingerprint(Vocab(("a", "b")))
    '2 tokens, 7e18f737311b'
    """
    digest = hashlib.sha256("\n".join(vocab.tokens).encode()).hexdigest()
    return f"{len(vocab)} tokens, {digest[:12]}"
