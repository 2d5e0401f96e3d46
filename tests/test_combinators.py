"""Stacks of layers that are not this library's."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxrnn

X = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


class Total(nn.Module):
    """A layer of nothing but the three methods."""

    def __call__(self, x, state=None, *, train=False):
        total = self.zero_state((2,))[0] if state is None else state[0]
        outputs = total[:, None] + jnp.cumsum(x, axis=1)
        return outputs, (outputs[:, -1],)

    def step(self, x, state):
        return state[0] + x, (state[0] + x,)

    def zero_state(self, batch_shape):
        return (jnp.zeros((*batch_shape, 3)),)


def test_three_methods_are_enough_to_be_a_layer():
    stack = jaxrnn.Stack([Total(), jaxrnn.GRU(4)])
    state = stack.zero_state((2,))
    (expected, final), variables = stack.init_with_output(jax.random.key(0), X, state)
    np.testing.assert_allclose(final[0], X.sum(axis=1), rtol=1e-5)
    for t in range(X.shape[1]):
        output, state = stack.apply(variables, X[:, t], state, method="step")
        np.testing.assert_allclose(output, expected[:, t], rtol=1e-5, atol=1e-6)
