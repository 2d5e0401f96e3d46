"""A function taken apart is the same function, and equal to its like."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.closures import take_apart


def affine(weights, x, scale=1):
    return scale * (weights["w"] * x + weights["b"])


WEIGHTS = {"w": np.array([2, 3]), "b": jnp.array([10, 20])}


def doubled(arrays):
    return [None if array is None else 2 * array for array in arrays]


@pytest.mark.parametrize(
    ("function", "x", "expected", "of_doubled"),
    [
        (functools.partial(affine, WEIGHTS), 5, [20, 35], [40, 70]),
        (functools.partial(affine, WEIGHTS, scale=3), 5, [60, 105], [120, 210]),
        (functools.partial(affine, weights=WEIGHTS, x=5), None, [20, 35], [40, 70]),
        (jax.tree_util.Partial(affine, WEIGHTS), 5, [20, 35], [40, 70]),
        (lambda x: WEIGHTS["w"] * x, 5, [10, 15], [10, 15]),  # arrays stay in closures
    ],
)
def test_filled_again_it_returns_the_same(function, x, expected, of_doubled):
    frame, arrays = take_apart(function)
    given = () if x is None else (x,)
    np.testing.assert_array_equal(frame.fill(arrays)(*given), expected)
    np.testing.assert_array_equal(frame.fill(doubled(arrays))(*given), of_doubled)


def test_frames_are_equal_where_only_arrays_differ():
    def frame(function):
        return take_apart(function)[0]

    others = {"w": np.zeros(9), "b": np.ones(9)}
    one = frame(functools.partial(affine, WEIGHTS, scale=3))
    same = frame(functools.partial(affine, others, scale=3))
    assert one == same
    assert hash(one) == hash(same)
    assert one != frame(functools.partial(affine, WEIGHTS, scale=4))
    assert one != frame(functools.partial(affine, WEIGHTS["w"], scale=3))
    assert one != frame(functools.partial(np.add, WEIGHTS, scale=3))
    assert frame(lambda x: x) != frame(lambda x: x)
    scales = [frame(functools.partial(affine, others, scale=s)) for s in (1, 1.0, True)]
    assert len(set(scales)) == 3


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="a function is needed, got 3"):
        take_apart(3)


def test_what_cannot_be_compared_is_refused():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    message = re.escape("(unhashable type: 'Unhashable'): give its arrays as arguments")
    with pytest.raises(TypeError, match=message):
        take_apart(Unhashable())
