"""The processes of one run, on one machine or many, with JAX's distributed runtime.

All run the same program with the same arguments and connect before JAX starts. Process
0 prints and writes for all of them. If a process is lost the others end, too: with a
message from here, or with JAX's if it was process 0, which runs the coordination
service.
"""

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import jax
from jax.experimental import multihost_utils

from experiments.harness.arguments import default_is
from experiments.harness.validation import COUNT

Made = TypeVar("Made")
LOST = 30  # seconds without a heartbeat after which a process counts as lost
# Environment variables with the number of processes. A single process needs no cluster:
# JAX would give it only one of its GPUs, or wait for a host called "local".
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
ADDRESSES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# JAX's messages where there is no cluster, or where it runs already, as in a notebook.
NO_CLUSTER = ("coordinator_address should be defined", "must be called before any JAX")
# Parts of JAX's messages when another process is lost.
LOST_CONTACT = ("Gloo", "UNAVAILABLE")


@dataclass(frozen=True)
class Cluster:
    """Run on several processes or machines."""

    coordinator: Annotated[str | None, default_is("none")] = None
    """HOST:PORT of process 0, with a free port.
    JAX finds it by itself on TPU pods, Slurm and Open MPI."""
    num_processes: Annotated[int | None, default_is("none")] = None
    """With --coordinator: number of processes. 1: do not look for others."""
    process_id: Annotated[int | None, default_is("none")] = None
    """With --coordinator: index of this process, from 0."""

    def check(self) -> None:
        """Check that the options fit together.

        Raises:
            ValueError: they do not; the option is named.
        """
        COUNT.check(self, "num_processes")
        if self.coordinator is None:
            if self.process_id is not None or (self.num_processes or 1) > 1:
                raise ValueError(
                    "--num-processes and --process-id need --coordinator HOST:PORT"
                )
            return
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator}")
        if self.num_processes is None or self.process_id is None:
            raise ValueError("--coordinator needs --num-processes and --process-id")
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process-id must be from 0 to {self.num_processes - 1}, got "
                f"{self.process_id}"
            )

    def join(self) -> None:
        """Connect to the other processes, if there are any, before JAX starts.

        Raises:
            ValueError: as `check`, or there is a cluster that cannot be joined.
        """
        self.check()
        alone = self.coordinator is None and _is_alone(os.environ)
        if self.num_processes == 1 or alone or not self._initialize():
            return
        print(
            f"process {jax.process_index()} of {jax.process_count()}: if one is lost "
            "all end, and the same command, started again on each, continues",
            file=sys.stderr,
        )
        if jax.process_index() > 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _initialize(self) -> bool:
        """Return whether there is a cluster."""
        try:
            with warnings.catch_warnings():
                # About a package that JAX needs only for Kubernetes.
                warnings.simplefilter("ignore")
                jax.distributed.initialize(
                    self.coordinator,
                    self.num_processes,
                    self.process_id,
                    heartbeat_timeout_seconds=LOST,
                )
        except (RuntimeError, ValueError) as error:
            if self.coordinator is None and any(x in str(error) for x in NO_CLUSTER):
                return False
            raise ValueError(
                f"cannot join the cluster ({error}): give --coordinator, "
                "--num-processes and --process-id, or --num-processes 1 to run alone"
            ) from error
        return True


def _is_alone(environment: Mapping[str, str]) -> bool:
    """Return whether the environment says that there is only one process.

    >>> _is_alone({"SLURM_NTASKS": "1"}), _is_alone({"SLURM_NTASKS": "2"})
    (True, False)
    """
    counts = [environment[n].count(",") + 1 for n in ADDRESSES if n in environment]
    for name in COUNTS:
        if name in environment:
            if not environment[name].isdecimal():
                raise ValueError(
                    f"the environment variable {name} must be a number of processes, "
                    f"got {environment[name]!r}: correct or unset it"
                )
            counts.append(int(environment[name]))
    return counts != [] and max(counts) == 1


def in_turn(work: Callable[[], Made]) -> Made:
    """Return `work()`, called by process 0 first: the others find what it prepares.

    >>> in_turn(lambda: 2)
    2
    """
    if jax.process_index() == 0:
        made = work()
        multihost_utils.sync_global_devices("experiments.harness.distributed.in_turn")
        return made
    multihost_utils.sync_global_devices("experiments.harness.distributed.in_turn")
    return work()


def explain(error: Exception) -> str:
    """Return the message of an error, which in a cluster may be a lost process.

    >>> explain(ValueError("Gloo all-reduce failed"))
    'Gloo all-reduce failed'
    """
    said = str(error)
    if jax.distributed.is_initialized() and any(word in said for word in LOST_CONTACT):
        return (
            f"another process of the run was lost ({said}): the same command, started "
            "again on each, continues"
        )
    return said


def leave(code: int) -> int:
    """Return the exit code of a program that failed; in a cluster, exit at once.

    Python's own exit would wait for the others, which may be waiting for this process.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
