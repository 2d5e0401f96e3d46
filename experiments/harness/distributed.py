"""The processes of one run, on one machine or many: JAX's own distributed runtime.

All run the same program with the same arguments and meet before JAX starts. The first
one, process 0, prints and writes for all of them. If one is lost the others end, too:
with our words, or if it was process 0, which hears all hearts beat, with JAX's.
"""

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from experiments.harness.validation import COUNT

Made = TypeVar("Made")
LOST = 30  # seconds without a sign of life, after which a process counts as lost
# How many processes there are, where that stands in the environment. One alone needs no
# cluster: JAX's would leave it a single one of its GPUs, or wait for a host "local".
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
ADDRESSES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# What JAX says where there is no cluster; or where it runs already, as in a notebook.
NO_CLUSTER = ("coordinator_address should be defined", "must be called before any JAX")
# By what JAX's messages tell that a process is gone.
LOST_CONTACT = ("Gloo", "UNAVAILABLE")


@dataclass(frozen=True)
class Cluster:
    """Where the other processes of the run are."""

    coordinator: str | None = None
    """HOST:PORT of process 0, a free port.
    Without it JAX looks for others by itself, on TPU pods, Slurm and Open MPI."""
    num_processes: int | None = None
    """With --coordinator: how many processes there are. 1 looks for no others."""
    process_id: int | None = None
    """With --coordinator: which of them this one is, from 0."""

    def check(self) -> None:
        """Whether the three fit together.

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
        """Meets the other processes, if there are any, before JAX starts.

        Raises:
            ValueError: as `check`, or JAX finds a cluster here that cannot be joined.
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
        """Whether there is a cluster."""
        try:
            with warnings.catch_warnings():
                # Of a package that JAX would need to look for others in Kubernetes.
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
    """Whether the environment says that there is one process.

    >>> _is_alone({"SLURM_NTASKS": "1"}), _is_alone({"SLURM_NTASKS": "2"})
    (True, False)
    """
    counts = [int(environment[name]) for name in COUNTS if name in environment]
    counts += [environment[n].count(",") + 1 for n in ADDRESSES if n in environment]
    return counts != [] and max(counts) == 1


def in_turn(work: Callable[[], Made]) -> Made:
    """What `work` makes; process 0 first, so that the others find what it prepares.

    >>> in_turn(lambda: 2)
    2
    """
    if jax.process_index() == 0:
        made = work()
        multihost_utils.sync_global_devices("experiments.cluster.in_turn")
        return made
    multihost_utils.sync_global_devices("experiments.cluster.in_turn")
    return work()


def explain(error: Exception) -> str:
    """What to say of an error: in a cluster its cause may be that another process died.

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
    """The exit code of a program that failed; of one in a cluster, it ends at once.

    Python's way out would wait for the others, who may be waiting for this one.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
