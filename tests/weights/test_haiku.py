"""The numbers of live Haiku cores, with the weights in and out."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import weights
from tests.weights.parity import (
    B,
    D,
    H,
    assert_close,
    assert_same_numbers,
    inputs,
    layer_of,
    randomized,
    variables_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    hk = pytest.importorskip("haiku")

CORES = {
    "lstm": ("lstm", "lstm/", lambda: hk.LSTM(H)),
    "gru": ("reset-before", "gru", lambda: hk.GRU(H)),
    "rnn": ("relu", "vanilla_rnn/", lambda: hk.VanillaRNN(H)),
    "rnn-one-bias": (
        "relu",
        "vanilla_rnn/",
        lambda: hk.VanillaRNN(H, double_bias=False),
    ),
}


@pytest.fixture(autouse=True)
def haiku_as_it_is():
    """Its own code mixes ranks."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def transformed(make_core):
    def call(x):
        core = make_core()
        state = jax.tree.map(lambda s: s.astype(x.dtype), core.initial_state(B))
        outputs, state = hk.dynamic_unroll(core, x, state, time_major=False)
        return outputs, getattr(state, "hidden", state)

    return hk.without_apply_rng(hk.transform(call))


def once(params):
    """Of two biases that are added, each has the gradient of their sum."""
    return {
        module: {
            name: a * 0 if (module, name) == ("vanilla_rnn/linear_1", "b") else a
            for name, a in arrays.items()
        }
        for module, arrays in params.items()
    }


@pytest.mark.parametrize("name", CORES)
def test_haiku_weights_give_the_same_numbers_here(name, rng, x64):
    kind, _, make_core = CORES[name]
    network, layer = transformed(make_core), layer_of(kind)
    x = inputs(rng)
    params = randomized(network.init(jax.random.key(0), x), rng)

    def load(params):
        return weights.from_haiku(params, layer)

    expected_load = lambda params: load(once(params))  # noqa: E731
    assert_same_numbers(layer, load(params), network.apply, params, expected_load, x)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_our_weights_give_the_same_numbers_in_haiku(name, rng, x64):
    kind, module, make_core = CORES[name]
    network, layer = transformed(make_core), layer_of(kind)
    variables = variables_of(layer, rng)
    [cell] = weights.to_haiku(variables, layer)
    if name == "gru":
        params = {module: cell}
    else:
        params = {module + part: arrays for part, arrays in cell.items()}

    def load(params):
        return weights.from_haiku(once(params), layer)

    x = inputs(rng)
    assert_same_numbers(layer, variables, network.apply, params, load, x)


def test_cores_of_a_network_are_found(rng, x64):
    def call(x):
        x = hk.Linear(4 * H)(x)  # It has as many outputs as there are gates.
        core = hk.DeepRNN([hk.LSTM(H) for _ in range(11)])
        state = jax.tree.map(lambda s: s.astype(x.dtype), core.initial_state(B))
        outputs, _ = hk.dynamic_unroll(core, x, state, time_major=False)
        return x, outputs, hk.Linear(3)(outputs)

    network = hk.without_apply_rng(hk.transform(call))
    x = inputs(rng)
    params = randomized(network.init(jax.random.key(0), x), rng)
    layer = layer_of("lstm", num_layers=11)
    with pytest.raises(ValueError, match="do not say which cell comes first"):
        weights.from_haiku(params, layer)
    variables = weights.from_haiku(params, layer, prefix="lstm")
    x, expected, _ = network.apply(params, x)
    assert_close(layer.apply(variables, x)[0], expected)


def test_tanh_is_refused():
    layer = jaxrnn.RNN(H)
    for call in (
        lambda: weights.from_haiku({}, layer),
        lambda: weights.to_haiku(
            layer.init(jax.random.key(0), jnp.ones((2, D))), layer
        ),
    ):
        with pytest.raises(ValueError, match="relu: the layer must have activation='r"):
            call()


def test_the_reset_gate_is_another_in_haiku():
    with pytest.raises(TypeError, match="none like the layer's GRUCell"):
        weights.from_haiku({}, jaxrnn.GRU(H))
    arrays = {"net/linear": {"w": np.ones((3, 16)), "b": np.ones(16)}}
    with pytest.raises(ValueError, match="no LSTMCell of 4 features below 'net/'"):
        weights.from_haiku(arrays, jaxrnn.LSTM(H), prefix="net/")
