"""The reference recurrence with a cell that counts: every number below is exact and can
be checked by hand."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrnn.scan import scan


class Count(nn.Module):
    """Appends a decimal digit: the state spells out what was read, in order."""

    def __call__(self, number, digit):
        number = 10 * number + digit
        return number, number


DIGITS = jnp.array([[1, 2, 3, 4, 5, 6]]).T
ZERO = jnp.zeros(1, jnp.int32)


def mask(*steps):
    return jnp.isin(jnp.arange(6), jnp.array(steps, jnp.int32))[:, None]


def count(state=ZERO, **options):
    cell = Count(parent=None).bind({})
    outputs, final = scan(Count.__call__, cell, state, DIGITS, **options)
    return outputs.ravel().tolist(), final.item()


def test_reads_in_order():
    assert count() == ([1, 12, 123, 1234, 12345, 123456], 123456)


def test_starts_from_the_state():
    assert count(jnp.array([9]))[1] == 9123456


def test_reverse_leaves_outputs_in_place():
    assert count(reverse=True) == ([654321, 65432, 6543, 654, 65, 6], 654321)


def test_padding_leaves_the_state_alone_and_gives_zero():
    valid = mask(1, 2, 4)
    assert count(valid=valid) == ([0, 2, 23, 0, 235, 0], 235)
    assert count(valid=valid, reverse=True) == ([0, 532, 53, 0, 5, 0], 532)


def test_nothing_valid_returns_the_initial_state():
    assert count(jnp.array([9]), valid=mask()) == ([0] * 6, 9)


def test_starts_forget():
    starts = mask(0, 3)
    outputs, final = count(starts=starts, fresh_state=ZERO)
    assert (outputs, final) == ([1, 12, 123, 4, 45, 456], 456)
    outputs, final = count(starts=mask(5, 2), fresh_state=ZERO, reverse=True)
    assert (outputs, final) == ([321, 32, 3, 654, 65, 6], 321)


def test_the_state_belongs_to_the_first_sequence_in_either_direction():
    options = {"first": mask(0, 1, 2), "fresh_state": jnp.array([7])}
    outputs, _ = count(jnp.array([9]), starts=mask(0, 3), **options)
    assert outputs == [91, 912, 9123, 74, 745, 7456]
    outputs, _ = count(jnp.array([9]), starts=mask(5, 2), reverse=True, **options)
    assert outputs == [9321, 932, 93, 7654, 765, 76]


def test_rows_are_independent():
    valid = jnp.concatenate([mask(0), mask(0, 1, 2, 3, 4, 5)], axis=1)
    cell = Count(parent=None).bind({})
    outputs, final = scan(
        Count.__call__,
        cell,
        jnp.zeros(2, jnp.int32),
        jnp.concatenate([DIGITS, DIGITS], axis=1),
        valid=valid,
    )
    assert final.tolist() == [1, 123456]
    np.testing.assert_array_equal(outputs[:, 0], [1, 0, 0, 0, 0, 0])
