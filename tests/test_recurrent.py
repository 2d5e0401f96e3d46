"""`Recurrent` with cells that are not ours, or not as we made them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn
from tests.test_functional import BACKENDS

X = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
cells = jaxrnn.cells
LINEAR = [
    *(cells.MinGRUCell, cells.MinLSTMCell, cells.QRNNCell, cells.SRUCell),
    *(cells.LRUCell, cells.RGLRUCell, cells.S5Cell),
    functools.partial(cells.QRNNCell, window=2),
]
PACKED = np.array([[1, 1, 2, 2]])


class Noisy(nn.RNNCellBase):
    """Somebody's cell with dropout and something to look at."""

    @nn.compact
    def __call__(self, carry, x):
        self.sow("intermediates", "seen", x)
        y = nn.Dropout(0.5, deterministic=False)(x)
        return carry, y

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape)

    @property
    def num_feature_axes(self):
        return 1


def test_anyones_cell_draws_anew_at_each_step_and_may_sow():
    ones = np.ones((1, 50, 20), np.float32)
    (outputs, _), seen = jaxrnn.Recurrent(Noisy()).apply(
        {}, ones, rngs={"dropout": jax.random.key(0)}, mutable="intermediates"
    )
    assert abs((outputs == 0).mean() - 0.5) < 0.08
    assert (outputs[:, 0] != outputs[:, 1]).mean() > 0.2
    (sown,) = jax.tree.leaves(seen)
    assert sown.shape == (50, 1, 20)


class Doubled(jaxrnn.GRUCell):
    """Ours, with another way to be called."""

    def __call__(self, state, x):
        state, y = super().__call__(state, x)
        return state, 2 * y


def test_a_cell_of_ours_that_is_changed_is_called_as_it_is():
    plain, changed = jaxrnn.Recurrent(jaxrnn.GRUCell(4)), jaxrnn.Recurrent(Doubled(4))
    variables = plain.init(jax.random.key(0), X)
    outputs, _ = plain.apply(variables, X)
    np.testing.assert_allclose(changed.apply(variables, X)[0], 2 * outputs, atol=1e-6)
    rematted = jaxrnn.Recurrent(nn.remat(jaxrnn.GRUCell)(4))
    assert "remat" in str(jax.make_jaxpr(rematted.apply)(variables, X))
    np.testing.assert_allclose(rematted.apply(variables, X)[0], outputs, atol=1e-6)


class Zoned(jaxrnn.LSTMCell):
    """Ours, with another recurrence: a tenth of the state stays (zoneout's mean)."""

    def recur(self, state, x_gates):
        after, y = super().recur(state, x_gates)
        return jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, after, state), y


def test_a_cell_of_ours_with_another_recurrence_has_it_in_every_step():
    layer = jaxrnn.Recurrent(Zoned(4))
    variables = layer.init(jax.random.key(0), X)
    whole, _ = layer.apply(variables, X)
    plain, _ = jaxrnn.Recurrent(jaxrnn.LSTMCell(4)).apply(variables, X)
    assert np.abs(whole - plain).max() > 1e-3
    state = layer.initial_state(X.shape[:1])
    for t in range(X.shape[1]):
        y, state = layer.apply(variables, X[:, t], state, method="step")
        np.testing.assert_allclose(whole[:, t], y, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_stack_of_convolutional_cells_carries_its_state(rng):
    x = rng.normal(size=(2, 4, 5, 5, 3)).astype(np.float32)
    cells = [nn.ConvLSTMCell(n, kernel_size=(3, 3)) for n in (4, 2)]
    layer = jaxrnn.Stack([jaxrnn.Recurrent(cell) for cell in cells])
    (whole, _), variables = layer.init_with_output(jax.random.key(0), x)
    first, state = layer.apply(variables, x[:, :3])
    last, _ = layer.apply(variables, x[:, 3:], state=state)
    np.testing.assert_allclose(jnp.concatenate([first, last], 1), whole, atol=1e-6)


def test_a_convolutional_cell(rng):
    x = rng.normal(size=(2, 5, 6, 6, 3)).astype(np.float32)
    layer = jaxrnn.Recurrent(nn.ConvLSTMCell(4, kernel_size=(3, 3)))
    variables = layer.init(jax.random.key(0), x)
    outputs, _ = layer.apply(variables, x, lengths=np.array([5, 2]))
    alone, _ = layer.apply(variables, x[1, :2])
    np.testing.assert_allclose(outputs[1, :2], alone, atol=1e-6)
    assert not outputs[1, 2:].any()
    with pytest.raises(ValueError, match="initialize_carry"):
        layer.initial_state((2,))


@pytest.mark.parametrize(
    ("reverse", "meant"), [(False, [1, 1, 1, 2, 0]), (True, [1, 1, 2, 3, 0])]
)
def test_ids_that_jit_cannot_check_go_on_where_they_should_rise(reverse, meant):
    layer = jaxrnn.Recurrent(jaxrnn.GRUCell(4))
    run = jax.jit(functools.partial(layer.apply, reverse=reverse))
    variables = layer.init(jax.random.key(0), X[0])
    found, expected = (
        run(variables, X[0], segment_ids=np.array(ids))
        for ids in ([2, 1, 2, 3, -1], meant)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    alone, _ = layer.apply(variables, X[0, 3:4])
    np.testing.assert_allclose(found[0][3:4], alone, atol=1e-6)


@pytest.mark.parametrize("cell_type", [*LINEAR, cells.MGUCell])
def test_the_state_of_an_idle_row_reaches_no_gradient(cell_type):
    """A row of length 0 keeps its state, of NaN too, and takes part in nothing."""
    layer = jaxrnn.Recurrent(cell_type(4))
    check_idle_row(layer)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell_type", [jaxrnn.LSTM, jaxrnn.GRU, jaxrnn.RNN])
def test_nor_does_it_by_any_backend(cell_type, backend):
    check_idle_row(cell_type(4, backend=backend))


def check_idle_row(layer):
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    variables, lengths = layer.init(jax.random.key(1), x), np.array([3, 0])
    zeros = layer.initial_state((2,))
    state = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), zeros)

    def total(variables, state):
        outputs, _ = layer.apply(variables, x, lengths, state=state)
        return (outputs**2).sum()

    found, expected = (jax.grad(total)(variables, s) for s in (state, zeros))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell_type", LINEAR)
def test_a_sequence_that_is_not_finite_does_not_reach_the_next(cell_type):
    layer = jaxrnn.Recurrent(cell_type(4))
    x = jax.random.normal(jax.random.key(0), (1, 4, 4))
    variables = layer.init(jax.random.key(1), x)

    def outputs(x):
        return layer.apply(variables, x, segment_ids=PACKED)[0][:, 2:]

    bad = x.at[0, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(outputs(bad), outputs(x))
    found, expected = (jax.grad(lambda x: outputs(x).sum())(x) for x in (bad, x))
    np.testing.assert_array_equal(found[:, 2:], expected[:, 2:])
