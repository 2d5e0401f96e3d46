"""Placement of arrays: a mesh, batches sharded over it, states replicated on it.

The mesh has the one axis "data" and spans the devices of all processes, grouped by
process, so each process holds consecutive rows of a batch and needs to make only those.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr
from jaxtyping import Array, ArrayLike, PyTree

from jaxrnn._validation import check_min


def data_mesh(num_devices: int | None = None, *, batch_size: int | None = None) -> Mesh:
    """The first `num_devices` devices of each process, or all, along the axis "data".

    With `batch_size` and no `num_devices`, as many of them as divide the batch.

    >>> data_mesh(1).size, data_mesh(batch_size=3).size
    (1, 1)

    Raises:
        ValueError: a process has fewer devices; `num_devices` or `batch_size` is below
            1; the devices, or the processes, do not divide the batch.
    """
    if batch_size is not None:
        batch_size = check_min(1, batch_size=batch_size)
        num_devices = _dividing_devices(batch_size, num_devices)
    devices: list[Any] = []
    for process in range(jax.process_count()):
        own = jax.local_devices(process_index=process)
        if num_devices is not None and check_min(1, num_devices=num_devices) > len(own):
            raise ValueError(
                f"{num_devices} devices asked for, JAX sees {len(own)}: ask for fewer, "
                "or on a CPU raise jax_num_cpu_devices before JAX is first used"
            )
        devices += own[:num_devices]
    return Mesh(np.array(devices), ("data",))


def _dividing_devices(batch_size: int, num_devices: int | None) -> int:
    """The devices of each process, given or as many as divide the batch."""
    processes = jax.process_count()
    if num_devices is None:
        counts = range(1, jax.local_device_count() + 1)
        divisors = [n for n in counts if batch_size % (n * processes) == 0]
        num_devices = max(divisors, default=1)
    total = check_min(1, num_devices=num_devices) * processes
    if batch_size % total:
        raise ValueError(
            f"{total} devices do not divide a batch of {batch_size}: give a batch that "
            "they divide, or another number of devices"
        )
    return num_devices


def local_batch_slice(rows: int, mesh: Mesh) -> slice:
    """The rows of a global batch that the devices of this process hold.

    >>> local_batch_slice(4, data_mesh(1))
    slice(0, 4, None)

    Raises:
        ValueError: the devices of `mesh` do not divide the rows.
    """
    if rows % mesh.size:
        raise ValueError(
            f"{mesh.size} devices do not divide {rows} rows: "
            "fill them up with batching.pad_rows"
        )
    each, devices = rows // mesh.size, mesh.devices.ravel().tolist()
    first = devices.index(mesh.local_devices[0])
    return slice(first * each, (first + len(mesh.local_devices)) * each)


def shard_batch(batch: dict[str, ArrayLike], mesh: Mesh) -> dict[str, Array]:
    """The batch split along the first axis over the devices of `mesh`.

    With several processes each gives its own rows, `local_batch_slice`. The steps of
    `jaxrnn.training` call this on every batch; one that is already split is returned
    unchanged.

    Raises:
        ValueError: arrays without rows, or rows that the devices do not divide.

    >>> shard_batch({"x": np.ones(2)}, data_mesh(1))
    {'x': Array([1., 1.], dtype=float32)}
    """
    return shard_leading_axis(batch, mesh, "batch")


def shard_leading_axis(tree: PyTree, mesh: Mesh, name: str) -> PyTree:
    """Like `shard_batch`, for any pytree of arrays; messages call it `name`.

    >>> shard_leading_axis((np.ones(2), np.zeros(4)), data_mesh(1), "carry")
    (Array([1., 1.], dtype=float32), Array([0., 0., 0., 0.], dtype=float32))
    """
    sharding = NamedSharding(mesh, P("data"))
    if _has_sharding(tree, sharding):
        return tree
    devices = len(mesh.local_devices)
    for path, array in jax.tree.leaves_with_path(tree):
        shape = np.shape(array)
        if not shape or shape[0] % devices:
            rows = f"{shape[0]} rows" if shape else "no axis of rows"
            raise ValueError(
                f"{name}{keystr(path)} has {rows}, which {devices} devices do not "
                "divide: fill it up with batching.pad_rows"
            )
    return jax.make_array_from_process_local_data(sharding, tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """`tree` on every device of `mesh`; with several processes, that of the first one.

    The steps do this to every state they are given; after the first step it is there
    and nothing is done.

    >>> replicate({"w": np.ones(2)}, data_mesh(1))
    {'w': Array([1., 1.], dtype=float32)}
    """
    sharding = NamedSharding(mesh, P())
    if _has_sharding(tree, sharding):
        return tree
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(_from_first_process(leaves, sharding))


def _from_first_process(leaves: Sequence[Any], sharding: NamedSharding) -> list[Array]:
    """Processes may differ in a last bit: all take the values of the first one.

    Keys are sent as their key data.
    """
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    numbers = [
        jax.random.key_data(leaf) if key else leaf
        for leaf, key in zip(leaves, is_key, strict=True)
    ]
    placed = [
        jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
        for x in multihost_utils.broadcast_one_to_all(numbers)
    ]
    return [
        jax.random.wrap_key_data(x, impl=jax.random.key_impl(leaf)) if key else x
        for x, leaf, key in zip(placed, leaves, is_key, strict=True)
    ]


def _has_sharding(tree: PyTree, sharding: NamedSharding) -> bool:
    return all(getattr(x, "sharding", None) == sharding for x in jax.tree.leaves(tree))
