"""Training states on disk: the last and the best of a run, in one directory.

orbax writes the arrays, of any sharding and from any number of processes. Here are
decided what is kept, what a checkpoint must match, and what is said of a damaged one:

    step_1200/state/        orbax's files
    step_1200/record.json   metric, info, the leaves, the SHA-256 of orbax's files

The record is written last: without it a checkpoint is not there. The state may be any
pytree of arrays; models and optimizers are not known here, and nothing is unpickled.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

_RECORD = "record.json"


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or what was written is damaged."""


class Checkpoints:
    """The checkpoints of one run: the one with the greatest step, and the best one.

    With several processes all of them make the same calls, on a shared directory.

    >>> import tempfile, jax.numpy as jnp
    >>> checkpoints = Checkpoints(tempfile.mkdtemp(), mode="max")
    >>> checkpoints.save(1, {"w": jnp.ones(2)}, info={"epoch": 1}, metric=0.8)
    >>> checkpoints.save(2, {"w": jnp.zeros(2)}, info={"epoch": 2}, metric=0.7)
    >>> state, info = checkpoints.restore({"w": jnp.empty(2)}, "best")
    >>> state["w"], info
    (Array([1., 1.], dtype=float32), {'epoch': 1})
    """

    def __init__(
        self, directory: str | os.PathLike, mode: Literal["min", "max"] = "min"
    ):
        """Only looks: the first save creates `directory` where there is none.

        Best is the least metric with `mode` "min" and the greatest with "max"; of equal
        ones the latest.

        Raises:
            ValueError: another `mode`.
        """
        if mode not in ("min", "max"):
            raise ValueError(f'mode must be "min" or "max", not {mode!r}')
        self.mode: Literal["min", "max"] = mode
        self._sign = 1 if mode == "max" else -1
        self._directory = pathlib.Path(directory).absolute()
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    @property
    def worst(self) -> float:
        """The metric of a checkpoint that is never the best, one in mid-epoch."""
        return -self._sign * math.inf

    def steps(self) -> tuple[int, ...]:
        """The steps that have a complete checkpoint, ascending."""
        records = self._directory.glob(f"step_[0-9]*/{_RECORD}")
        return tuple(sorted(int(path.parent.name[5:]) for path in records))

    def save(
        self, step: int, state: PyTree, *, info: dict[str, Any], metric: float
    ) -> None:
        """Writes a checkpoint, then removes those neither last nor best any longer.

        When it returns the checkpoint is complete and `state` may be donated; if it
        raises, the checkpoints before are untouched. `info` is whatever else a run
        needs to go on, and comes back as JSON has it (tuples as lists).

        Raises:
            ValueError: `metric` is NaN, which is neither better nor worse than others,
                or there is a good checkpoint of `step` (a damaged one is replaced).
            TypeError: `info` is not JSON.
            CheckpointError: it could not be written.
        """
        if math.isnan(metric):
            raise ValueError(f"the metric of step {step} is NaN: not saved")
        damaged = set()
        if step in self.steps():
            try:
                self._verified_record(step)
            except CheckpointError:
                damaged = {step}
            else:
                raise ValueError(f"{self._directory} has a checkpoint of step {step}")
        leaves = _leaves_by_name(state)
        record = {"metric": float(metric), "info": info, "leaves": _types(leaves)}
        json.dumps(record)  # what is not JSON fails before anything is written
        with _in_one_line(f"cannot save step {step} in {self._directory}"):
            self._remove(damaged)
            path = self._path(step)
            path.mkdir(parents=True, exist_ok=True)
            self._orbax.save(path / "state", args=ocp.args.StandardSave(leaves))
            if jax.process_index() == 0:
                _write_record(path, record | {"sha256": _digests(path)})
            multihost_utils.sync_global_devices("jaxrnn.checkpoints.save")
            self._remove(self._superseded())

    def restore(
        self, template: PyTree, which: Literal["last", "best"] | int = "last"
    ) -> tuple[PyTree, dict[str, Any]]:
        """The state and the info of the last checkpoint, the best, or that of a step.

        The state has the structure, dtypes and shardings of `template`, whose leaves
        are arrays or `jax.ShapeDtypeStruct`s (without a sharding: the first device). So
        it may be restored to other devices than it was saved from.

        Raises:
            CheckpointError: the checkpoint is damaged.
            ValueError: there is no such checkpoint, or it holds another state than
                `template`: every difference is listed.
        """
        step = self._find(which)
        record = self._verified_record(step)
        leaves = _leaves_by_name(template)
        differences = _differences(_types(leaves), record["leaves"])
        if differences:
            raise ValueError(
                f"the checkpoint of step {step} in {self._directory} holds another "
                f"state: {'; '.join(differences)}"
            )
        with self._damaged(step):
            wanted = {name: _abstract(leaf) for name, leaf in leaves.items()}
            restored = self._orbax.restore(
                self._path(step) / "state", args=ocp.args.StandardRestore(wanted)
            )
        treedef = jax.tree.structure(template)
        return treedef.unflatten(restored[name] for name in leaves), record["info"]

    def _path(self, step: int) -> pathlib.Path:
        return self._directory / f"step_{step}"

    def _find(self, which: Literal["last", "best"] | int) -> int:
        steps = self.steps()
        if not steps:
            raise ValueError(f"there is no checkpoint in {self._directory}")
        if which == "last":
            return steps[-1]
        if which == "best":
            return self._best({step: self._record(step)["metric"] for step in steps})
        if which not in steps:
            raise ValueError(
                f"there is no checkpoint {which!r} in {self._directory}: "
                f'ask for "last", "best" or one of the steps {steps}'
            )
        return which

    def _best(self, metrics: dict[int, float]) -> int:
        return max(metrics, key=lambda step: (self._sign * metrics[step], step))

    def _record(self, step: int) -> dict[str, Any]:
        with self._damaged(step):
            text, digest, *_ = (self._path(step) / _RECORD).read_text().split("\n")
            if digest != _sha256(text):
                raise ValueError(f"changed: {_RECORD}")
            return json.loads(text)

    def _verified_record(self, step: int) -> dict[str, Any]:
        record, found = self._record(step), _digests(self._path(step))
        with self._damaged(step):
            written = record["sha256"]
            changed = [name for name in written if found.get(name) != written[name]]
            if changed:
                raise ValueError("missing or changed: " + ", ".join(changed))
        return record

    def _damaged(self, step: int) -> contextlib.AbstractContextManager[None]:
        return _in_one_line(
            f"the checkpoint of step {step} in {self._directory} is damaged "
            f"(remove {self._path(step).name} to go on without it)"
        )

    def _superseded(self) -> set[int]:
        metrics = {}
        for step in self.steps():
            # A damaged one counts for nothing, and stays for its owner to judge.
            with contextlib.suppress(CheckpointError):
                metrics[step] = self._record(step)["metric"]
        return metrics.keys() - {max(metrics), self._best(metrics)}

    def _remove(self, steps: set[int]) -> None:
        """These steps, and all without a record, as a killed run leaves them.

        The record goes first: a checkpoint half removed is one that is not there.
        """
        if jax.process_index() == 0:
            for step in steps:
                (self._path(step) / _RECORD).unlink()
            for path in self._directory.glob("step_[0-9]*"):
                if not (path / _RECORD).exists():
                    shutil.rmtree(path)
        multihost_utils.sync_global_devices("jaxrnn.checkpoints.remove")


def _write_record(path: pathlib.Path, record: dict[str, Any]) -> None:
    """One line of JSON, and one with its digest."""
    text = json.dumps(record)
    partial = path / f"{_RECORD}.partial"
    partial.write_text(f"{text}\n{_sha256(text)}\n")
    partial.replace(path / _RECORD)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(path: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of every file of the state: orbax does not notice a flipped bit."""
    digests = {}
    for file in sorted((path / "state").rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            digests[file.relative_to(path).as_posix()] = digest
    return digests


def _leaves_by_name(tree: PyTree) -> dict[str, Any]:
    """A flat dict: containers are the template's business, not the file's."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _types(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    return [
        f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'expected')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(
        leaf.shape,
        leaf.dtype,
        sharding=sharding or SingleDeviceSharding(jax.local_devices()[0]),
    )


@contextlib.contextmanager
def _in_one_line(message: str) -> Iterator[None]:
    """Whatever fails inside becomes a CheckpointError of one line.

    Damaged files and full disks fail in JSON, in tensorstore or in orbax, with as many
    kinds of exceptions, some of many lines.
    """
    try:
        yield
    except Exception as error:
        cause = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{message}: {type(error).__name__}: {cause}") from error
