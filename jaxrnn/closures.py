"""A function taken apart into the arrays in it and all else, and put together again.

`jax.jit` compiles anew for each function that it is given, and makes constants of the
arrays in it. Taken apart, the arrays are arguments like others, and what is left can be
compared: a `functools.partial` made anew around the same function is the same.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

Arrays = list[Any]  # an array, or None where something else stands


class Frame(NamedTuple):
    """A function without its arrays: hashable, so static for `jax.jit`."""

    structure: Hashable
    leaves: tuple[Hashable, ...]  # None where an array stands
    types: tuple[type, ...]  # 1, 1.0 and True are equal

    def fill(self, arrays: Arrays) -> Callable[..., Any]:
        """The function with these arrays in it."""
        pairs = zip(self.leaves, arrays, strict=True)
        leaves = [leaf if array is None else array for leaf, array in pairs]
        function, args, keywords = jax.tree.unflatten(self.structure, leaves)
        return functools.partial(function, *args, **keywords)


def take_apart(function: Callable[..., Any]) -> tuple[Frame, Arrays]:
    """The frame of a function and the arrays in it, in the order that `fill` takes.

    Found are arrays among the arguments of a `functools.partial`, in pytrees too, and
    in a callable that is a pytree itself. Those in a closure stay in the function.

    Raises:
        TypeError: it cannot be called, or what is left of it cannot be hashed.

    >>> weights = {"scale": np.array([2, 3])}
    >>> scale = functools.partial(lambda w, x: w["scale"] * x, weights)
    >>> frame, arrays = take_apart(scale)
    >>> frame.fill(jax.tree.map(np.negative, arrays))(10)
    array([-20, -30])
    """
    if not callable(function):
        raise TypeError(f"a function is needed, got {function!r}")
    parts = (function, (), {})
    if isinstance(function, functools.partial):
        parts = (function.func, function.args, function.keywords)
    leaves, structure = jax.tree.flatten(parts)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    pairs = list(zip(leaves, is_array, strict=True))
    others = tuple(None if array else leaf for leaf, array in pairs)
    frame = Frame(structure, others, tuple(map(type, others)))
    try:
        hash(frame)
    except TypeError as error:
        raise TypeError(
            f"{function!r} cannot be compared with other functions ({error}): give "
            "its arrays as arguments of a functools.partial"
        ) from None
    return frame, [leaf if array else None for leaf, array in pairs]
