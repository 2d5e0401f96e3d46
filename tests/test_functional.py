"""The pure functions, in every backend that there is here: values against loops in
float64, derivatives against the reference, and what they refuse."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import LSTMState, functional
from jaxrnn.native import library
from tests import oracles

pytestmark = pytest.mark.optimized

B, T, D, H, P = 4, 5, 3, 4, 2
NATIVE = ["native"] if library.instruction_set() else []
BACKENDS = ["fused", "scan", *NATIVE]
CELLS = ["lstm", "lstm-projected", "gru", "gru-without-bias", "rnn", "rnn-relu"]
# Float32 holds 24 bits; sums are of a few terms, over a few steps.
CLOSE = {np.float32: 2e-6, np.float64: 1e-14}
# Padding before, between, inside and behind sequences.
IDS = np.array([[1, 1, 2, 2, 3], [1, 0, 0, 2, 2], [0, 1, 0, 1, 2], [0, 0, 0, 0, 0]])


class Case:
    """A recurrence with weights, inputs and states to try it on."""

    def __init__(self, cell, rng, dtype=np.float32):
        self.cell, self.rng, self.dtype = cell, rng, dtype
        gates = {"lstm": 4, "gru": 3}.get(cell.split("-")[0], 1) * H
        outputs = P if cell == "lstm-projected" else H
        self.weights = {
            "w_x": self.normal(D, gates),
            "w_h": self.normal(outputs, gates),
        }
        if "without" not in cell:
            self.weights["b"] = self.normal(gates)
            if cell == "gru":
                self.weights["b_n"] = self.normal(H)
        if cell == "lstm-projected":
            self.weights["w_p"] = self.normal(H, P)
        self.x = self.normal(B, T, D)
        self.state, self.first_state = (
            LSTMState(self.normal(B, outputs), self.normal(B, H))
            if cell.startswith("lstm")
            else self.normal(B, H)
            for _ in range(2)
        )

    def normal(self, *shape):
        return self.rng.normal(size=shape).astype(self.dtype)

    def run(self, backend, **options):
        """A function of weights, state, x and the first state."""
        name = self.cell.split("-")[0]
        if self.cell == "rnn-relu":
            options["activation"] = "relu"
        function = getattr(functional, name)
        return lambda weights, state, x, first_state: function(
            weights, state, x, first_state=first_state, backend=backend, **options
        )

    @property
    def given(self):
        return self.weights, self.state, self.x, self.first_state

    def oracle(self, x, state):
        w = {name: np.float64(array) for name, array in self.weights.items()}
        w.setdefault("b", np.zeros(w["w_x"].shape[1]))
        if self.cell.startswith("gru"):
            w.setdefault("b_n", np.zeros(H))
        x, state = jax.tree.map(np.float64, (x, state))
        if self.cell.startswith("rnn"):
            return oracles.rnn(x, state, w, "relu" if "relu" in self.cell else "tanh")
        return getattr(oracles, self.cell.split("-")[0])(x, state, w)


def masks(reverse, rng):
    """Some of everything, not only what segment ids make: starts at padding too."""
    coins = [rng.random((B, T)) < share for share in (0.7, 0.4, 0.5)]
    return dict(zip(("valid", "starts", "first"), map(jnp.asarray, coins), strict=True))


def assert_close(found, expected, tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * (1 + np.abs(b).max(initial=0))
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_is_what_a_loop_over_each_sequence_gives(cell, backend, reverse, rng):
    """Row by row, from one start to the next."""
    case = Case(cell, rng)
    options = masks(reverse, rng)
    run = case.run(backend, reverse=reverse, **options)
    outputs, state = run(*case.given)
    valid, starts, first = map(np.asarray, options.values())
    for row in range(B):
        here = jax.tree.map(lambda leaf, row=row: np.float64(leaf[row]), case.state)
        expected = np.zeros(outputs.shape[1:])
        for t in range(T)[:: -1 if reverse else 1]:
            if starts[row, t]:
                here = jax.tree.map(
                    lambda leaf, t=t, row=row: leaf[row] * first[row, t],
                    case.first_state,
                )
            if valid[row, t]:
                [expected[t]], here = case.oracle(case.x[row, t : t + 1], here)
        np.testing.assert_allclose(outputs[row], expected, rtol=0, atol=1e-5)
        for leaf, like in zip(
            jax.tree.leaves(state), jax.tree.leaves(here), strict=True
        ):
            np.testing.assert_allclose(leaf[row], like, rtol=0, atol=1e-5)


def both_ways(case, backend, **options):
    """Results and the cotangents of all that is given."""
    results = jax.eval_shape(case.run("scan", **options), *case.given)
    rng = np.random.default_rng(0)
    cotangents = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), results
    )

    def run():
        found, pull_back = jax.vjp(case.run(backend, **options), *case.given)
        return found, pull_back(cotangents)

    return jax.jit(run)()


@pytest.mark.parametrize("backend", ["fused", *NATIVE])
@pytest.mark.parametrize(
    ("cell", "reverse", "masked"),
    [
        *itertools.product(CELLS, [False, True], [True]),
        *itertools.product(CELLS, [False], [False]),
    ],
)
def test_derivatives_are_those_of_the_reference(cell, backend, reverse, masked, rng):
    case = Case(cell, rng)
    options = {"reverse": reverse, **(masks(reverse, rng) if masked else {})}
    found, expected = (both_ways(case, b, **options) for b in (backend, "scan"))
    # Gradients add up over rows and steps.
    assert_close(found, expected, 5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_not_read(backend, rng):
    """NaN there reaches no output, no state, and no gradient."""
    case = Case("lstm", rng)
    valid = jnp.asarray(IDS > 0)

    def loss(weights, x):
        outputs, state = case.run(backend, valid=valid)(
            weights, case.state, x, case.first_state
        )
        return sum(jnp.sum(a**2) for a in (outputs, *state))

    nans = np.where(valid[..., None], case.x, np.float32(np.nan))
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    clean, found = gradient(case.weights, case.x), gradient(case.weights, nans)
    jax.tree.map(np.testing.assert_array_equal, found, clean)
    assert not np.any(found[1][1][~np.asarray(valid)])


@pytest.mark.parametrize("backend", ["fused", "scan"])
@pytest.mark.parametrize("cell", ["lstm-projected", "gru"])
def test_in_float64(cell, backend, rng, x64):
    case = Case(cell, rng, np.float64)
    found, expected = (both_ways(case, b, reverse=True) for b in (backend, "scan"))
    assert_close(found, expected, 1e-13)
    assert functional.resolve_backend("auto", np.float64) == "fused"


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_of_nothing(backend, rng):
    case = Case("lstm", rng)
    _, state, x, _ = case.given
    outputs, last = case.run(backend)(case.weights, state, x[:, :0], None)
    assert outputs.shape == (B, 0, H)
    assert_close(last, jax.tree.map(jnp.asarray, state), 0)
    outputs, last = case.run(backend)(case.weights, None, x[:0], None)
    assert outputs.shape == (0, T, H)
    assert jax.tree.map(jnp.shape, last) == LSTMState((0, H), (0, H))

    def loss(weights):
        return jnp.sum(case.run(backend)(weights, None, x[:0], None)[0])

    assert not any(map(np.any, jax.tree.leaves(jax.grad(loss)(case.weights))))


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_number_of_row_axes(backend, rng):
    case = Case("gru", rng)
    expected = case.run(backend)(*case.given)
    folded = [leaf.reshape(2, 2, *leaf.shape[1:]) for leaf in case.given[1:]]
    found = case.run(backend)(case.weights, *folded)
    unfolded = jax.tree.map(lambda leaf: leaf.reshape(B, *leaf.shape[2:]), found)
    assert_close(unfolded, expected, 1e-7)
    alone = case.run(backend)(case.weights, *(leaf[0] for leaf in case.given[1:]))
    assert_close(alone, jax.tree.map(lambda leaf: leaf[0], expected), 1e-7)


X, W = np.ones((2, 5, 3), np.float32), np.ones((3, 16), np.float32)
GOOD = {"w_x": W, "w_h": np.ones((4, 16), np.float32)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.lstm({"w_x": W}, None, X), r"got \['w_x'\]"),
        (lambda: functional.lstm(GOOD | {"w_y": W}, None, X), "got .*'w_y'"),
        (lambda: functional.lstm(GOOD, None, X[..., :2]), r"expected \(2, 16\)"),
        (lambda: functional.lstm(GOOD, None, X[0, 0]), r"\[\*b, t, d\], got .*\(3,\)"),
        (lambda: functional.lstm(GOOD, X, X), "LSTMState"),
        (lambda: functional.lstm(GOOD, (X, X), X), r"expected .*\(2, 4\)"),
        (lambda: functional.lstm(GOOD, None, X.astype(int)), "floating point"),
        (lambda: functional.lstm(GOOD, None, X, valid=X), "boolean of shape"),
        (
            lambda: functional.lstm(GOOD, None, X, valid=X[:, :2, 0] > 0),
            r"got bool of shape \(2, 2\)",
        ),
        (lambda: functional.lstm(GOOD, None, X, first=X[..., 0] > 0), "give starts"),
        (lambda: functional.lstm(GOOD, None, X, backend="cuda"), "got 'cuda'"),
        (lambda: functional.rnn(GOOD, None, X, activation="sin"), "got 'sin'"),
        (
            lambda: functional.lstm(GOOD, None, X, dtype="bfloat16", backend="native"),
            "backend='native' has no kernels here",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("weights", "dtype", "message"),
    [
        ({"w_h": np.ones((4, 15))}, None, r"w_h must have a multiple of 4 columns"),
        ({"w_x": np.ones((3, 16), int)}, None, "w_x must be floating point, got int"),
        ({}, jnp.int32, "dtype must be floating point, got int32"),
    ],
)
def test_weights_that_are_none_are_named(weights, dtype, message):
    weights = {"w_x": np.ones((3, 16)), "w_h": np.ones((4, 16))} | weights
    weights = {k: w if w.dtype == int else np.float32(w) for k, w in weights.items()}
    with pytest.raises(ValueError, match=message):
        functional.lstm(weights, None, np.ones((2, 5, 3), np.float32), dtype=dtype)
