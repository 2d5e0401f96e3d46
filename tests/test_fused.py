"""The fast recurrences against the reference scan: outputs, states and every cotangent,
in both modes of differentiation."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import cells

B, T, D, H = 4, 5, 3, 4
LAYERS = {
    "lstm": jaxrnn.LSTM(H),
    "lstm-projected": jaxrnn.LSTM(H, proj_size=2),
    "gru": jaxrnn.GRU(H),
    "gru-without-bias": jaxrnn.GRU(H, use_bias=False),
    "rnn": jaxrnn.RNN(H),
    "rnn-relu": jaxrnn.RNN(H, activation="relu"),
}
RAGGED = {
    "full": {},
    "lengths": {"lengths": np.array([T, 0, 1, T - 1])},
    # Padding before, between, inside and behind sequences.
    "packed": {
        "segment_ids": np.array(
            [[1, 1, 2, 2, 3], [1, 0, 0, 2, 2], [0, 1, 0, 1, 2], [0, 0, 0, 0, 0]]
        )
    },
}


class Case:
    """A layer in both backends, with inputs and cotangents to try them on."""

    def __init__(self, layer, rng, dtype=np.float64, **options):
        self.layer = layer.copy(param_dtype=dtype)
        self.options = options
        self.dtype, self.rng = dtype, rng
        self.x = self.normal(B, T, D)
        variables = self.layer.init(jax.random.key(0), self.x)
        noise = jax.tree.map(lambda leaf: 0.3 * self.normal(*leaf.shape), variables)
        self.variables = jax.tree.map(jnp.add, variables, noise)
        zeros = self.layer.initial_state((B,))
        self.state = jax.tree.map(lambda leaf: self.normal(*leaf.shape), zeros)

    def normal(self, *shape):
        return jnp.asarray(self.rng.normal(size=shape), self.dtype)

    def run(self, backend, **options):
        """A function of variables, inputs and state."""
        layer = self.layer.copy(backend=backend)
        options |= self.options
        return lambda variables, x, state=None: layer.apply(
            variables, x, state=state, **options
        )

    @property
    def given(self):
        return self.variables, self.x, self.state


def assert_close(found, expected, tolerance=1e-12):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
        found,
        expected,
    )


def both_ways(case, *given):
    """By the fast recurrence and by the scan: results, and cotangents of all given."""
    results = jax.eval_shape(case.run("scan"), *given)
    cotangents = jax.tree.map(
        lambda leaf: case.normal(*leaf.shape).astype(leaf.dtype), results
    )

    def run(backend):
        results, pull_back = jax.vjp(case.run(backend), *given)
        return results, pull_back(cotangents)

    return [jax.jit(run, static_argnums=0)(backend) for backend in ("fused", "scan")]


# The LSTM meets everything, the others what is most and least.
TABLE = [
    *itertools.product(["lstm"], RAGGED, [False, True]),
    *itertools.product(list(LAYERS)[1:], ["full"], [False]),
    *itertools.product(list(LAYERS)[1:], ["packed"], [True]),
]


@pytest.mark.parametrize(("name", "ragged", "reverse"), TABLE)
def test_equals_the_scan(name, ragged, reverse, rng, x64):
    case = Case(LAYERS[name], rng, **RAGGED[ragged], reverse=reverse)
    # Float64: the two add the same numbers in another order.
    assert_close(*both_ways(case, *case.given))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_equals_the_scan_from_a_state_of_zeros(name, rng, x64):
    case = Case(LAYERS[name], rng, **RAGGED["packed"], reverse=True)
    assert_close(*both_ways(case, case.variables, case.x))


# Shares of the greatest number of an array. Float32 adds in another order; a sum that
# differs in its last place tips a rounding to bfloat16 (2**-8) now and then.
COARSE = {"float32": 1e-5, "bfloat16": 2**-6}


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("name", ["lstm", "lstm-projected", "gru", "rnn"])
def test_equals_the_scan_in_the_dtypes_of_programs(name, dtype, rng):
    layer = LAYERS[name].copy(dtype=jnp.dtype(dtype))
    case = Case(layer, rng, np.float32, **RAGGED["packed"], reverse=True)
    given = case.variables, case.x.astype(dtype), case.state
    found, expected = map(jax.tree.leaves, both_ways(case, *given))
    for leaf, like in zip(found, expected, strict=True):
        assert leaf.dtype == like.dtype
        leaf, like = (np.asarray(array, np.float64) for array in (leaf, like))
        assert_close(leaf, like, COARSE[dtype] * np.abs(like).max())


@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode_is_the_transpose_of_reverse_mode(name, rng, x64):
    case = Case(LAYERS[name], rng, **RAGGED["packed"])
    tangents = jax.tree.map(lambda leaf: case.normal(*leaf.shape), case.given)
    run = case.run("fused")
    results, d_results = jax.jvp(run, case.given, tangents)
    cotangents = jax.tree.map(lambda leaf: case.normal(*leaf.shape), results)
    pulled_back = jax.vjp(run, *case.given)[1](cotangents)
    forward = jax.tree.map(jnp.vdot, cotangents, d_results)
    backward = jax.tree.map(jnp.vdot, pulled_back, tangents)
    forward, backward = (sum(jax.tree.leaves(dots)) for dots in (forward, backward))
    np.testing.assert_allclose(forward, backward, rtol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_second_derivatives(name, rng, x64):
    case = Case(LAYERS[name], rng, **RAGGED["lengths"])
    direction = jax.tree.map(lambda leaf: case.normal(*leaf.shape), case.given)

    def curvature(backend):
        def loss(*given):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(run(*given)))

        run = case.run(backend)
        gradient = jax.grad(loss, argnums=(0, 1, 2))
        return jax.jit(lambda: jax.jvp(gradient, case.given, direction)[1])()

    assert_close(curvature("fused"), curvature("scan"), tolerance=1e-11)


def test_gradients_of_each_example_by_vmap(rng, x64):
    case, ids = Case(LAYERS["lstm"], rng), RAGGED["packed"]["segment_ids"]

    def gradient(x, state, ids):
        def loss(variables):
            outputs, _ = case.run("fused", segment_ids=ids)(variables, x, state)
            return jnp.sum(outputs**2)

        return jax.grad(loss)(case.variables)

    given = case.x, case.state, ids
    each = jax.vmap(gradient)(*given)
    for row in range(B):
        alone = gradient(*jax.tree.map(lambda leaf, row=row: leaf[row], given))
        assert_close(jax.tree.map(lambda leaf, row=row: leaf[row], each), alone)


@pytest.mark.parametrize("name", ["lstm", "lstm-projected", "gru", "rnn"])
def test_bfloat16_products_with_a_float32_state(name, rng):
    case = Case(LAYERS[name].copy(dtype=jnp.bfloat16), rng, np.float32)
    outputs, state = case.run("fused")(*case.given)
    expected, expected_state = case.run("scan")(*case.given)
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    # Factors round alike in both; float32 sums differ in their order, which tips a
    # bfloat16 rounding (2**-8) now and then.
    assert_close(outputs.astype(jnp.float32), expected.astype(jnp.float32), 2**-7)
    assert_close(state, expected_state, 2**-7)

    def gradient(backend, layer):
        def loss(variables):
            outputs, _ = layer.copy(backend=backend).apply(variables, case.x)
            return jnp.sum(outputs.astype(jnp.float32))

        return jax.grad(loss)(case.variables)

    found = gradient("fused", case.layer)
    exact = gradient("scan", case.layer.copy(dtype=jnp.float32))
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert leaf.dtype == jnp.float32
        # Roundings of 2**-9 each, over T steps and a gradient of size 1 to 10.
        np.testing.assert_allclose(leaf, like, atol=0.03 * np.abs(like).max())


@pytest.mark.parametrize("name", ["lstm", "lstm-projected", "gru", "rnn"])
def test_no_product_of_the_backward_pass_mixes_dtypes(name, rng):
    """Nor is any cotangent multiplied in float32, which is slower where there are
    instructions for bfloat16."""
    case = Case(LAYERS[name].copy(dtype=jnp.bfloat16), rng, np.float32)
    run = case.run("fused")

    def loss(variables, x):
        return jnp.sum(run(variables, x)[0].astype(jnp.float32))

    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(case.variables, case.x)
    found = re.findall(
        r"stablehlo\.dot_general.* : "
        r"\(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\) -> tensor<\S*x(\w+)>",
        lowered.as_text(),
    )
    products = 9 if name == "lstm-projected" else 6
    # Forward, and the gradients of both factors, of each matrix.
    assert found == [("bf16", "bf16", "f32")] * products


# Of each step and row. LSTM: the state before (h, c) and i f g o; projected also what
# is projected. RNN: the state before and after. GRU: the state before, its share of n,
# and r z n.
KEPT = {"lstm": 6 * H, "lstm-projected": 6 * H + 2, "rnn": 2 * H, "gru": 5 * H}
# For the gradient of w_x, the inputs; of lengths, where the padding is: for the loop,
# and, with the zeros to put there, as wide as the inputs.
KEPT_OF_INPUTS = {"full": D, "lengths": D + 1 + 2 * D}


@pytest.mark.parametrize("ragged", KEPT_OF_INPUTS)
@pytest.mark.parametrize("name", KEPT)
def test_keeps_only_what_the_backward_pass_needs(name, ragged, rng, x64):
    """Final states with lengths cost no history, either."""
    case = Case(LAYERS[name], rng, **RAGGED[ragged])

    def pull_back(x):
        return jax.vjp(case.run("fused"), case.variables, x, case.state)[1]

    def kept(x):
        leaves = jax.tree.leaves(jax.eval_shape(pull_back, x))
        return sum(leaf.size for leaf in leaves)

    longer = jnp.concatenate([case.x, case.x], axis=1)
    per_step = KEPT[name] + KEPT_OF_INPUTS[ragged]
    assert kept(longer) - kept(case.x) == B * T * per_step


def test_the_layer_says_which_recurrence_runs():
    layer = jaxrnn.LSTM(H, bidirectional=True, dtype=jnp.bfloat16)
    assert layer.resolved_backends == ("fused", "fused")
    assert jaxrnn.LSTM(H, backend="scan").resolved_backends == ("scan",)
    cell = cells.ResetBeforeGRUCell(H)
    stack = jaxrnn.Stack([jaxrnn.GRU(H, backend="fused"), jaxrnn.Recurrent(cell)])
    assert stack.resolved_backends == ("fused", "scan")


def test_a_subclass_may_have_changed_anything():
    class Mine(cells.LSTMCell):
        pass

    assert jaxrnn.Recurrent(Mine(H)).resolved_backends == ("scan",)
