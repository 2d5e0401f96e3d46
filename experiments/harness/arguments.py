"""How tyro reads an option of several words, and names a default that is None."""

from collections.abc import Callable
from typing import Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec


def several(make: Callable[[str], Any], word: str) -> PrimitiveConstructorSpec[Any]:
    """Return how tyro makes a tuple of an option's words, by `make` from each.

    In the help a word is called `word`. The option is None if it is not given; given
    without a word, it is empty.

    >>> several(int, "N").instance_from_str(["1", "2"])
    (1, 2)
    """
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{word} [{word} ...]",
        instance_from_str=lambda words: tuple(map(make, words)),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: list(map(str, value or ["None"])),
    )


def default_is(text: str) -> Any:
    """Return how the help names the default of an option whose default is None."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")
