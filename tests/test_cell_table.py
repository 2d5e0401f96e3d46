"""Every cell of the library in a layer over padded and packed rows, against the loops
of the papers: outputs, final states, gradients, one step at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import Recurrent, cells
from tests.cell_table import CELLS, D, make

# Sequences sharing a row, with padding before, between, behind and inside them.
IDS = np.array([[1, 1, 1, 2, 2, 3], [1, 0, 0, 1, 2, 2], [0, 1, 2, 0, 2, 0], [0] * 6])
ROWS, T = IDS.shape


class Case:
    """A cell in a layer, with random weights, states and inputs, in float64."""

    def __init__(self, name, rng):
        self.rng = rng
        self.layer = Recurrent(make(name, param_dtype=jnp.float64))
        self.oracle = CELLS[name].oracle
        self.x = rng.normal(size=(ROWS, T, D))
        # Initial weights would hide much, with biases and states of zero.
        shapes = jax.eval_shape(self.layer.init, jax.random.key(0), self.x)
        self.weights = jax.tree.map(
            lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes["params"]["cell"]
        )
        zeros = self.layer.initial_state((ROWS,))
        self.state = jax.tree.map(self.random_like, zeros)

    def random_like(self, leaf):
        values = self.rng.normal(size=leaf.shape)
        if jnp.iscomplexobj(leaf):
            values = values + 1j * self.rng.normal(size=leaf.shape)
        return values

    def run(self, weights, x, state, **options):
        variables = {"params": {"cell": weights}}
        return self.layer.apply(variables, x, state=state, **options)

    def expected(self, weights, x, state, reverse):
        """By the oracle: each sequence of each row alone, and cut."""
        (zero,) = jax.tree.map(np.asarray, self.layer.initial_state(()))
        outputs, finals = None, []
        for r, ids in enumerate(IDS):
            (before,) = jax.tree.map(lambda leaf, r=r: leaf[r], state)
            final = before
            numbers = sorted(set(ids) - {0}, reverse=reverse)
            for number in numbers:
                steps = np.flatnonzero(ids == number)
                steps = steps[::-1] if reverse else steps
                h = before if number == min(numbers) else zero
                alone, final = self.oracle(x[r, steps], h, weights)
                if outputs is None:
                    outputs = np.zeros((ROWS, T, alone.shape[-1]))
                outputs[r, steps] = alone
            finals.append(jax.tree.leaves(final))
        return outputs, [np.stack(leaves) for leaves in zip(*finals, strict=True)]


def loss_of(outputs, finals, cotangents):
    leaves = [outputs, *finals]
    return sum(
        jnp.vdot(c, leaf).real for c, leaf in zip(cotangents, leaves, strict=True)
    )


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_paper_on_packed_rows(name, reverse, rng, x64):
    """Outputs, states, and the gradient in one random direction through weights, inputs
    and states; NaN in the padding changes nothing."""
    case = Case(name, rng)
    given = (case.weights, case.x, case.state)
    expected, expected_finals = case.expected(*given, reverse)
    cotangents = [case.random_like(leaf) for leaf in (expected, *expected_finals)]

    @jax.jit
    def run(*given):
        def loss(*given):
            outputs, state = case.run(*given, segment_ids=IDS, reverse=reverse)
            value = loss_of(outputs, jax.tree.leaves(state), cotangents)
            return value, (outputs, state)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*given)

    (_, (outputs, state)), gradient = run(*given)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-12)
    for found, leaf in zip(jax.tree.leaves(state), expected_finals, strict=True):
        np.testing.assert_allclose(found, leaf, rtol=0, atol=1e-12)

    direction = jax.tree.map(case.random_like, given)

    def oracles_value(step):
        moved = jax.tree.map(lambda a, d: a + step * d, given, direction)
        return loss_of(*case.expected(*moved, reverse), cotangents)

    # JAX's gradient of complex numbers is the conjugate of the usual one.
    slope = sum(
        np.sum(np.asarray(g) * d).real
        for g, d in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
        )
    )
    # A central difference in float64 is good to about eps ** (2 / 3) = 4e-11, relative.
    difference = (oracles_value(1e-5) - oracles_value(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6)

    padding = (IDS == 0)[..., None]
    nans = run(case.weights, np.where(padding, np.nan, case.x), case.state)
    zeros = run(case.weights, np.where(padding, 0, case.x), case.state)
    jax.tree.map(np.testing.assert_array_equal, nans, zeros)


@pytest.mark.parametrize("name", CELLS)
def test_steps_equal_the_paper(name, rng, x64):
    case = Case(name, rng)
    x, state = case.x[0], jax.tree.map(lambda leaf: leaf[0], case.state)
    expected, final = case.oracle(x, *state, case.weights)
    step = jax.jit(
        lambda x, state: case.layer.apply(
            {"params": {"cell": case.weights}}, x, state, method="step"
        )
    )
    for x_t, y in zip(x, expected, strict=True):
        output, state = step(x_t, state)
        np.testing.assert_allclose(output, y, rtol=0, atol=1e-12)
    for found, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(final), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_weights_spelled_out_and_dtypes(name):
    row = CELLS[name]
    for dtype in (None, jnp.bfloat16):
        layer = Recurrent(make(name, dtype=dtype))
        x = jax.ShapeDtypeStruct((2, 5, D), jnp.float32)
        (outputs, state), variables = jax.eval_shape(
            layer.init_with_output, jax.random.key(0), x
        )
        weights = variables["params"]["cell"]
        assert {name: w.shape for name, w in weights.items()} == row.shapes
        assert {w.dtype for w in weights.values()} == {jnp.dtype("float32")}
        assert outputs.dtype == (dtype or jnp.float32)
        initial = layer.initial_state((2,))
        assert jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, initial
        ) == jax.tree.map(lambda _: True, initial)
    without = Recurrent(make(name, use_bias=False))
    variables = jax.eval_shape(without.init, jax.random.key(0), x)
    biases = [n for n in variables["params"]["cell"] if n.startswith("b")]
    assert not biases


def test_every_cell_is_in_the_table():
    tested = {row.cell_type for row in CELLS.values()}
    public = {getattr(cells, name) for name in cells.__all__ if name.endswith("Cell")}
    assert public - tested == {
        cells.Cell,
        cells.LinearCell,
        cells.ConvLSTMCell,  # in test_conv_cells.py: its inputs have other axes
    }


PARALLEL = {"min-gru", "min-lstm", "sru", "qrnn-fo-2", "lru", "rg-lru", "s5"}


@pytest.mark.parametrize("name", CELLS)
def test_what_is_linear_in_the_state_runs_in_parallel(name):
    expected = any(name.startswith(n.split("-fo")[0]) for n in PARALLEL)
    expected = expected and name != "sru-peephole"
    if expected:
        assert Recurrent(make(name)).resolved_backends == ("parallel",)
        assert Recurrent(make(name), backend="scan").resolved_backends == ("scan",)
    else:
        assert Recurrent(make(name)).resolved_backends != ("parallel",)
