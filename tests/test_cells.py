"""The cells as Flax modules: weights, initial statistics, others' loops, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn

SHAPES = [
    (jaxrnn.RNNCell(6), {"w_x": (3, 6), "w_h": (6, 6), "b": (6,)}),
    (jaxrnn.LSTMCell(6), {"w_x": (3, 24), "w_h": (6, 24), "b": (24,)}),
    (
        jaxrnn.LSTMCell(6, proj_size=2),
        {"w_x": (3, 24), "w_h": (2, 24), "b": (24,), "w_p": (6, 2)},
    ),
    (jaxrnn.GRUCell(6), {"w_x": (3, 18), "w_h": (6, 18), "b": (18,), "b_n": (6,)}),
    (jaxrnn.GRUCell(6, use_bias=False), {"w_x": (3, 18), "w_h": (6, 18)}),
    (jaxrnn.ResetBeforeGRUCell(6), {"w_x": (3, 18), "w_h": (6, 18), "b": (18,)}),
]


@pytest.mark.parametrize(("cell", "shapes"), SHAPES)
def test_weights_spelled_out(cell, shapes):
    x = jnp.zeros((2, 3))
    weights = cell.init(jax.random.key(0), cell.initial_state((2,)), x)["params"]
    assert {name: w.shape for name, w in weights.items()} == shapes


def test_initial_statistics():
    h = 64
    cell = jaxrnn.LSTMCell(h)
    x = jnp.zeros((1, 400))
    weights = cell.init(jax.random.key(0), cell.initial_state((1,)), x)["params"]
    for k in range(4):
        gate = weights["w_h"][:, k * h : (k + 1) * h]
        # Float32 products of 64 terms: orthogonal to a few units in the last place.
        np.testing.assert_allclose(gate @ gate.T, np.eye(h), atol=1e-5)
    i, f, g, o = np.split(np.asarray(weights["b"]), 4)
    assert (f == 1).all()
    assert not i.any()
    assert not g.any()
    assert not o.any()
    # LeCun (1998): variance 1 / fan-in, here of 25,600 draws (standard error 1%).
    assert weights["w_x"][:, :h].std() == pytest.approx(400**-0.5, rel=0.03)


def test_forget_bias_adds_to_the_initial_bias():
    cell = jaxrnn.LSTMCell(2, forget_bias=0.5, bias_init=nn.initializers.constant(0.25))
    weights = cell.init(jax.random.key(0), cell.initial_state((1,)), jnp.zeros((1, 3)))
    b = weights["params"]["b"].tolist()
    assert b == [0.25, 0.25, 0.75, 0.75, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("cell_type", [jaxrnn.LSTMCell, jaxrnn.GRUCell])
def test_our_cells_run_in_flax_rnn(cell_type, rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    theirs = nn.RNN(cell_type(4))
    variables = theirs.init(jax.random.key(0), x)
    ours = jaxrnn.Recurrent(cell_type(4))
    np.testing.assert_allclose(
        theirs.apply(variables, x), ours.apply(variables, x)[0], atol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxrnn.RNNCell(3, activation="gelu"), "'gelu'"),
        (
            lambda: jaxrnn.LSTMCell(3, proj_size=3),
            r"below features \(3\) or 0 for none, got 3",
        ),
        (lambda: jaxrnn.LSTMCell(3, proj_size=-1), "got -1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3), np.int32), "floating point, got int32"),
        (np.zeros((1, 4), np.float32), "4 features, but the weights were made for 3"),
    ],
)
def test_bad_inputs(x, message):
    cell = jaxrnn.GRUCell(2)
    state = cell.initial_state((1,))
    variables = cell.init(jax.random.key(0), state, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match=message):
        cell.apply(variables, state, jnp.asarray(x))


@pytest.mark.parametrize(
    ("rows", "x_gates", "message"),
    [
        (4, (4, 1), "the gates has 6 features, as project makes them, got 1"),
        (4, (1, 6), r"the state has shape \(4, 2\), but the batch of inputs \[1\]"),
        (1, (4, 6), r"the state has shape \(1, 2\), but the batch of inputs \[4\]"),
    ],
)
def test_nothing_is_repeated_to_fit(rows, x_gates, message):
    cell = jaxrnn.GRUCell(2)
    state = cell.initial_state((rows,))
    variables = cell.init(jax.random.key(0), state, jnp.zeros((rows, 3)))
    with pytest.raises(ValueError, match=message):
        cell.apply(variables, state, jnp.zeros(x_gates), method="recur")


def test_inputs_wider_than_the_weights(x64):
    cell = jaxrnn.GRUCell(2)
    with pytest.raises(ValueError, match="float64, but the cell computes in float32"):
        cell.init(jax.random.key(0), cell.initial_state((1,)), jnp.zeros((1, 3)))


def test_a_cell_that_is_called_in_another_order_says_how_it_is_called():
    x, h, key = np.ones((2, 3), np.float32), jnp.zeros((2, 4)), jax.random.key(0)
    lstm, gru = jaxrnn.LSTMCell(4), jaxrnn.GRUCell(4)
    called = r"a cell is called as cell\(state, x\), got "
    with pytest.raises(TypeError, match=f"x must be an array: {called}"):
        lstm.init(key, x, jaxrnn.LSTMState(h, h))
    with pytest.raises(TypeError, match=f"must be of type LSTMState.*: {called}"):
        lstm.init(key, (h, h), x)
    with pytest.raises(TypeError, match=f"GRUCell must be one array.*: {called}"):
        gru.init(key, (h,), x)
    with pytest.raises(ValueError, match=rf"must have shape \(2, 4\) for .*: {called}"):
        gru.init(key, x, h)
    with pytest.raises(TypeError, match="no argument 'hidden_size': here it is feat"):
        jaxrnn.LSTMCell(hidden_size=4)
    with pytest.raises(TypeError, match="give all but the number of features by name"):
        jaxrnn.cells.ConvLSTMCell(4, (3, 3))
