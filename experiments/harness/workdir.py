"""The directory of one run: settings, metrics, results, and who may write to it.

    settings.json     what the results depend on; a run with others is refused
    vocab.txt         the vocabulary, in the order of the ids
    metrics.jsonl     one JSON object a line
    results.json      written last: a run that has it is finished
    results-before.json   those of a finished run that goes on for more epochs
    checkpoints/      see jaxrnn.checkpoints
    lock              held by the program that trains; empty

Every file appears whole or not at all. Several processes must share the directory; the
first one writes. Nothing here depends on what is trained.
"""

import contextlib
import fcntl
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
OPTION = "--workdir"  # names the directory
USES_ITS_OWN = (
    "a trained model is used with the run's own settings, leave those options out"
)
# With other values of these a run can go on: it is not trained differently so far.
EXTENSIBLE = ("epochs", "patience")


@dataclass(frozen=True)
class About:
    """Settings that every run has."""

    dataset: str


class ClaimError(ValueError):
    """The directory belongs to another run or program, or cannot be written to."""


class HeldError(ClaimError):
    """Another program is at work in the directory."""


class WorkDir:
    """The work directory at `path`.

    >>> import tempfile
    >>> workdir = WorkDir(Path(tempfile.mkdtemp()))
    >>> with workdir.claimed({"seed": 0}):
    ...     workdir.finish({"accuracy": 0.5})
    >>> (WorkDir(workdir.path).results or {})["accuracy"]
    0.5
    """

    def __init__(self, path: str | Path, added: Mapping[str, Any] | None = None):
        """Only look: nothing is created before `claimed`.

        `added` has the settings that a settings.json of an earlier version does not
        have, with the values that make of a run what it was.
        """
        self.path = Path(path)
        self._added = dict(added or {})

    @contextlib.contextmanager
    def claimed(
        self, settings: dict[str, Any], typed: Sequence[str] = ()
    ) -> Iterator[None]:
        """Lock the directory for a run with `settings`, for the length of the block.

        A run that is there must have the same settings, but for more epochs and another
        patience: then it is not finished any more.

        Args:
            settings: What the results depend on; JSON.
            typed: Which of them the user gave, for the message.

        Raises:
            HeldError: another program holds the directory.
            ClaimError: the directory cannot be written to; it has files of another
                program, or a run without its settings; or it belongs to a run with
                other settings. The differences among `typed` are named; without one of
                those, all.
        """
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(self._locked())
                if not self._begun:
                    self._refuse_others(settings)
                    self._write("settings.json", settings)
                elif self._extended_by(settings):
                    # First the results: a program killed in between is not finished.
                    if self.results is not None:
                        before = self.path / "results-before.json"
                        (self.path / "results.json").replace(before)
                    self._write("settings.json", settings)
            multihost_utils.sync_global_devices("experiments.harness.workdir.claim")
            self._check(settings, typed)
            yield

    def _extended_by(self, settings: dict[str, Any]) -> bool:
        """Whether these are the settings of the run but for more epochs or patience."""
        found, wanted = self.settings or {}, json.loads(json.dumps(settings))
        new = {name: wanted[name] for name in EXTENSIBLE if name in wanted}
        return (
            _compared(found) != _compared(wanted)
            and _compared(found | new) == _compared(wanted)
            and (wanted.get("epochs") or 0) >= (found.get("epochs") or 0)
        )

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
                raise HeldError(
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
        """Whether a run has anything to keep, a checkpoint or results."""
        begun = self.results is not None or any(self.checkpoints.glob("*/record.json"))
        if begun and self.settings is None:
            raise ClaimError(
                f"there is a run in {self.path} without its settings.json: put that "
                f"back, or give another {OPTION}"
            )
        return begun

    def _refuse_others(self, settings: dict[str, Any]) -> None:
        """Refuse a directory with files of these names that another program wrote."""
        found, name = self.settings, ""
        if found is None and (self.path / "vocab.txt").exists():
            name = "vocab.txt"
        elif found and not found.keys() & settings:
            name = "settings.json"
        if name:
            raise ClaimError(
                f"{self.path} has a {name} of another program, which would be "
                f"replaced: give another {OPTION}"
            )

    def _check(self, settings: dict[str, Any], typed: Sequence[str]) -> None:
        found = self.settings
        if found is None:
            raise ValueError(
                f"process {jax.process_index()} does not see what process 0 wrote to "
                f"{self.path}: give a --workdir that all of them share"
            )
        everything = {**dict.fromkeys(found), **settings}
        with_typed = {name: everything[name] for name in typed if name in everything}
        advice = "give another --workdir, or its own settings to continue it"
        self.require(with_typed, advice)
        self.require(everything, advice)

    def require(self, settings: dict[str, Any], advice: str = "") -> None:
        """Refuse a run with other values of these settings.

        Raises:
            ClaimError: every difference is named, and the `advice`, by default that a
                trained model is used with its own settings.
        """
        wanted = json.loads(json.dumps(settings))  # As JSON has it: tuples are lists.
        found = {name: (self.settings or {}).get(name) for name in wanted}
        if _compared(found) != _compared(wanted):
            differences = describe_differences(found, wanted)
            raise ClaimError(
                f"work directory {self.path} belongs to a run with other settings "
                f"({differences}): {advice or USES_ITS_OWN}"
            )

    def require_trained(self, program: str) -> None:
        """Refuse a directory without a run; `program` is what trains one.

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
        remedy = f"put back the one of the run, or give another {OPTION}"
        found = self._read("settings.json", remedy)
        return None if found is None else self._added | found

    def settings_as(self, kind: type[Settings]) -> Settings:
        """Return the settings of the run as a `kind`, a dataclass of some of them.

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
        with self._readable("vocab.txt"):
            vocab = Vocab.load(self.path / "vocab.txt")
        expected = (self.settings or {}).get("vocabulary")
        if fingerprint(vocab) != expected:
            raise ValueError(
                f"{self.path}/vocab.txt is not the vocabulary of the run: it has "
                f"{fingerprint(vocab)}, the run {expected}"
            )
        return vocab

    def write_vocab(self, vocab: Vocab) -> None:
        """Write vocab.txt."""
        self._replace("vocab.txt", vocab.save)

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def results(self) -> dict[str, Any] | None:
        """The results of the finished run; None if it is not finished."""
        return self._read("results.json")

    def tell_unfinished(self, doing: str) -> None:
        """Say on standard error that the run is not finished, if it is not."""
        if self.results is None:
            print(
                f"the run in {self.path} is not finished: {doing} with what it has so "
                "far",
                file=sys.stderr,
            )

    def print_if_finished(self, summary: Callable[[dict[str, Any]], str]) -> bool:
        """Return whether the run is finished; if so print that and `summary(results)`.

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
        """Write the results of the run, with the versions and the machine."""
        self._write("results.json", environment() | results)

    def describe_outputs(self, command: str) -> str:
        """Return where the outputs are, and a `command` to go on with.

        >>> print(WorkDir("runs/a b").describe_outputs("python -m experiments.plot"))
        curves, metrics, results and checkpoints are in runs/a b
        next: python -m experiments.plot --workdir 'runs/a b'
        """
        return (
            f"curves, metrics, results and checkpoints are in {self.path}\n"
            f"next: {command} {OPTION} {shlex.quote(str(self.path))}"
        )

    def write_metrics(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write all metrics of the run so far, one JSON object a line."""
        self._write_text("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in lines))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What `write_metrics` wrote last; nothing if it wrote nothing."""
        path = self.path / "metrics.jsonl"
        found = []
        with self._readable("metrics.jsonl"):
            lines = path.read_bytes().splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(parse_object(line.decode()))
            except (RecursionError, ValueError) as error:
                raise ValueError(
                    f"{path} is damaged (line {number}: {error}): remove that line"
                ) from error
        return found

    def _read(self, name: str, remedy: str = "remove it") -> dict[str, Any] | None:
        with self._readable(name):
            return read_json(self.path / name, remedy)

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Raise ValueError for a file that the system does not let the block read."""
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"{self.path / name} cannot be read ({error.strerror}): make it "
                f"readable, or give another {OPTION}"
            ) from error

    def _write(self, name: str, content: Any) -> None:
        self._write_text(name, format_json(content))

    def _write_text(self, name: str, text: str) -> None:
        self._replace(name, lambda path: path.write_text(text, encoding="utf-8"))

    def _replace(self, name: str, make: Callable[[Path], Any]) -> None:
        """Replace the file of that name by what `make` writes to a given path."""
        if jax.process_index() == 0:
            replace_file(self.path / name, make, OPTION)


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without the path of a user's own data ("csv: mine.csv").

    A path can be written in many ways; the settings also have a hash of what was read.
    """
    kind, _, _ = str(settings.get("dataset")).partition(": ")
    return settings | {"dataset": kind}


def fingerprint(vocab: Vocab) -> str:
    """Return the size and the beginning of a hash of a vocabulary.

    >>> fingerprint(Vocab(("a", "b")))
    '2 tokens, 7e18f737311b'
    """
    digest = hashlib.sha256("\n".join(vocab.tokens).encode()).hexdigest()
    return f"{len(vocab)} tokens, {digest[:12]}"
