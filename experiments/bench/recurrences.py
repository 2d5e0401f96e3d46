"""The recurrence `h_t = a_t * h_{t-1} + b_t` alone, in several libraries.

A contender computes all states, and the gradients of `sum(states * cotangent)` with
respect to `a` and `b`; all compute the same values. This library's arrays have time
first, recurrentgemma's the batch, and each gets them as it wants them. memorax has no
such function: it compares as a layer, `memorax_min_gru`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.bench.frameworks import (
    SEED,
    Compiled,
    Task,
    UnavailableError,
    load,
    on_one_device,
)
from jaxrnn import placement
from jaxrnn.linear_recurrence import linear_recurrence


def arrays(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `a`, `b` and the cotangent of the states, `[batch, time, hidden]`.

    >>> a, b, cotangent = arrays(Task("min-gru", 2, 5, inputs=3, hidden=4))
    >>> a.shape, float(a.min()) > 0, float(a.max()) < 1
    ((2, 5, 4), True, True)
    """
    rng = np.random.default_rng(SEED)
    shape = (task.batch, task.time, task.hidden)
    a = rng.uniform(0.5, 1.0, shape)
    b, cotangent = rng.normal(size=(2, *shape))
    return tuple(x.astype(np.float32) for x in (a, b, cotangent))  # pyright: ignore[reportReturnType]


def ours(task: Task, *, devices: int | None = None) -> Compiled:
    """`jaxrnn.linear_recurrence`, the rows over `devices` devices or all.

    >>> states, d_a, d_b = ours(Task("min-gru", 2, 5, inputs=3, hidden=4), devices=1)()
    >>> states.shape, d_a.shape
    ((5, 2, 4), (5, 2, 4))
    """
    mesh = placement.data_mesh(devices, batch_size=task.batch)
    rows = P(None, "data")
    function = jax.shard_map(
        _differentiated(lambda a, b: linear_recurrence(a, b)[0]),
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
        check_vma=False,  # As jaxrnn.training.
    )
    placed = jax.device_put(_time_first(task), NamedSharding(mesh, rows))
    return Compiled(jax.jit(function), placed)


def associative_scan(task: Task) -> Compiled:
    """`jax.lax.associative_scan`, differentiated by JAX.

    >>> states, *_ = associative_scan(Task("min-gru", 2, 5, inputs=3, hidden=4))()
    >>> states.shape
    (5, 2, 4)
    """

    def states(a: Any, b: Any) -> Any:
        def combine(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        return jax.lax.associative_scan(combine, (a, b))[1]

    return _compiled(states, _time_first(task))


def recurrentgemma(task: Task, scan_type: str = "AUTO") -> Compiled:
    """`recurrentgemma.jax.linear_scan`, which on a CPU is a loop unless told otherwise.

    Raises:
        UnavailableError: it is not installed, or cannot be imported beside typeguard 4.
    """
    try:
        library = load("recurrentgemma.jax")
    except SyntaxError as error:  # of its annotations, which typeguard 4 parses
        raise UnavailableError("it needs typeguard 2") from error
    kind = library.ScanType[scan_type]

    def states(a: Any, b: Any) -> Any:
        return library.linear_scan(b, a, scan_type=kind)[0]

    return _compiled(states, jax.device_put(arrays(task)))


def memorax_min_gru(task: Task) -> Compiled:
    """The MinGRU layer of memorax: `jax.lax.associative_scan` over logarithms.

    Raises:
        UnavailableError: it is not installed.
    """
    library = load("memorax.networks.sequence_models")
    layer = library.Memoroid(library.MinGRUCell(task.hidden))
    mask = jnp.zeros((task.batch, task.time))
    x, *_ = task.arrays()
    params = jax.jit(layer.init)(jax.random.key(SEED), x[:1, :1], mask[:1, :1])

    def apply(params: Any, x: Any, lengths: Any) -> Any:
        return layer.apply(params, x, mask)[1]

    return on_one_device(apply, params, task)


def _time_first(task: Task) -> tuple[Any, ...]:
    return tuple(np.moveaxis(array, 0, 1) for array in arrays(task))


def _compiled(states: Callable, given: tuple[Any, ...]) -> Compiled:
    return Compiled(jax.jit(_differentiated(states)), jax.device_put(given))


def _differentiated(states: Callable) -> Callable:
    def differentiate(a: Any, b: Any, cotangent: Any) -> Any:
        found, pull = jax.vjp(states, a, b)
        return found, *pull(cotangent)

    return differentiate
