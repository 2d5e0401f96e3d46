"""A recurrence in chunks against the same in one go, and what it keeps in memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from tests import oracles

pytestmark = pytest.mark.slow

B, T, D, H = 3, 7, 3, 4
LAYERS = {
    "lstm": jaxrnn.LSTM(H, bidirectional=True),
    "gru-scanned": jaxrnn.GRU(H, backend="scan"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_equals_one_go(name, size, rng, x64):
    whole = LAYERS[name].copy(param_dtype=jnp.float64)
    x = rng.normal(size=(B, T, D))
    variables = whole.init(jax.random.key(0), x)
    state = whole.initial_state((B,))
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), state)
    # Borders of chunks within sequences, within padding, and at a start.
    ids = np.array([[1, 1, 1, 1, 2, 2, 2], [1, 1, 0, 0, 0, 2, 0], [0] * T])
    weights = rng.normal(size=(B, T, 1))

    def run(layer):
        def loss(variables, x, state):
            outputs, state = layer.apply(variables, x, state=state, segment_ids=ids)
            final = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state))
            return jnp.sum(weights * outputs) + final, (outputs, state)

        gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        return jax.jit(gradient)(variables, x, state)

    found, expected = run(whole.copy(remat_chunk=size)), run(whole)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
        found,
        expected,
    )


def test_parameters_are_those_of_the_layer():
    x = jnp.ones((B, T, D))
    plain, chunked = (jaxrnn.LSTM(H, remat_chunk=size) for size in (None, 2))
    key = jax.random.key(0)
    jax.tree.map(
        np.testing.assert_array_equal, plain.init(key, x), chunked.init(key, x)
    )


def test_memory_grows_with_the_square_root():
    def temporary_bytes(time):
        layer = jaxrnn.LSTM(16, remat_chunk=int(time**0.5))
        x = jax.ShapeDtypeStruct((1, time, 1), jnp.float32)
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)

        def loss(variables, x):
            return jnp.sum(layer.apply(variables, x)[1][0].h)

        compiled = jax.jit(jax.grad(loss)).lower(variables, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    inputs, outputs = 1 * 4, 16 * 4  # bytes a step, which no chunks can save
    few, many = (
        temporary_bytes(time) - time * (inputs + 2 * outputs) for time in (1024, 16384)
    )
    assert many < 5 * few  # 16 times the steps; all kept, they need 16 times as much


def test_sixteen_thousand_steps_train(rng):
    x = rng.choice([-1.0, 1.0], size=(1, 16_000, 1)).astype(np.float32)
    whole, chunked = (jaxrnn.LSTM(8, remat_chunk=size) for size in (None, 128))
    before = whole.init(jax.random.key(0), x[:, :1])
    optimizer = optax.sgd(0.5)

    @functools.partial(jax.jit, static_argnums=0)
    def step(layer, params):
        def loss(params):
            return jnp.mean((layer.apply(params, x)[0] - x) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params))
        return value, gradient, optax.apply_updates(params, updates)

    first, gradient, after = step(chunked, before)
    weights, zeros = jax.tree.map(np.asarray, before["params"]["l0"]), np.zeros(8)
    outputs, _ = oracles.lstm(x[0], (zeros, zeros), weights)
    assert float(first) == pytest.approx(np.mean((outputs - x[0]) ** 2), rel=1e-5)
    second, *_ = step(chunked, after)
    assert float(second) < 0.99 * float(first)
    _, expected, _ = step(whole, before)
    greatest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    # Float32 sums of 16,000 terms, in another order: 2**-24 times the root of that.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * greatest),
        gradient,
        expected,
    )


def test_a_size_below_one():
    with pytest.raises(ValueError, match="remat_chunk must be at least 1, got 0"):
        jaxrnn.LSTM(H, remat_chunk=0).init(jax.random.key(0), jnp.ones((B, T, D)))


@pytest.mark.parametrize(
    ("time", "size", "chunks"), [(5, 128, (1, 5)), (9, 8, (2, 5)), (8, 4, (2, 4))]
)
def test_chunks_are_no_longer_than_they_need_to_be(time, size, chunks):
    layer = jaxrnn.GRU(3, remat_chunk=size, backend="fused")  # whose steps are seen
    x = jnp.ones((2, time, 3))
    variables = layer.init(jax.random.key(0), x)
    found = re.findall(r"length=(\d+)", str(jax.make_jaxpr(layer.apply)(variables, x)))
    assert sorted(map(int, found)) == sorted(chunks)


@pytest.mark.parametrize("shape", [(0, 10, 3), (2, 0, 3)])
def test_nothing_to_read(shape):
    layer = jaxrnn.LSTM(4, remat_chunk=4)
    x = jnp.ones(shape)
    variables = layer.init(jax.random.key(0), x)
    outputs, (state,) = layer.apply(variables, x)
    assert outputs.shape == (*shape[:2], 4)
    np.testing.assert_array_equal(state.c, np.zeros((shape[0], 4)))
