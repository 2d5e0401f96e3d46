"""The numbers of live cells of Flax, Linen and NNX, with the weights in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxrnn
from jaxrnn import weights
from tests.weights.parity import (
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

LINEN = {
    "OptimizedLSTMCell": ("lstm", nn.OptimizedLSTMCell),
    "LSTMCell": ("lstm", nn.LSTMCell),
    "GRUCell": ("gru", nn.GRUCell),
    "SimpleCell": ("tanh", nn.SimpleCell),
}
NNX = {
    "OptimizedLSTMCell": ("lstm", nnx.OptimizedLSTMCell),
    "LSTMCell": ("lstm", nnx.LSTMCell),
    "GRUCell": ("gru", nnx.GRUCell),
    "SimpleCell": ("tanh", nnx.SimpleCell),
}


@pytest.fixture(autouse=True)
def flax_as_it_is():
    """Its own code mixes ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def final_h(carry):
    """Flax has the memory cell first."""
    return carry[1] if isinstance(carry, tuple) else carry


def linen(cell_type):
    rnn = nn.RNN(cell_type(H, param_dtype=jnp.float64), return_carry=True)

    def run(variables, x):
        carry, outputs = rnn.apply(variables, x)
        return outputs, final_h(carry)

    return rnn, run


@pytest.fixture(params=LINEN)
def linen_case(request):
    kind, cell_type = LINEN[request.param]
    return layer_of(kind), *linen(cell_type)


def test_linen_weights_give_the_same_numbers_here(linen_case, rng, x64):
    layer, rnn, run = linen_case
    x = inputs(rng)
    theirs = randomized(rnn.init(jax.random.key(0), x), rng)
    variables = weights.from_linen(theirs, layer)
    load = lambda tree: weights.from_linen(tree, layer)  # noqa: E731
    assert_same_numbers(layer, variables, run, theirs, load, x)


def test_our_weights_give_the_same_numbers_in_linen(linen_case, rng, x64):
    layer, _, run = linen_case
    variables = variables_of(layer, rng)
    [cell] = weights.to_linen(variables, layer)
    theirs = {"params": {"cell": cell}}
    load = lambda tree: weights.from_linen(tree, layer)  # noqa: E731
    assert_same_numbers(layer, variables, run, theirs, load, inputs(rng))


class Model(nn.Module):
    """Two layers in both directions, and others around them."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            forward, backward = (
                nn.RNN(nn.GRUCell(H, param_dtype=x.dtype)) for _ in "01"
            )
            x = nn.Bidirectional(forward, backward)(x)
        states = x
        x = nn.RNN(nn.GRUCell(H + 1, param_dtype=x.dtype))(x)
        return nn.Dense(2, param_dtype=x.dtype)(x), states


def test_cells_of_a_linen_model_are_found(rng, x64):
    x = inputs(rng)
    theirs = randomized(Model().init(jax.random.key(0), x), rng)
    layer = layer_of("gru", num_layers=2, bidirectional=True)
    variables = weights.from_linen(theirs, layer)
    _, expected = Model().apply(theirs, x)
    assert_close(layer.apply(variables, x)[0], expected)


def make_nnx(cell_type):
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return cell_type(D, H, **dtypes, rngs=nnx.Rngs(0))


def run_nnx(cell_type):
    def run(params, x):
        cell = make_nnx(cell_type)
        nnx.update(cell, params)
        carry, outputs = nnx.RNN(cell, return_carry=True, rngs=nnx.Rngs(0))(x)
        return outputs, final_h(carry)

    return run


def nnx_params(module, rng):
    return randomized(nnx.to_pure_dict(nnx.state(module, nnx.Param)), rng)


def without_b_n(layer):
    """Of a GRU, as NNX has no such bias: outputs and gradients by all others."""

    class Layer:
        def apply(self, variables, x):
            cell = {"b_n": jnp.zeros(H, jnp.float64), **variables["params"]["l0"]}
            return layer.apply({"params": {"l0": cell}}, x)

    return Layer()


def take_b_n(variables):
    b_n = variables["params"]["l0"].pop("b_n", np.zeros(()))
    assert not np.any(b_n)
    return variables


@pytest.mark.parametrize("name", NNX)
def test_nnx_weights_give_the_same_numbers_here(name, rng, x64):
    kind, cell_type = NNX[name]
    layer, run = layer_of(kind), run_nnx(cell_type)
    params = nnx_params(make_nnx(cell_type), rng)

    def load(tree):
        return take_b_n(weights.from_nnx(tree, layer))

    ours = without_b_n(layer) if name == "GRUCell" else layer
    assert_same_numbers(ours, load(params), run, params, load, inputs(rng))


@pytest.mark.parametrize("name", NNX)
def test_our_weights_give_the_same_numbers_in_nnx(name, rng, x64):
    kind, cell_type = NNX[name]
    layer, run = layer_of(kind), run_nnx(cell_type)
    variables = variables_of(layer, rng)
    if name == "GRUCell":
        with pytest.raises(ValueError, match=r"b_n of l0 must be zero, has \d"):
            weights.to_nnx(variables, layer)
        variables["params"]["l0"]["b_n"] = np.zeros(H)
    lstm = name if kind == "lstm" else "OptimizedLSTMCell"
    [cell] = weights.to_nnx(variables, layer, lstm=lstm)

    def load(tree):
        return take_b_n(weights.from_nnx(tree, layer))

    ours = without_b_n(layer) if name == "GRUCell" else layer
    assert_same_numbers(ours, take_b_n(variables), run, cell, load, inputs(rng))


def test_cells_of_an_nnx_module_are_found(rng, x64):
    one = [nnx.RNN(make_nnx(nnx.LSTMCell), rngs=nnx.Rngs(0)) for _ in range(2)]
    theirs = nnx.Bidirectional(*one, rngs=nnx.Rngs(0))
    nnx.update(theirs, nnx_params(theirs, rng))
    layer = layer_of("lstm", bidirectional=True)
    variables = weights.from_nnx(nnx.state(theirs, nnx.Param), layer)
    x = inputs(rng)
    assert_close(layer.apply(variables, x)[0], theirs(x))


def test_a_bias_without_a_place_is_refused(rng, x64):
    rnn, _ = linen(nn.LSTMCell)
    theirs = rnn.init(jax.random.key(0), inputs(rng))
    layer = layer_of("lstm", use_bias=False)
    assert "b" not in weights.from_linen(theirs, layer)["params"]["l0"]  # All zeros.
    theirs["params"]["cell"]["hf"]["bias"] += 0.5
    with pytest.raises(ValueError, match=r"params/cell must be zero, has 0\.5"):
        weights.from_linen(theirs, layer)


def test_all_faults_of_all_cells_are_listed():
    layer = jaxrnn.LSTM(H, num_layers=2)
    variables = layer.init(jax.random.key(0), jnp.ones((2, D)))
    cells = weights.to_linen(variables, layer)
    del cells[0]["hf"]["bias"]
    cells[1]["ii"]["kernel"] = np.ones((D, H))
    cells[1]["more"] = np.ones(3)
    with pytest.raises(ValueError, match="do not fit the layer") as raised:
        weights.from_linen(cells, layer)
    for fault in [
        "weights[0]: missing hf/bias (4,)",
        "weights[1]: unexpected more (3,)",
        "weights[1]: ii/kernel has shape (5, 4), expected (4, 4)",
    ]:
        assert fault in str(raised.value)


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (jaxrnn.LSTM(4, proj_size=2), ValueError, "proj_size=2: only PyTorch"),
        (
            jaxrnn.Recurrent(jaxrnn.ResetBeforeGRUCell(4)),
            TypeError,
            r"has cells like \['LSTMCell', .*, but none like the layer's ResetBefore",
        ),
        (jaxrnn.Recurrent(nn.MGUCell(4)), TypeError, "got MGUCell"),
        (nn.Dense(4), TypeError, "layer must be an RNN, LSTM, GRU"),
    ],
)
def test_layers_that_flax_has_not(layer, error, match):
    with pytest.raises(error, match=match):
        weights.from_linen({}, layer)


def test_variables_that_are_none():
    layer = jaxrnn.RNN(H)
    with pytest.raises(ValueError, match=r"must have 'params', got only \['l0'\]"):
        weights.to_linen({"l0": {}}, layer)
    with pytest.raises(ValueError, match=r"missing l0/w_h \(4, 4\)"):
        weights.to_linen({"params": {}}, layer)
    with pytest.raises(TypeError, match="variables must be a dict"):
        weights.to_linen([], layer)
    with pytest.raises(TypeError, match="weights must be a dict of arrays, or a list"):
        weights.from_linen(3, layer)
    with pytest.raises(TypeError, match="a must be an array of numbers, got 'text'"):
        weights.from_linen({"a": "text"}, layer)
    with pytest.raises(ValueError, match="lstm must be 'OptimizedLSTMCell' or"):
        weights.to_nnx({"params": {}}, layer, lstm="LSTM")


def test_a_module_of_nnx_in_the_place_of_its_parameters():
    module = nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    for given in (module, nnx.state(module)):
        with pytest.raises(TypeError, match=r"nnx\.state\(module, nnx\.Param\)"):
            weights.from_nnx(given, jaxrnn.LSTM(4))
