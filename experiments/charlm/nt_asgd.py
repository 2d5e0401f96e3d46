"""NT-ASGD: stochastic gradient descent whose iterates are averaged from some epoch on.

The average begins when the validation loss is worse than the best of all epochs but the
last few: then the parameters move around a minimum. It is what is evaluated.

Reference: Merity, Keskar and Socher (2018), "Regularizing and Optimizing LSTM Language
Models", section 4, algorithm 1; Polyak and Juditsky (1992) for the average.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from jaxrnn.training import TrainState


class AverageState(NamedTuple):
    """The state of `average_iterates`.

    Attributes:
        active: whether the average has begun.
        count: how many iterates are in it.
        mean: the average; the parameters themselves as long as it has not begun.
    """

    active: Bool[Array, ""]
    count: Int[Array, ""]
    mean: PyTree


def average_iterates() -> optax.GradientTransformation:
    """Return a transformation that averages parameters, the last one of a chain.

    Updates pass through it unchanged.

    >>> average = average_iterates()
    >>> state = average.init(jnp.zeros(()))
    >>> for update in (1.0, 2.0):
    ...     _, state = average.update(jnp.asarray(update), state, jnp.zeros(()))
    >>> state.mean.tolist()
    2.0
    >>> state = start((state,))[-1]
    >>> for update in (1.0, 2.0):
    ...     _, state = average.update(jnp.asarray(update), state, jnp.zeros(()))
    >>> state.mean.tolist()
    1.5
    """

    def init(params: PyTree) -> AverageState:
        return AverageState(jnp.zeros((), jnp.bool_), jnp.zeros((), jnp.int32), params)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> Any:
        count = jnp.where(state.active, state.count + 1, 0)
        share = 1 / jnp.maximum(count, 1).astype(jnp.float32)
        new = optax.apply_updates(params, updates)
        # Of the first one the share is 1: it is the new parameters themselves.
        mean = jax.tree.map(
            lambda old, now: jnp.where(
                state.active, old + share.astype(now.dtype) * (now - old), now
            ),
            state.mean,
            new,
        )
        return updates, AverageState(state.active, count, mean)

    return optax.GradientTransformation(init, update)


def start(opt_state: Any) -> Any:
    """Return the state of a chain with `average_iterates` at its end, averaging on."""
    *others, average = opt_state
    return (*others, average._replace(active=jnp.ones_like(average.active)))


def is_averaging(opt_state: Any) -> bool:
    """Return whether the average has begun, in the state of any chain."""
    average = opt_state[-1]
    return isinstance(average, AverageState) and bool(average.active)


def is_triggered(losses: Sequence[float], patience: int) -> bool:
    """Return whether the last loss says that the average should begin.

    It must be worse than the best of all before it but the last `patience`, of which
    there must be one at least.

    >>> is_triggered([3, 2, 2.5], patience=1), is_triggered([3, 2, 2.5], patience=2)
    (False, False)
    >>> is_triggered([3, 2, 2, 2.5], patience=1)
    True
    """
    *before, last = losses
    earlier = before[: max(len(before) - patience, 0)]
    return bool(earlier) and last > min(earlier)


def evaluated_params(train: TrainState) -> PyTree:
    """Return the parameters to evaluate: their average, where the optimizer has one."""
    average = train.opt_state[-1]
    return average.mean if isinstance(average, AverageState) else train.params
