"""What cells start as, their options, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrnn import Layer, Recurrent, cells

X = np.ones((2, 3), np.float32)


def weights(cell, inputs=X):
    state = cell.initial_state(inputs.shape[:1])
    return cell.init(jax.random.key(0), state, inputs)["params"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (cells.PeepholeLSTMCell(2), [0, 0, 1, 1, 0, 0, 0, 0]),
        (cells.CoupledLSTMCell(2, forget_bias=0.5), [0.5, 0.5, 0, 0, 0, 0]),
        (cells.JANETCell(2), [1, 1, 0, 0]),
        (cells.MogrifierLSTMCell(1), [0, 1, 0, 0]),
        (cells.MGUCell(2), [0] * 4),
        (cells.UGRNNCell(2), [1, 1, 0, 0]),
        (cells.RHNCell(1, depth=3), [0, -2] * 3),
        (cells.MinLSTMCell(2, forget_bias=3.0), [3, 3, 0, 0, 0, 0]),
        (cells.ConvLSTMCell(1, kernel_size=(1,)), [0, 1, 0, 0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_initial_biases(cell, expected):
    x = X[:, None] if isinstance(cell, cells.ConvLSTMCell) else X
    state = cell.initialize_carry(jax.random.key(0), x.shape)
    assert cell.init(jax.random.key(0), state, x)["params"]["b"].tolist() == expected


def test_eigenvalues_of_an_lru_lie_evenly_in_a_ring():
    """Orvieto et al. (2023): squared radii are uniform."""
    w = weights(cells.LRUCell(4, state_features=4000, r_min=0.5, r_max=0.9))
    radii, phases = np.exp(-np.exp(w["nu"])), np.exp(w["theta"])
    assert radii.min() > 0.5 - 1e-6
    assert radii.max() < 0.9 + 1e-6
    low, high = 0.25, 0.81
    # The mean of 4,000 uniform numbers, to five standard errors.
    error = 5 * (high - low) / np.sqrt(12 * 4000)
    assert abs((radii**2).mean() - (low + high) / 2) < error
    assert abs(phases.mean() - np.pi) < 5 * 2 * np.pi / np.sqrt(12 * 4000)
    np.testing.assert_allclose(np.exp(2 * w["gamma"]), 1 - radii**2, rtol=1e-4)


def test_decays_of_an_rg_lru_are_those_of_the_paper():
    w = weights(cells.RGLRUCell(4000))
    slowest = (1 / (1 + np.exp(np.float64(w["decay"])))) ** 8
    assert slowest.min() > 0.9 - 1e-5
    assert slowest.max() < 0.999 + 1e-5
    assert abs(slowest.mean() - 0.9495) < 5 * 0.099 / np.sqrt(12 * 4000)


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_s5_starts_as_the_normal_part_of_hippo(blocks):
    """Eigenvalues against numpy's of the matrix as the paper writes it; and that B and
    C are in coordinates in which their product is what it was."""
    states, size = 6, 12 // blocks

    def kernel_init(key, shape, dtype):
        return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)

    cell = cells.S5Cell(
        4, state_features=states, blocks=blocks, kernel_init=kernel_init
    )
    w = weights(cell)
    matrix = np.zeros((size, size))
    for n in range(size):
        for k in range(size):
            root = np.sqrt(2 * n + 1) * np.sqrt(2 * k + 1)
            hippo = -root if n > k else -(n + 1.0) if n == k else 0.0
            matrix[n, k] = hippo + np.sqrt(n + 0.5) * np.sqrt(k + 0.5)
    expected = np.linalg.eigvals(matrix)
    np.testing.assert_allclose(expected.real, -0.5, atol=1e-10)
    upper = np.sort(expected.imag[expected.imag > 0])
    np.testing.assert_allclose(
        np.sort(w["frequency"]), np.sort([*upper] * blocks), 1e-5
    )
    np.testing.assert_allclose(-np.exp(w["log_decay"]), -0.5, rtol=1e-6)

    b, c = (kernel_init(None, shape, jnp.float32) for shape in ((3, 12), (12, 4)))
    found = w["w_x"][:, : 2 * states] @ w["w_y"]
    if blocks == 1:  # else the blocks of b and c are mixed the same way in both
        np.testing.assert_allclose(found, b @ c, atol=1e-5)
    steps = np.exp(w["log_step"])
    assert ((steps >= 0.001 * (1 - 1e-5)) & (steps <= 0.1 * (1 + 1e-5))).all()


def test_noise_of_a_leaky_network_is_drawn_where_there_is_a_stream():
    """Song et al. (2016): of variance 2 alpha noise**2 at each step."""
    cell = cells.LeakyRNNCell(50, noise=0.3)
    layer = Recurrent(cell)
    x = np.zeros((40, 3, 3), np.float32)
    variables = layer.init(jax.random.key(0), x)
    variables = jax.tree.map(jnp.zeros_like, variables)
    quiet, _ = layer.apply(variables, x)
    assert not quiet.any()
    rngs = {"noise": jax.random.key(1)}
    _, (first,) = layer.apply(variables, x[:, :1], rngs=rngs)
    variance = 2 * 0.2 * 0.3**2
    # A variance of 2,000 draws, to five standard errors.
    assert abs(first.var() / variance - 1) < 5 * np.sqrt(2 / 2000)
    _, (third,) = layer.apply(variables, x, rngs=rngs)
    expected = variance * (1 + 0.8**2 + 0.8**4)  # another draw at each step
    assert abs(third.var() / expected - 1) < 5 * np.sqrt(2 / 2000)


def test_units_of_a_leaky_network_excite_or_inhibit(rng):
    cell = cells.LeakyRNNCell(10, excitatory=0.7, rate="softplus")
    variables = {"params": weights(cell)}
    v = rng.normal(size=10).astype(np.float32)
    x = np.zeros(3, np.float32)
    effect = jax.jacobian(lambda v: cell.apply(variables, v, x)[0])(v)  # [to, from]
    others = ~np.eye(10, dtype=bool)
    for unit in range(10):
        signs = np.sign(effect[others[:, unit], unit])
        assert (signs == (1 if unit < 7 else -1)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cells.LeakyRNNCell(4, time_constant=0.0), "time_constant must be pos"),
        (lambda: cells.LeakyRNNCell(4, dt=200.0), "dt must not be above time_constant"),
        (lambda: cells.LeakyRNNCell(4, noise=-1.0), "noise must not be negative"),
        (lambda: cells.LeakyRNNCell(4, rate="gelu"), "rate must be one of.*'gelu'"),
        (lambda: cells.LeakyRNNCell(4, integration="rk4"), "integration must be one"),
        (lambda: cells.LeakyRNNCell(4, excitatory=2.0), "excitatory must be from 0 to"),
        (lambda: cells.CfCCell(4, dt=0.0), "dt must be positive, got 0"),
        (lambda: cells.CfCCell(4, hidden_features=0), "hidden_features must be at"),
        (lambda: cells.LEMCell(4, dt=float("nan")), "dt must be positive, got nan"),
        (lambda: cells.CoRNNCell(4, gamma=0.0), "gamma must be positive"),
        (lambda: cells.AntisymmetricRNNCell(4, diffusion=-0.1), "must not be negative"),
        (lambda: cells.IndRNNCell(4, activation="gelu"), "'gelu'"),
        (lambda: cells.QRNNCell(4, window=3), "window must be 1 or 2, got 3"),
        (lambda: cells.QRNNCell(4, pooling="max"), "pooling must be one of"),
        (lambda: cells.S5Cell(4, state_features=6, blocks=4), "divide the 6 state fe"),
        (lambda: cells.S5Cell(4, dt_min=0.2), "dt_min must be below dt_max"),
        (lambda: cells.LRUCell(4, r_min=0.9, r_max=0.5), "r_min must be below r_max"),
        (lambda: cells.RGLRUCell(4, r_max=1.0), "both between 0 and 1"),
        (lambda: cells.MogrifierLSTMCell(4, rounds=-1), "rounds must be at least 0"),
        (lambda: cells.RHNCell(4, depth=0), "depth must be at least 1"),
        (lambda: cells.SCRNCell(4, context_features=4), r"below features \(4\), got 4"),
        (lambda: cells.SCRNCell(1), r"below features \(1\), got 1"),
        (lambda: cells.LayerNormGRUCell(4, epsilon=0.0), "epsilon must be positive"),
        (
            lambda: weights(cells.CfCCell(4, time_feature=True), X[:, :1]),
            "need a feature and the length of the step",
        ),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "name", ["MogrifierLSTMCell", "RGLRUCell", "SRUCell", "CfCCell"]
)
def test_inputs_of_another_number_of_features(name):
    layer = Layer(getattr(cells, name), features=3)
    variables = layer.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="5 features, but the weights were made for 3"):
        layer.apply(variables, np.ones((2, 5), np.float32))


def test_options_that_a_cell_has_not():
    with pytest.raises(
        TypeError, match=r"MGUCell has no option 'rounds', it has \['for"
    ):
        Layer(cells.MGUCell, features=4, cell_options={"rounds": 3})
    with pytest.raises(TypeError, match=r"cell_type must be a class of jaxrnn.cells"):
        Layer(4, features=3)
    with pytest.raises(TypeError, match="has no option 'features'"):
        Layer(cells.MGUCell, features=4, cell_options={"features": 3})
    partial = functools.partial(Layer, cells.MGUCell)
    assert hash(partial(features=4)) == hash(partial(features=4))


@pytest.mark.parametrize("r_min", [0.0, 0.9, 0.999, 0.99999])
def test_an_lru_starts_normalized_however_close_to_1(r_min):
    """exp(gamma) is sqrt(1 - |lambda|**2) with every digit of float32."""
    cell = cells.LRUCell(1024, r_min=r_min, r_max=1.0)
    state, x = cell.initial_state((1,)), np.ones((1, 3), np.float32)
    params = cell.init(jax.random.key(0), state, x)["params"]
    nu, gamma = (np.float64(params[name]) for name in ("nu", "gamma"))
    assert np.isfinite(nu).all()
    expected = np.sqrt(-np.expm1(-2 * np.exp(nu)))
    np.testing.assert_allclose(np.exp(gamma), expected, rtol=1e-6)
    radius = np.exp(-np.exp(nu))
    assert ((radius >= r_min - 1e-7) & (radius < 1)).all()


def test_steps_that_depend_on_each_other_are_not_run_at_once():
    cell = cells.SRUCell(4, peephole=True)

    def run(cell, x):
        return cell.over_time(cell.initial_state((2,)), cell.project(x))

    with pytest.raises(ValueError, match=r"linear in the state, got SRUCell\("):
        nn.init(run, cell)(jax.random.key(0), jnp.ones((5, 2, 3)))
