"""What arguments must be, and what is said of those that are not: name and value.

Numpy only, so that every file may use it. An argument is given by its name,
`at_least(1, rows=rows)`, and comes back as it will be used.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def at_least(minimum: int, **named: int) -> int:
    """A whole number.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below `minimum`.

    >>> at_least(1, rows=3)
    3
    """
    ((name, value),) = named.items()
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def share(**named: float) -> float:
    """A part of a whole, from 0 to 1: a probability.

    Raises:
        TypeError: it is not a number.
        ValueError: it is out of range.

    >>> share(dropout=0.5)
    0.5
    """
    ((name, value),) = named.items()
    value = number(**named)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")
    return value


def number(**named: float) -> float:
    """Any number.

    Raises:
        TypeError: it is none.

    >>> number(metric=1)
    1.0
    """
    ((name, value),) = named.items()
    if not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def sizes(**named: Iterable[int]) -> tuple[int, ...]:
    """The sizes of the axes of an array.

    Raises:
        TypeError: they are not integers, or not several.
        ValueError: one is negative.

    >>> sizes(batch_shape=[2, 3])
    (2, 3)
    """
    ((name, values),) = named.items()
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a tuple of integers, got {values!r}")
    return tuple(at_least(0, **{name: value}) for value in values)


def function(**named: Callable[..., Any]) -> Callable[..., Any]:
    """Something to call.

    Raises:
        TypeError: it cannot be called.

    >>> function(loss=len)
    <built-in function len>
    """
    ((name, value),) = named.items()
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r}")
    return value
