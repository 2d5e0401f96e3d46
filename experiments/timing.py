"""The time that several contenders need for the same work, taken in turns.

In turns, so that a slow minute of the machine is everybody's. Every turn begins with a
pause, since OpenMP's threads, which PyTorch uses, keep a core busy for a while after
their work; and unless the work is long with a call that does not count, since the
caches hold the last contender's data.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Thunk = Callable[[], Any]

PAUSE = 0.03  # seconds
LONG = 0.5  # seconds; what the caches can cost is lost in them
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

    Every round calls all of them, each round beginning with another one. There are
    `rounds` rounds, or fewer but at least 3 where they take more than `seconds`.

    >>> measure({"nothing": lambda: None}, rounds=3)["nothing"].median < 0.01
    True

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    def seconds_of(thunk: Thunk) -> float:
        began = clock()
        thunk()
        return clock() - began

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
                    thunks[name]()
            found[name].append(seconds_of(thunks[name]))
    return {name: Timing(first[name], tuple(found[name])) for name in names}
