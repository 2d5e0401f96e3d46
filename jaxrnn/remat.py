"""Rematerialization over time: only the states between chunks are saved.

The residuals of a chunk are recomputed in the backward pass. So memory grows with the
number of chunks plus the length of one: with the square root of the time where both are
equal, inputs and outputs aside. Reference: Chen, Xu, Zhang and Guestrin (2016),
"Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import DenyList
from jaxtyping import PyTree

from jaxrnn.types import Array, Bool, CellState


def over_chunks(
    run: Callable[..., tuple[Array, CellState]],
    cell: nn.Module,
    state: CellState,
    inputs: PyTree,
    *,
    size: int,
    valid: Bool[Array, "t b"] | None = None,
    starts: Bool[Array, "t b"] | None = None,
    first: Bool[Array, "t b"] | None = None,
    reverse: bool = False,
) -> tuple[Array, CellState]:
    """What the recurrence `run(cell, state, inputs, ...)` returns, chunk by chunk.

    Chunks have one length, at most `size` steps; the last one is padded.

    Raises:
        ValueError: the number of steps is a symbolic one of `jax.export`.

    >>> import functools
    >>> from jaxrnn.scan import scan
    >>> class Sum(nn.Module):
    ...     def __call__(self, total, x):
    ...         return total + x, total + x
    >>> outputs, total = over_chunks(
    ...     functools.partial(scan, Sum.__call__), Sum(parent=None).bind({}),
    ...     jnp.zeros(1), jnp.ones((5, 1)), size=2,
    ... )
    >>> outputs.ravel().tolist(), total.tolist()
    ([1.0, 2.0, 3.0, 4.0, 5.0], [5.0])
    """
    time, rows = jax.tree.leaves(inputs)[0].shape[:2]
    if not isinstance(time, int):
        raise ValueError(
            f"remat_chunk needs a number of steps, got {time}: export a layer with "
            "remat_chunk=None, which has the same parameters and outputs"
        )
    number = math.ceil(time / size)
    size = math.ceil(time / number) if number else size
    missing = number * size - time
    if missing and valid is None:
        valid = jnp.ones((time, rows), bool)

    def cut(steps: Array) -> Array:
        steps = jnp.pad(steps, [(0, missing)] + [(0, 0)] * (steps.ndim - 1))
        return steps.reshape(number, size, *steps.shape[1:])

    initial_state = state

    def body(cell, state, chunk):
        inputs, masks = chunk
        outputs, state = run(
            cell, state, inputs, first_state=initial_state, reverse=reverse, **masks
        )
        return state, outputs

    over_time = nn.scan(
        nn.remat(body, prevent_cse=False),
        variable_broadcast=DenyList("intermediates"),
        variable_axes={"intermediates": 0},
        split_rngs={"params": False, DenyList("params"): True},
        reverse=reverse,
    )
    masks = {"valid": valid, "starts": starts, "first": first}
    state, outputs = over_time(cell, state, jax.tree.map(cut, (inputs, masks)))
    return outputs.reshape(number * size, *outputs.shape[2:])[:time], state
