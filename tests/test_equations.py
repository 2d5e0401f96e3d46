"""Each cell against the papers' loops, values and gradients, in 64 and 32 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests import oracles

D, H, P, T = 3, 5, 2, 7


def lstm_state(h, c):
    return jaxrnn.LSTMState(h, c)


CELLS = {
    "rnn": (jaxrnn.RNNCell(H, param_dtype=jnp.float64), oracles.rnn),
    "rnn-relu": (
        jaxrnn.RNNCell(H, activation="relu", param_dtype=jnp.float64),
        lambda x, h, w: oracles.rnn(x, h, w, "relu"),
    ),
    "lstm": (jaxrnn.LSTMCell(H, param_dtype=jnp.float64), oracles.lstm),
    "lstm-proj": (
        jaxrnn.LSTMCell(H, proj_size=P, param_dtype=jnp.float64),
        oracles.lstm,
    ),
    "gru": (jaxrnn.GRUCell(H, param_dtype=jnp.float64), oracles.gru),
    "reset-before-gru": (
        jaxrnn.ResetBeforeGRUCell(H, param_dtype=jnp.float64),
        oracles.reset_before_gru,
    ),
}


def random_like(rng, tree):
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)


@pytest.fixture(params=CELLS)
def case(request, rng, x64):
    cell, oracle = CELLS[request.param]
    x = rng.normal(size=(T, D))
    state = random_like(rng, cell.initial_state(()))
    weights = random_like(rng, cell.init(jax.random.key(0), state, x[0])["params"])
    return cell, oracle, weights, state, x


def run(cell, weights, state, x):
    outputs = []
    for x_t in x:
        state, y = cell.apply({"params": weights}, state, x_t)
        outputs.append(y)
    return jnp.stack(outputs), state


def test_outputs_and_final_state(case):
    cell, oracle, weights, state, x = case
    outputs, final = run(cell, weights, state, x)
    expected, expected_final = oracle(x, state, weights)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(
        jax.tree.leaves(final), jax.tree.leaves(expected_final), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_against_differences_of_the_oracle(case, rng):
    """One random direction through all arguments: the slope of the oracle, by central
    differences, is the product of our gradient with the direction."""
    cell, oracle, weights, state, x = case
    cotangent = rng.normal(size=oracle(x, state, weights)[0].shape)
    arguments = (weights, state, x)
    direction = random_like(rng, arguments)

    def ours(weights, state, x):
        return jnp.sum(run(cell, weights, state, x)[0] * cotangent)

    def oracles_value(step):
        weights, state, x = jax.tree.map(
            lambda a, d: np.asarray(a) + step * d, arguments, direction
        )
        return np.sum(oracle(x, state, weights)[0] * cotangent)

    gradient = jax.grad(ours, argnums=(0, 1, 2))(*arguments)
    slope = sum(
        np.vdot(g, d)
        for g, d in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
        )
    )
    # A central difference in float64 is good to about eps ** (2 / 3) = 4e-11, relative.
    difference = (oracles_value(1e-5) - oracles_value(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-7)


def test_bfloat16_products_keep_a_float32_state(rng):
    cell = jaxrnn.LSTMCell(H, dtype=jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=(2, D)), jnp.float32)
    state = cell.initial_state((2,))
    (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    assert (y.dtype, state.h.dtype, state.c.dtype) == (
        jnp.bfloat16,
        jnp.float32,
        jnp.float32,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    # The state was summed in float32: rounding it to bfloat16 changes it.
    assert not (state.c == state.c.astype(jnp.bfloat16).astype(jnp.float32)).all()
    weights = jax.tree.map(np.asarray, variables["params"])
    expected, _ = oracles.lstm(np.asarray(x)[:1], (np.zeros(H), np.zeros(H)), weights)
    # bfloat16 has 8 significant bits.
    np.testing.assert_allclose(state.h[0], expected[0], atol=2**-8)
