"""Checkpoints of training states: the last two and the best of a run.

Orbax writes the arrays, of any sharding and from any number of processes. This file
decides what is kept, checks a state against the template, and verifies files::

    step_1200/state/        Orbax's files
    step_1200/record.json   metric, info, the leaves, the SHA-256 of Orbax's files

The record is written last: without it a checkpoint is incomplete and ignored. The state
may be any pytree of arrays. Nothing is unpickled.

Orbax's `CheckpointManager` would not do: its preservation policies remove old
checkpoints before a manifest of the new one can be written, rank damaged ones with the
others, and go by the order in which an object saved, not by the steps in the directory.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, SupportsFloat, SupportsIndex

import jax
from jax.dtypes import canonicalize_dtype
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from jaxrnn import manifest
from jaxrnn._validation import check_min, check_scalar

_NAME = re.compile("step_(0|[1-9][0-9]{0,17})")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or what was written is damaged."""


class Checkpoints:
    """The checkpoints of one run: the two with the greatest steps, and the best one.

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
        """Writes nothing: the first save creates `directory` if it does not exist.

        Best is the lowest metric with `mode` "min" and the highest with "max"; of ties
        the latest.

        Raises:
            ValueError: another `mode`, or a URL.
        """
        if mode not in ("min", "max"):
            raise ValueError(f'mode must be "min" or "max", not {mode!r}')
        if "://" in str(directory):
            raise ValueError(f"directory must be a path, got {directory!r}: mount it")
        self.mode: Literal["min", "max"] = mode
        self._sign = 1 if mode == "max" else -1
        self._directory = pathlib.Path(directory).absolute()
        import orbax.checkpoint as ocp  # Here, as the import is slow.

        self._args = ocp.args
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        self._whole: set[int] = set()  # steps that this object has verified

    @property
    def worst(self) -> float:
        """The metric for a checkpoint without one, best only if there is no other.

        >>> Checkpoints("run").worst, Checkpoints("run", mode="max").worst
        (inf, -inf)
        """
        return -self._sign * math.inf

    def steps(self) -> tuple[int, ...]:
        """The steps that have a complete checkpoint, ascending.

        >>> Checkpoints("no run was here").steps()
        ()
        """
        complete = [
            k for k in self._begun() if (self._path(k) / manifest.NAME).exists()
        ]
        return tuple(sorted(complete))

    def save(
        self,
        step: SupportsIndex,
        state: PyTree,
        *,
        info: dict[str, Any],
        metric: SupportsFloat,
    ) -> None:
        """Writes a checkpoint, then removes all but it, the last two and the best.

        When it returns the checkpoint is complete and `state` may be donated; if it
        raises, the checkpoints before are untouched. `step` and `metric` may be arrays
        without axes, as a training step returns them. `info` is whatever else a run
        needs to go on, and comes back as JSON has it (tuples as lists).

        Raises:
            ValueError: `metric` is NaN, which is neither better nor worse than others,
                or there is a good checkpoint of `step` (a damaged one is replaced).
            TypeError: `info` is no dict, or not JSON; a leaf of `state` is no array, or
                one of 64 bits that JAX would narrow.
            CheckpointError: it could not be written.

        >>> import tempfile, jax.numpy as jnp
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> for step, loss in [(1, 0.5), (2, 0.1), (3, 0.4), (4, 0.3)]:
        ...     checkpoints.save(step, {"w": jnp.ones(2)}, info={}, metric=loss)
        >>> checkpoints.steps()
        (2, 3, 4)
        """
        step, metric = check_min(0, step=step), check_scalar(metric=metric)
        if math.isnan(metric):
            raise ValueError(f"the metric of step {step} is NaN: not saved")
        damaged = {step}.intersection(self.steps())
        with contextlib.suppress(CheckpointError):
            if damaged and self._verified_record(step):
                raise ValueError(f"{self._directory} has a checkpoint of step {step}")
        leaves = _leaves_by_name(state)
        if not isinstance(info, dict):
            raise TypeError(f"info must be a dict, got {info!r:.80}")
        record = {"metric": metric, "info": info, "leaves": _specs(leaves)}
        try:
            json.dumps(record)  # before anything is written
        except (TypeError, ValueError) as error:
            raise TypeError(f"info must be JSON: {error}, in {info!r:.80}") from error
        with _in_one_line(
            f"cannot save step {step} in {self._directory}",
            of_the_disk=", make room there or give another directory",
        ):
            self._remove(damaged)
            path = self._path(step)
            path.mkdir(parents=True, exist_ok=True)
            _require_room(path, leaves)
            self._orbax.save(path / "state", args=self._args.StandardSave(leaves))
            good = []
            if jax.process_index() == 0:
                manifest.write(path, record)
                self._whole.discard(step)
                # Damaged ones are neither counted nor removed.
                good = self._ranked(self._whole_record)
            multihost_utils.sync_global_devices("jaxrnn.checkpoints.save")
            self._remove(set(good[1:]).difference([step], sorted(good)[-2:]))

    def restore(
        self, template: PyTree, which: Literal["last", "best"] | int = "last"
    ) -> tuple[PyTree, dict[str, Any]]:
        """The state and the info of the last checkpoint, the best, or that of a step.

        If that of `"last"` or `"best"` is damaged, the next candidate is restored with
        a `UserWarning`. The state has the structure, dtypes and shardings of
        `template`, whose leaves are arrays or `jax.ShapeDtypeStruct`s (without a
        sharding: the first device): also on other devices than it was saved from.

        Raises:
            CheckpointError: the checkpoint of that step is damaged, or all are.
            TypeError: as `save`, of a leaf of `template`.
            ValueError: there is no such checkpoint, or it holds another state than
                `template`: every difference is listed.

        >>> import tempfile, jax.numpy as jnp
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> checkpoints.save(5, {"w": jnp.ones(2)}, info={"epoch": 1}, metric=0.5)
        >>> checkpoints.restore({"w": jax.ShapeDtypeStruct((2,), jnp.float32)}, 5)
        ({'w': Array([1., 1.], dtype=float32)}, {'epoch': 1})
        """
        faults = []
        for step in self._find(which):
            try:
                record = self._verified_record(step)
            except CheckpointError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                warnings.warn(f"{fault}: going back to step {step}", stacklevel=2)
            return self._restore(template, step, record), record["info"]
        raise CheckpointError("; ".join(faults))

    def _restore(self, template: PyTree, step: int, record: dict[str, Any]) -> PyTree:
        leaves = _leaves_by_name(template)
        different = _differences(_specs(leaves), record["leaves"])
        if different:
            raise ValueError(
                f"the checkpoint of step {step} in {self._directory} holds another "
                f"state: {'; '.join(different)}"
            )
        with _in_one_line(
            f"cannot restore step {step} of {self._directory}, whose files are whole"
        ):
            wanted = {name: _abstract(leaf) for name, leaf in leaves.items()}
            restored = self._orbax.restore(
                self._path(step) / "state", args=self._args.StandardRestore(wanted)
            )
        treedef = jax.tree.structure(template)
        return treedef.unflatten(restored[name] for name in leaves)

    def _path(self, step: int) -> pathlib.Path:
        return self._directory / f"step_{step}"

    def _begun(self) -> list[int]:
        """The steps that have a directory, with a complete checkpoint or not."""
        names = [path.name for path in self._directory.glob("step_*")]
        return [int(name[5:]) for name in names if _NAME.fullmatch(name)]

    def _find(self, which: Literal["last", "best"] | int) -> Sequence[int]:
        """The steps to try, in this order."""
        steps = self.steps()
        if not steps:
            raise ValueError(f"there is no checkpoint in {self._directory}")
        if which == "last":
            return steps[::-1]
        if which == "best":
            ranked = self._ranked(self._record)
            return [*(step for step in steps if step not in ranked), *ranked]
        if not isinstance(which, str):
            which = check_min(0, which=which)
        if which not in steps:
            raise ValueError(
                f"there is no checkpoint {which!r} in {self._directory}: "
                f'ask for "last", "best" or one of the steps {steps}'
            )
        return [which]

    def _ranked(self, read: Callable[[int], dict[str, Any]]) -> list[int]:
        """The steps whose record can be read, the best first."""
        ranks = []
        for step in self.steps():
            with contextlib.suppress(CheckpointError):
                ranks.append((self._sign * read(step)["metric"], step))
        return [step for _, step in sorted(ranks, reverse=True)]

    def _record(self, step: int) -> dict[str, Any]:
        with self._damaged(step):
            return manifest.read(self._path(step))

    def _verified_record(self, step: int) -> dict[str, Any]:
        self._whole.discard(step)
        with self._damaged(step):
            record = manifest.verified(self._path(step))
        self._whole.add(step)
        return record

    def _whole_record(self, step: int) -> dict[str, Any]:
        """Verified once: reading all files would cost more than the save itself."""
        return (self._record if step in self._whole else self._verified_record)(step)

    def _damaged(self, step: int) -> contextlib.AbstractContextManager[None]:
        return _in_one_line(
            f"the checkpoint of step {step} in {self._directory} is damaged, remove it"
        )

    def _remove(self, steps: set[int]) -> None:
        """Removes these steps, and incomplete ones, as a killed run leaves them.

        The record is removed first: what is removed by half is incomplete.
        """
        if jax.process_index() == 0:
            for step in steps:
                (self._path(step) / manifest.NAME).unlink()
            for step in set(self._begun()).difference(self.steps()):
                shutil.rmtree(self._path(step))
        multihost_utils.sync_global_devices("jaxrnn.checkpoints.remove")


def _require_room(path: pathlib.Path, leaves: dict[str, Any]) -> None:
    """Checked first: Orbax raises too, but with many lines from many threads."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
    needed = 2 * size + 2**20  # for metadata
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(f"{free:,} bytes are free there, up to {needed:,} are needed")


@contextlib.contextmanager
def _in_one_line(message: str, of_the_disk: str = "") -> Iterator[None]:
    """Whatever fails inside becomes a CheckpointError of one line.

    Damaged files and full disks fail in JSON, in tensorstore or in orbax, with as many
    kinds of exceptions, some of many lines. `of_the_disk` is added to the message of
    what the system refuses.
    """
    try:
        yield
    except Exception as error:
        cause = next(iter(str(error).strip().splitlines()), "")
        if isinstance(error, OSError):
            message += of_the_disk
        raise CheckpointError(f"{message}: {type(error).__name__}: {cause}") from error


def _leaves_by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves in a flat dict: the containers are those of the template."""
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        called = name or "the state"
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"{called} must be an array, got {leaf!r}")
        kept = canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        if kept != leaf.dtype:
            raise TypeError(
                f"{called} is {leaf.dtype}, which would come back as {kept}: "
                "convert it, or set jax_enable_x64"
            )
        if name in leaves or not name.isprintable():
            raise ValueError(
                f"{name!r} must be printable, and the name of one leaf: rename it"
            )
        leaves[name] = leaf
    return leaves


def _specs(leaves: dict[str, Any]) -> dict[str, str]:
    """Dtype and shape of each, such as "float32[2, 3]"."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return [
        f"{name} is {found.get(name, 'missing')}, not {expected.get(name, 'expected')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """With the leaf's sharding, or on the first device."""
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
