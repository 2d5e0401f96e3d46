"""Mixed-precision matmul and its derivatives, against rounded operands in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.products import product

pytestmark = pytest.mark.optimized

BF16 = jnp.bfloat16
# Float32 sums of a few dozen terms of size 1, against exact ones. Rounding a factor or
# a result to bfloat16 would cost 4e-3.
TOLERANCE = {"rtol": 0, "atol": 2e-6}


def rounded(a):
    return np.asarray(jnp.asarray(a).astype(BF16), np.float64)


@pytest.fixture
def factors(rng):
    return [rng.normal(size=s).astype(np.float32) for s in ((5, 7), (7, 3), (5, 3))]


def test_factors_are_rounded_and_sums_are_not(factors):
    a, w, _ = factors
    found = product(a, jnp.asarray(w), BF16)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rounded(a) @ rounded(w), **TOLERANCE)


def test_so_are_those_of_the_derivatives(factors):
    a, w, cotangent = factors
    _, pull_back = jax.vjp(lambda a, w: product(a, w, BF16), a, w)
    d_a, d_w = pull_back(cotangent)
    np.testing.assert_allclose(d_a, rounded(cotangent) @ rounded(w).T, **TOLERANCE)
    np.testing.assert_allclose(d_w, rounded(a).T @ rounded(cotangent), **TOLERANCE)
    _, tangent = jax.jvp(lambda a: product(a, w, BF16), (a,), (2 * a,))
    np.testing.assert_allclose(tangent, rounded(2 * a) @ rounded(w), **TOLERANCE)


def test_any_number_of_leading_axes(factors, rng):
    w = factors[1]
    stack = rng.normal(size=(2, 4, 5, 7)).astype(np.float32)
    found = product(jnp.asarray(stack), w, BF16)
    np.testing.assert_allclose(found, rounded(stack) @ rounded(w), **TOLERANCE)


@pytest.mark.parametrize("axes", [(0, None), (None, 2), (1, 0)])
def test_vmap(axes, rng):
    shapes = [(5, 7), (7, 3)]
    factors = [
        np.moveaxis(rng.normal(size=(4, *shape)), 0, axis or 0).astype(np.float32)
        if axis is not None
        else rng.normal(size=shape).astype(np.float32)
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    run = jax.vmap(lambda a, w: product(a, w, BF16), in_axes=axes)
    a, w = (
        rounded(np.moveaxis(factor, axis, 0) if axis is not None else factor)
        for factor, axis in zip(factors, axes, strict=True)
    )
    np.testing.assert_allclose(run(*factors), a @ w, **TOLERANCE)
    d_a, d_w = jax.grad(lambda *f: run(*f).sum(), argnums=(0, 1))(*factors)
    ones = np.ones((4, 5, 3))
    expected = [ones @ np.swapaxes(w, -1, -2), np.swapaxes(a, -1, -2) @ ones]
    for found, like, axis in zip((d_a, d_w), expected, axes, strict=True):
        like = like.sum(0) if axis is None else np.moveaxis(like, 0, axis)
        np.testing.assert_allclose(found, like, rtol=0, atol=1e-5)


def test_vmap_over_rows_does_not_repeat_the_weights(rng):
    """Neither forwards nor backwards: they would be read once for each row."""
    layer = jaxrnn.LSTM(8, backend="fused")
    x = rng.normal(size=(6, 3, 5)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x)

    def batched(variables, x):
        return (layer.apply(variables, x)[0] ** 2).sum()

    def mapped(variables, x):
        return jax.vmap(batched, in_axes=(None, 0))(variables, x).sum()

    found = jax.grad(mapped)(variables, x)
    expected = jax.grad(batched)(variables, x)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # sums of 18 terms
    program = jax.jit(jax.grad(mapped)).lower(variables, x).as_text()
    assert "dot_general" in program
    assert "batching_dims" not in program


@pytest.mark.parametrize("backend", ["fused", "scan"])
def test_the_precision_is_that_of_where_it_is_traced(backend):
    layer = jaxrnn.GRU(8, backend=backend)
    x = jnp.ones((2, 3, 5))
    variables = layer.init(jax.random.key(0), x)

    def loss(variables):
        with jax.default_matmul_precision("highest"):
            return layer.apply(variables, x)[0].sum()

    program = jax.jit(jax.grad(loss)).lower(variables).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 4
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_float32_is_not_rounded_and_has_second_derivatives(factors):
    a, w, cotangent = (jnp.asarray(factor) for factor in factors)

    def total(product, a, w):
        return (product(a, w) ** 3 * cotangent).sum()

    def ours(a, w):
        return product(a, w, jnp.float32)

    for derivative in (jax.grad, jax.hessian):
        found, expected = (
            derivative(functools.partial(total, f), argnums=(0, 1))(a, w)
            for f in (ours, jnp.matmul)
        )
        for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            # Cubes of sums of seven: float32 keeps six digits of the largest.
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * abs(y).max())


@pytest.mark.parametrize("dtype", [jnp.float32, BF16])
def test_checkpoint_policies_see_a_dot_general(dtype, factors, rng):
    """What is saved is not computed again: the product between the two sines."""
    a, w, _ = (jnp.asarray(factor) for factor in factors)
    square = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)

    def loss(a, w):
        return jnp.sin(product(jnp.sin(product(a, w, dtype)), square, dtype)).sum()

    def products_in(f):
        return str(jax.make_jaxpr(jax.grad(f, argnums=(0, 1)))(a, w)).count("dot_gen")

    policies = jax.checkpoint_policies
    saved = jax.checkpoint(loss, policy=policies.dots_saveable)
    nothing = jax.checkpoint(loss, policy=policies.nothing_saveable)
    assert products_in(saved) == products_in(loss) < products_in(nothing)
    for found, expected in zip(
        jax.grad(saved, argnums=(0, 1))(a, w),
        jax.grad(loss, argnums=(0, 1))(a, w),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_what_is_not_differentiated_is_not_multiplied(factors):
    a, w, _ = (jnp.asarray(factor) for factor in factors)

    def of_a(tangent):
        return jax.jvp(lambda a: product(a, w, BF16), (a,), (tangent,))

    def of_w(tangent):
        return jax.jvp(lambda w: product(a, w, BF16), (w,), (tangent,))

    for run, tangent in ((of_a, a), (of_w, w)):
        program = jax.jit(run).lower(tangent).as_text()
        assert program.count("stablehlo.dot_general") == 2  # the value, its tangent
