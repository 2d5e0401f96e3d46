"""What arguments must be, and what is said of those that are not: name and value.

Numpy only, so that every file may use it. An argument is given by its name,
`check_min(1, rows=rows)`, and comes back as it will be used.
"""

import contextlib
import functools
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np


def check_min(minimum: int, **named: SupportsIndex) -> int:
    """A whole number, or an array of one without axes.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below `minimum`.

    >>> check_min(1, rows=3), check_min(1, rows=np.array(3))
    (3, 3)
    """
    ((name, value),) = named.items()
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if whole < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {whole}")
    return whole


def check_probability(**named: SupportsFloat) -> float:
    """A part of a whole, from 0 to 1: a probability.

    Raises:
        TypeError: it is not a number.
        ValueError: it is out of range.

    >>> check_probability(dropout=0.5)
    0.5
    """
    ((name, value),) = named.items()
    value = check_scalar(**named)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")
    return value


def check_scalar(**named: SupportsFloat) -> float:
    """Any real number, or an array of one without axes.

    Raises:
        TypeError: it is something else.

    >>> check_scalar(metric=1), check_scalar(metric=np.array(0.5))
    (1.0, 0.5)
    """
    ((name, value),) = named.items()
    with contextlib.suppress(TypeError, ValueError):
        array = np.asarray(value)
        # "V" is bfloat16, which is not numpy's own, and "O" an integer beyond 64 bits.
        if not array.ndim and array.dtype.kind in "iufVO":
            return float(array)
    raise TypeError(f"{name} must be a number, got {value!r}")


def check_positive(**named: SupportsFloat) -> float:
    """A number above zero.

    Raises:
        TypeError: it is not a number.
        ValueError: it is zero or below, or not a number (NaN).

    >>> check_positive(dt=0.5)
    0.5
    """
    ((name, value),) = named.items()
    value = check_scalar(**named)
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def check_shape(**named: Iterable[int]) -> tuple[int, ...]:
    """The sizes of the axes of an array.

    Those that `jax.export` knows by a name alone are not checked.

    Raises:
        TypeError: they are not integers, or not a sequence.
        ValueError: one is negative.

    >>> check_shape(batch_shape=[2, 3])
    (2, 3)
    """
    ((name, values),) = named.items()
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a tuple of integers, got {values!r}")
    return tuple(
        value if _is_symbolic(value) else check_min(0, **{name: value})
        for value in values
    )


def _is_symbolic(size: Any) -> bool:
    """As `jax.export.is_symbolic_dim`."""
    return getattr(size, "dimension_as_value", None) is not None


def as_int32(axes: int, **named: Any) -> np.ndarray:
    """Integers as an int32 array with `axes` axes, of JAX if they are, else of numpy.

    Raises:
        TypeError: they are not integers.
        ValueError: they have a different number of axes, their rows are not equally
            long, or they do not fit into 32 bits.

    >>> as_int32(1, stop=[1, 2])
    array([1, 2], dtype=int32)
    """
    ((name, values),) = named.items()
    try:
        # JAX's stay where they are, and may be traced: those have an abstract value.
        array = values if hasattr(values, "aval") else np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} must have rows of one length: pad the shorter ones"
        ) from error
    if array.size and "int" not in array.dtype.name:
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.ndim != axes:
        numeral = "one axis" if axes == 1 else f"{axes} axes"
        raise ValueError(f"{name} must have {numeral}, got shape {array.shape}")
    narrow = array.astype(np.int32)
    if isinstance(array, np.ndarray) and (narrow != array).any():
        wrong = array[narrow != array][0]
        raise ValueError(f"{name} must fit into 32 bits, got {wrong}")
    return narrow


def check_within(least: int, most: int, **named: np.ndarray | None) -> None:
    """Refuses values outside a range; None are those that cannot be known, traced ones.

    Raises:
        ValueError: with the first of them.

    >>> check_within(0, 9, prompt=np.array([[1, 2]]))
    """
    ((name, values),) = named.items()
    if values is None:
        return
    wrong = values[(values < least) | (values > most)]
    if wrong.size:
        raise ValueError(f"{name} must be from {least} to {most}, got {wrong[0]}")


@functools.cache
def warn_once(message: str) -> None:
    """A `UserWarning`, the first time that it is called with this message."""
    warnings.warn(message, UserWarning, stacklevel=2)


def linen_hint(value: Any) -> str:
    """What to do where a module of `jaxrnn.nnx` is given in place of a Linen module.

    Told by its properties: not even `flax` is imported for it.
    """
    if hasattr(value, "definition") and hasattr(value, "params"):
        return ": jaxrnn.nnx.to_linen(module) returns a Linen module and its variables"
    return ""


def check_callable(**named: Callable[..., Any]) -> Callable[..., Any]:
    """Something to call.

    Raises:
        TypeError: it cannot be called.

    >>> check_callable(loss=len)
    <built-in function len>
    """
    ((name, value),) = named.items()
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r}")
    return value


def shape_faults(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    optional: frozenset[str] = frozenset(),
) -> list[str]:
    """What is wrong with the names and shapes of arrays, one entry for each array.

    >>> shape_faults({"w": (2, 3), "c": (3,)}, {"w": (3, 3), "b": (3,)})
    ['missing b (3,)', 'unexpected c (3,)', 'w has shape (2, 3), expected (3, 3)']
    """
    missing = sorted(expected.keys() - found.keys() - optional)
    unexpected = sorted(found.keys() - expected.keys())
    misshaped = [
        name
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    return [
        *(f"missing {name} {expected[name]}" for name in missing),
        *(f"unexpected {name} {found[name]}" for name in unexpected),
        *(
            f"{name} has shape {found[name]}, expected {expected[name]}"
            for name in misshaped
        ),
    ]
