"""How long calls take, side by side, to choose between them at the start of a run."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def least_seconds(
    calls: Mapping[str, Callable[[], Any]], rounds: int = 3
) -> dict[str, float]:
    """Return the shortest time of each call, in seconds, until its arrays are there.

    Each is called once before, to compile it. Then they take turns, so that whatever
    else the machine does meets all of them.

    >>> sorted(least_seconds({"a": lambda: 1, "b": lambda: 2}))
    ['a', 'b']
    """
    for call in calls.values():
        jax.block_until_ready(call())
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            found[name] = min(found[name], time.perf_counter() - began)
    return found
