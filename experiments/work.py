"""Work to be timed: train steps over the same batches, again and again.

The steps read the metrics after every batch, as the programs do.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from experiments.timing import Thunk
from jaxrnn.training import Batch, Metrics


class Work(NamedTuple):
    """What is timed, and what one call of it does: units (words, characters) in steps,
    for one of which the time is told."""

    run: Thunk
    units: int = 1
    steps: int = 1


def stepping(
    step: Callable[[Any, Batch], tuple[Any, Metrics]],
    state: Any,
    batches: Iterable[Callable[[], Batch]],
) -> Thunk:
    """Takes a step on each of the batches, which it makes, and goes on from there when
    it is called again. It gives the last state.

    >>> thunk = stepping(lambda state, batch: (state + batch, state), 0, [lambda: 2])
    >>> thunk(), thunk()
    (2, 4)
    """
    latest = state

    def run() -> Any:
        nonlocal latest
        for make_batch in batches:
            latest, metrics = step(latest, make_batch())
            jax.device_get(metrics)
        return latest

    return run


def torch_stepping(
    torch: Any,
    modules: Sequence[Any],
    loss_of: Callable[[Batch], Any],
    batches: Iterable[Callable[[], Batch]],
) -> Thunk:
    """The same with PyTorch's Adam on the parameters of `modules`; it gives the last
    loss."""
    params = [param for module in modules for param in module.parameters()]
    optimizer = torch.optim.Adam(params, lr=1e-3)

    def run() -> float:
        last = float("nan")
        for make_batch in batches:
            loss = loss_of(make_batch())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last = loss.item()
        return last

    return run
