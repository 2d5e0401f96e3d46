"""Stacks of layers that are not this library's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn

X = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


class Total(nn.Module):
    """A layer of nothing but the three methods: sums, of which it sums up again."""

    times: int = 1

    def __call__(self, x, *, state=None):
        after = ()
        for total in self.initial_state((2,)) if state is None else state:
            x = total[:, None] + jnp.cumsum(x, axis=1)
            after += (x[:, -1],)
        return x, after

    def step(self, x, state):
        after = ()
        for total in state:
            x = total + x
            after += (x,)
        return x, after

    def initial_state(self, batch_shape):
        return (jnp.zeros((*batch_shape, 3)),) * self.times


class Stateless(Total):
    def initial_state(self, batch_shape):
        raise KeyError("lengths")


def test_three_methods_are_enough_to_be_a_layer():
    stack = jaxrnn.Stack([Total(), jaxrnn.GRU(4)])
    state = stack.initial_state((2,))
    (expected, final), variables = stack.init_with_output(
        jax.random.key(0), X, state=state
    )
    np.testing.assert_allclose(final[0], X.sum(axis=1), rtol=1e-5)
    for t in range(X.shape[1]):
        output, state = stack.apply(variables, X[:, t], state, method="step")
        np.testing.assert_allclose(output, expected[:, t], rtol=1e-5, atol=1e-6)


def test_a_layer_of_several_cells_is_given_its_part_of_the_state():
    stack = jaxrnn.Stack([Total(2), jaxrnn.Stack([Total()]), Total(2)])
    assert stack.resolved_backends == ("unknown",) * 5
    assert stack.num_states == 5
    assert stack.supports_step
    sums = [np.cumsum(X, axis=1)]
    for _ in range(4):
        sums.append(np.cumsum(sums[-1], axis=1))
    _, halfway = stack.apply({}, X[:, :2], state=stack.initial_state((2,)))
    outputs, final = stack.apply({}, X[:, 2:], state=halfway)
    # float32 sums of a few dozen terms of size 1.
    np.testing.assert_allclose(outputs, sums[-1][:, 2:], rtol=1e-4, atol=1e-4)
    assert len(final) == 5
    for found, expected in zip(final, sums, strict=True):
        np.testing.assert_allclose(found, expected[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "steps"),
    [
        (
            jaxrnn.Recurrent(nn.ConvLSTMCell(2, (3,))),
            True,
        ),  # its state depends on inputs
        (jaxrnn.LSTM(2, num_layers=3), True),
        (jaxrnn.LSTM(2, num_layers=3, bidirectional=True), False),
        (jaxrnn.Bidirectional(jaxrnn.GRU(2, num_layers=2), jaxrnn.RNN(2)), False),
        (jaxrnn.Stack([jaxrnn.GRU(2, bidirectional=True), jaxrnn.RNN(2)]), False),
        (jaxrnn.Stack([jaxrnn.GRU(2, num_layers=2), jaxrnn.RNN(2)]), True),
    ],
)
def test_the_number_of_states_and_whether_there_is_a_step(layer, steps):
    x = X[..., None] if isinstance(layer, jaxrnn.Recurrent) else X
    (_, state), variables = layer.init_with_output(jax.random.key(0), x)
    assert layer.num_states == len(state)
    assert layer.supports_step == steps
    if steps:
        layer.apply(variables, x[:, 0], state, method="step")
    else:
        with pytest.raises(ValueError, match="bidirectional"):
            layer.apply(variables, x[:, 0], state, method="step")


def test_a_layer_that_cannot_say_how_many_cells_it_has():
    state = jaxrnn.Stack([Total()]).initial_state((2,))
    with pytest.raises(
        ValueError, match=r"of Stateless, neither initial_state.*lengths"
    ):
        jaxrnn.Stack([Stateless()]).apply({}, X, state=state)


def test_directions_kept_apart_are_not_read_by_the_next_layer():
    both = jaxrnn.Bidirectional(jaxrnn.GRU(3), jaxrnn.GRU(3), merge="stack")
    with pytest.raises(ValueError, match="which GRU would read as time"):
        jaxrnn.Stack([both, jaxrnn.GRU(3)])
    jaxrnn.Stack([jaxrnn.GRU(3), both])
