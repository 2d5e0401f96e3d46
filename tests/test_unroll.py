"""`unroll`: other loops of the same numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import cells, functional
from jaxrnn import nnx as jaxrnn_nnx
from tests.test_functional import NATIVE

pytestmark = pytest.mark.slow

B, T, D, H = 3, 7, 3, 4
LAYERS = {
    "fused": jaxrnn.LSTM(H, bidirectional=True, backend="fused"),
    "scan": jaxrnn.GRU(H, backend="scan"),
    "cell": jaxrnn.Layer(cells.MGUCell, features=H),
    "cell-in-chunks": jaxrnn.Layer(cells.MGUCell, features=H, remat_chunk=4),
}
WITHOUT_A_LOOP = {"parallel": jaxrnn.Layer(cells.MinGRUCell, features=H)}
if NATIVE:
    WITHOUT_A_LOOP["native"] = jaxrnn.LSTM(H, backend="native")


def unrolls(function, *args):
    """The numbers of steps in an iteration, of the loops of `function`."""
    return {
        int(n)
        for n in re.findall(r"unroll=(\d+)", str(jax.make_jaxpr(function)(*args)))
    }


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("unroll", [3, 50])
def test_equals_one_step_at_a_time(name, unroll, rng, x64):
    plain = LAYERS[name].copy(param_dtype=jnp.float64)
    x = rng.normal(size=(B, T, D))
    ids = np.array([[1, 1, 1, 1, 2, 2, 2], [1, 1, 0, 0, 0, 2, 0], [0] * T])
    variables = plain.init(jax.random.key(0), x)

    def gradient(layer):
        def loss(variables, x):
            outputs, state = layer.apply(variables, x, segment_ids=ids)
            return jnp.sum(outputs**3) + sum(map(jnp.sum, jax.tree.leaves(state)))

        return jax.grad(loss, argnums=(0, 1))

    unrolled = gradient(plain.copy(unroll=unroll))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
        jax.jit(unrolled)(variables, x),
        jax.jit(gradient(plain))(variables, x),
    )
    loops = unrolls(unrolled, variables, x)
    assert loops - {1} == {unroll}
    # The loop over chunks is none over steps.
    assert (1 in loops) == (plain.remat_chunk is not None)


@pytest.mark.parametrize("name", WITHOUT_A_LOOP)
def test_changes_nothing_without_a_loop_of_jax(name, rng):
    plain = WITHOUT_A_LOOP[name]
    assert plain.resolved_backends == (name,)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    variables = plain.init(jax.random.key(0), x)
    jax.tree.map(
        np.testing.assert_array_equal,
        plain.copy(unroll=3).apply(variables, x, lengths=np.array([7, 2, 0])),
        plain.apply(variables, x, lengths=np.array([7, 2, 0])),
    )


def test_of_an_nnx_layer(rng):
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    plain, unrolled = (
        jaxrnn_nnx.GRU(D, H, backend="fused", rngs=nnx.Rngs(0), **options)
        for options in ({}, {"unroll": 3})
    )
    assert unrolls(unrolled, x) == {3}
    np.testing.assert_allclose(unrolled(x)[0], plain(x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["fused", "scan"])
def test_of_a_function(rng, backend):
    x = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    weights = {
        "w_x": jnp.asarray(rng.normal(size=(D, 3 * H)), jnp.float32),
        "w_h": jnp.asarray(rng.normal(size=(H, 3 * H)), jnp.float32),
    }
    run = functools.partial(functional.gru, weights, None, backend=backend)
    unrolled = functools.partial(run, unroll=4)
    assert unrolls(unrolled, x) == {4}
    np.testing.assert_allclose(unrolled(x)[0], run(x)[0], rtol=0, atol=1e-6)


def test_is_a_number_of_steps():
    with pytest.raises(ValueError, match="unroll must be at least 1, got 0"):
        jaxrnn.Recurrent(jaxrnn.GRUCell(H), unroll=0)
    with pytest.raises(ValueError, match="unroll must be at least 1, got 0"):
        jaxrnn.GRU(H, unroll=0)
