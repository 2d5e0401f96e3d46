"""The time that several contenders need for the same work, taken in turns.

In turns, so that a slow minute of the machine is everybody's. Every turn begins with a
pause, since OpenMP's threads, which PyTorch uses, keep a core busy for a while after
their work. Then, unless the work is long, come calls that do not count: the caches hold
the last contender's data, and cores that rested are slow to come back, which costs work
of a few milliseconds up to half of its speed. Calls in a row, as training makes them,
are what counts.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.training import Batch, Metrics

Thunk = Callable[[], Any]

PAUSE = 0.03  # seconds
WARM = COUNTED = 0.1  # seconds of calls, one at least, in a turn
LONG = 0.5  # seconds; what caches and cores can cost is lost in them
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds: of the first call, which compiles, and of those that count.

    >>> timing = Timing(first=2.0, rounds=(1.0, 0.25, 0.5))
    >>> timing.median, timing.quartiles
    (0.5, (0.375, 0.75))
    """

    first: float
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))

    @property
    def quartiles(self) -> tuple[float, float]:
        lower, upper = np.percentile(self.rounds, [25, 75])
        return float(lower), float(upper)


def measure(
    thunks: Mapping[str, Thunk],
    rounds: int,
    *,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """The time of each of `thunks`, which return when their work is done.

    Every round has a turn of each, and begins with another one; of a turn remains the
    median of the calls that count. There are `rounds` rounds, or fewer but at least 3
    where they take more than `seconds`; where that is little, turns are short too.

    >>> measure({"nothing": lambda: None}, rounds=3)["nothing"].median < 0.01
    True

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    def seconds_of(thunk: Thunk, together: float = 0.0) -> float:
        """The median of as many calls as take so long, of one at least."""
        calls, total = [], 0.0
        while not calls or total < together:
            began = clock()
            thunk()
            calls.append(clock() - began)
            total += calls[-1]
        return float(np.median(calls))

    warm, counted = min(WARM, seconds / 20), min(COUNTED, seconds / 20)
    first = {name: seconds_of(thunk) for name, thunk in thunks.items()}
    found: dict[str, list[float]] = {name: [] for name in thunks}
    names = list(thunks)
    began = clock()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and clock() - began > seconds:
            break
        start = number % max(len(names), 1)
        for name in names[start:] + names[:start]:
            if len(names) > 1:  # Alone, nobody was there before.
                sleep(PAUSE)
                if min(found[name], default=0.0) < LONG:
                    seconds_of(thunks[name], warm)
            found[name].append(seconds_of(thunks[name], counted))
    return {name: Timing(first[name], tuple(found[name])) for name in names}


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
