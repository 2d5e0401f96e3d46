"""The devices that share the rows of a batch."""

import jax
from jax.sharding import Mesh

from jaxrnn import placement


def make_mesh(rows: int, devices: int | None = None) -> Mesh:
    """Of `devices` of each process, or as many of them as divide the rows of a batch.

    Raises:
        ValueError: `devices`, or the processes, do not divide them.

    >>> make_mesh(3, devices=1).size
    1
    """
    processes = jax.process_count()
    if devices is None:
        counts = range(1, jax.local_device_count() + 1)
        divisors = [count for count in counts if rows % (count * processes) == 0]
        devices = max(divisors, default=1)
    if rows % (devices * processes):
        raise ValueError(
            f"{devices * processes} devices do not divide a batch of {rows}: give a "
            "batch that they divide, or another number of devices"
        )
    return placement.data_mesh(devices)
