"""Interleaved timing of several implementations of the same work.

The implementations are timed in turns, so that a slowdown of the machine affects all of
them alike. Every turn begins with a pause, because the threads of OpenMP, which PyTorch
uses, spin for a while after their work. Then come untimed warm-up calls, unless the
work is long: the caches hold the previous implementation's data and idle cores are slow
to return to full speed, which would cost work of a few milliseconds up to half of its
speed. What is timed is calls in a row, as training makes them.
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
LONG = 0.5  # seconds; cold caches and cores make no difference to such calls
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of the first call, which compiles, and of each round.

    >>> timing = Timing(first=2.0, rounds=(1.0, 0.25, 0.5))
    >>> timing.median, timing.quartiles
    (0.5, (0.375, 0.75))
    """

    first: float
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return float(np.median(self.rounds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile over the rounds."""
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
    """The timing of each of `thunks`, which return when their work is done.

    Every round has a turn of each, in rotated order; the time of a turn is the median
    of its timed calls. There are `rounds` rounds, or fewer but at least 3 where they
    take more than `seconds`; where that is short, so are the turns.

    >>> measure({"nothing": lambda: None}, rounds=3)["nothing"].median < 0.01
    True

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    def seconds_of(thunk: Thunk, together: float = 0.0) -> float:
        """The median of as many calls as take `together` seconds, of one at least."""
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
            if len(names) > 1:  # else there was no other implementation before
                sleep(PAUSE)
                if min(found[name], default=0.0) < LONG:
                    seconds_of(thunks[name], warm)
            found[name].append(seconds_of(thunks[name], counted))
    return {name: Timing(first[name], tuple(found[name])) for name in names}


class Work(NamedTuple):
    """A function to time, with the work of one call.

    Attributes:
        run: returns when its work is done.
        units: words or characters that a call processes.
        steps: training steps in a call; the reported time is that of one.
    """

    run: Thunk
    units: int = 1
    steps: int = 1


def stepping(
    step: Callable[[Any, Batch], tuple[Any, Metrics]],
    state: Any,
    batches: Iterable[Callable[[], Batch]],
) -> Thunk:
    """A function that takes a step on each of the batches and returns the last state.

    It makes the batches, and continues from the last state when it is called again.

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
    """As `stepping`, with PyTorch's Adam on the parameters of `modules`.

    The function returns the last loss.
    """
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
