"""Ranges of the numbers on a command line, checked before any work is done."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Range(NamedTuple):
    """A range of numbers, in words and as a function.

    Floats are tested after rounding to float32, which JAX computes with: large ones
    become infinite, small ones zero.

    >>> from types import SimpleNamespace
    >>> COUNT.check(SimpleNamespace(batch=2, max_words=0), "batch", "max_words")
    Traceback (most recent call last):
    ValueError: --max-words must be at least 1, got 0
    """

    words: str
    holds: Callable[[Any], bool]
    most: int | None = None

    def check(self, options: Any, *names: str) -> None:
        """Check that the options of these names are in the range, or None.

        Raises:
            ValueError: one is not; its option is named.
        """
        for name in names:
            self.check_value(f"--{name.replace('_', '-')}", getattr(options, name))

    def check_value(self, name: str, value: Any) -> None:
        """Check that a value is in the range, or None.

        Raises:
            ValueError: it is not; the message has `name`.
        """
        if value is not None and not self.holds(_in_float32(value)):
            raise ValueError(f"{name} must be {self.words}, got {value}")
        if value is not None and self.most is not None and value > self.most:
            raise ValueError(f"{name} must be at most {self.most:,}, got {value}")


def _in_float32(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        return float(np.float32(value))


COUNT = Range("at least 1", lambda x: x >= 1, most=2**31 - 1)
# More than any machine has memory or time for.
FEATURES = COUNT._replace(most=1_000_000)
LAYERS = COUNT._replace(most=1_000)
EPOCHS = COUNT._replace(most=1_000_000)
# The number of code points in Unicode.
CHARACTERS = Range("from 1 to 1114112", lambda x: 1 <= x <= 0x110000)
# An unknown word, the end of a line, and one to know.
VOCABULARY = Range("at least 3", lambda x: x >= 3)
SHARE = Range("from 0 to 1", lambda x: 0 <= x <= 1)
SHARE_BELOW_1 = Range("from 0 to below 1", lambda x: 0 <= x < 1)
SHARE_BELOW_HALF = Range("from 0 to below 0.5", lambda x: 0 <= x < 0.5)
SHARE_ABOVE_0 = Range("above 0 and at most 1", lambda x: 0 < x <= 1)
AMOUNT = Range("finite and at least 0", lambda x: 0 <= x < math.inf)
POSITIVE = Range("finite and above 0", lambda x: 0 < x < math.inf)
PORT = Range("from 1 to 65535", lambda x: 1 <= x <= 65535)
# JAX makes a key from the low 32 bits of a seed and drops the others silently.
SEED = Range("from 0 to 4294967295", lambda x: 0 <= x < 2**32)
