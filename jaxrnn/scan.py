"""The reference recurrence: `flax.linen.scan` of any cell over time.

It handles padding and resets, and defines what every faster path must compute. Arrays
are time-major, the batch is one axis. Reverse is the same scan run backwards over the
same steps: nothing is flipped or gathered, and the final state is simply the scan's
carry.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import DenyList
from jaxtyping import PyTree

from jaxrnn.types import Array, Bool, CellState

# (cell, state, inputs of one step) -> (state, output)
Step = Callable[..., tuple[CellState, Array]]


def scan(
    step: Step,
    cell: nn.Module,
    state: CellState,
    inputs: PyTree,
    *,
    valid: Bool[Array, "t b"] | None = None,
    starts: Bool[Array, "t b"] | None = None,
    first: Bool[Array, "t b"] | None = None,
    first_state: CellState = None,
    fresh_state: CellState = None,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[Array, CellState]:
    """Applies `step` to one time step after the other.

    One call is `step(cell, state, inputs[t]) -> (state, output)`.

    Args:
        step: one step; it may create and read variables of `cell`, draw random numbers
            (others at each step) and sow intermediates, but not update variables.
        cell: a bound Flax module.
        state: the state before the first step read; every leaf leads with the batch.
        inputs: `[t, b, ...]`, one array or more.
        valid: false at padding, where the state stays as it is and the output is zero.
        starts: true where a sequence starts, with `fresh_state`, whatever came before.
        first: true at the steps of the sequence that starts with `first_state` instead.
        first_state: like `state`, which it is if None.
        fresh_state: like `state`; needed with `starts`.
        reverse: read the last step first. Outputs stay at the steps they belong to.
        unroll: steps in an iteration of the loop, as in `jax.lax.scan`.

    Returns:
        The outputs, `[t, b, ...]`, and the state after the last step read.

    >>> class Sum(nn.Module):
    ...     def __call__(self, total, x):
    ...         return total + x, total + x
    >>> outputs, total = scan(
    ...     Sum.__call__, Sum(parent=None).bind({}), jnp.zeros(1),
    ...     jnp.array([[1.0], [2.0], [3.0]]), valid=jnp.array([[True], [False], [True]])
    ... )
    >>> outputs.ravel().tolist(), total.tolist()
    ([1.0, 0.0, 4.0], [4.0])
    """
    if first_state is None:
        first_state = state

    def body(cell, state, step_inputs):
        x, valid, starts, first = step_inputs
        state = restart(state, first_state, fresh_state, starts, first)
        next_state, output = step(cell, finite_at_padding(state, valid), x)
        if valid is not None:
            next_state = select(valid, next_state, state)
            output = select(valid, output, jnp.zeros_like(output))
        return next_state, output

    over_time = nn.scan(
        body,
        # What a cell only reads is the same at all steps; what it sows has a time axis.
        variable_broadcast=DenyList("intermediates"),
        variable_axes={"intermediates": 0},
        split_rngs={"params": False, DenyList("params"): True},
        reverse=reverse,
        unroll=unroll,
    )
    state, outputs = over_time(cell, state, (inputs, valid, starts, first))
    return outputs, state


def restart(
    state: CellState,
    first_state: CellState,
    fresh_state: CellState,
    starts: Bool[Array, "*b"] | None,
    first: Bool[Array, "*b"] | None,
) -> CellState:
    """The state that a step reads, after `state`: another one where a sequence starts.

    >>> starts, first = jnp.array([True, True, False]), jnp.array([True, False, False])
    >>> restart(jnp.zeros(3), jnp.full(3, 1), jnp.full(3, 2), starts, first).tolist()
    [1.0, 2.0, 0.0]
    """
    if starts is None:
        return state
    if first is not None:
        fresh_state = select(first, first_state, fresh_state)
    return select(starts, fresh_state, state)


def finite_at_padding(state: CellState, valid: Bool[Array, "*b"] | None) -> CellState:
    """The state for a step to read, which computes something at padding, too.

    There it is zero where it is not finite: 0 * NaN would reach the gradients.

    >>> state = jnp.array([jnp.nan, jnp.nan, 1.0])
    >>> finite_at_padding(state, jnp.array([True, False, False])).tolist()
    [nan, 0.0, 1.0]
    """
    if valid is None:
        return state

    def leaf(state):
        if not jnp.issubdtype(state.dtype, jnp.inexact):
            return state
        rows = jnp.expand_dims(valid, range(valid.ndim, state.ndim))
        return jnp.where(rows | jnp.isfinite(state), state, 0)

    return jax.tree.map(leaf, state)


def select(choose: Bool[Array, "*b"], this: CellState, other: CellState) -> CellState:
    """`this` in the rows where `choose` is true, `other` elsewhere.

    >>> select(jnp.array([True, False]), jnp.ones(2), jnp.zeros(2)).tolist()
    [1.0, 0.0]
    """

    def leaf(this, other):
        rows = jnp.expand_dims(choose, range(choose.ndim, this.ndim))
        return jnp.where(rows, this, other)

    return jax.tree.map(leaf, this, other)
