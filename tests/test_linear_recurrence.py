"""`linear_recurrence` against a loop in numpy: values, masks, derivatives of all kinds,
and what is compiled for which platform."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxrnn.linear_recurrence import (
    _associative_scan,
    _loop,
    linear_recurrence,
)

pytestmark = pytest.mark.optimized

T, B, H = 7, 3, 2
IDS = np.array([[1, 1, 0, 1, 2, 2, 0], [0, 1, 2, 0, 2, 3, 3], [0] * 7]).T


def loop(a, b, initial, ids=None, first_state=None, reverse=False):
    """What the recurrence means, one row and one step after the other."""
    states = np.zeros(a.shape, np.result_type(a, b, initial))
    final = np.array(initial, states.dtype)
    first_state = initial if first_state is None else first_state
    for row in range(a.shape[1]):
        h, seen = final[row], 0
        present = [] if ids is None else sorted(set(ids[:, row]) - {0})
        for t in reversed(range(len(a))) if reverse else range(len(a)):
            number = 1 if ids is None else ids[t, row]
            if number:
                if ids is not None and number != seen:
                    h = first_state[row] if number == present[0] else 0 * h
                h = a[t, row] * h + b[t, row]
                seen = number
            states[t, row] = h
        final[row] = h
    return states, final


def masks(ids, reverse):
    """Valid steps, starts in reading order, and the steps of each row's first."""
    valid = ids > 0
    starts, first = np.zeros_like(valid), np.zeros_like(valid)
    for row in range(ids.shape[1]):
        seen = 0
        for t in reversed(range(len(ids))) if reverse else range(len(ids)):
            starts[t, row] = ids[t, row] not in (0, seen)
            seen = ids[t, row] or seen
        present = ids[:, row][valid[:, row]]
        first[:, row] = valid[:, row] & (ids[:, row] == present.min(initial=9))
    return {"valid": valid, "starts": starts, "first": first}


def draw(rng, *shape, complex_numbers):
    values = rng.normal(size=shape)
    return values + 1j * rng.normal(size=shape) if complex_numbers else values


KINDS = {"real": (False, False), "complex": (True, True), "mixed": (True, False)}


@pytest.fixture(params=KINDS)
def arrays(request, rng):
    """`a`, `b`, an initial state and another one, as numpy has them."""
    a, b = (
        draw(rng, T, B, H, complex_numbers=complex_numbers)
        for complex_numbers in KINDS[request.param]
    )
    initial, first_state = (rng.normal(size=(B, H)) for _ in range(2))
    return a, b, initial, first_state


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_loop(arrays, reverse, x64):
    a, b, initial, _ = arrays
    found = linear_recurrence(a, b, initial, reverse=reverse)
    for ours, theirs in zip(found, loop(a, b, initial, reverse=reverse), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_loop_where_sequences_share_a_row(arrays, reverse, x64):
    a, b, initial, first_state = arrays
    for name in (None, "first_state"):
        first = initial if name is None else first_state
        options = {} if name is None else {name: first_state}
        found = linear_recurrence(
            a, b, initial, reverse=reverse, **masks(IDS, reverse), **options
        )
        expected = loop(a, b, initial, IDS, first, reverse)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_float32_over_many_steps(rng):
    """At 4,096 steps of factors up to 1 both ways of computing are good to 1e-5 of the
    greatest state."""
    a = rng.uniform(0.5, 1, size=(4096, 2, 8)).astype(np.float32)
    b = rng.normal(size=a.shape).astype(np.float32)
    h = np.zeros(a.shape[1:], np.float32)
    expected, _ = loop(*(np.float64(array) for array in (a, b, h)))
    for run in (_loop, _associative_scan):
        found = jax.jit(functools.partial(run, reverse=False))(a, b, h)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_two_ways_of_computing_agree(arrays, reverse, x64):
    a, b, initial, _ = (jnp.asarray(array) for array in arrays)
    dtype = np.result_type(a.dtype, b.dtype)
    given = tuple(array.astype(dtype) for array in (a, b, initial))
    one, other = (
        run(*given, reverse=reverse).ravel() for run in (_loop, _associative_scan)
    )
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def plain(a, b, initial, valid, starts, first, reverse):
    """As `linear_recurrence`, by operations that JAX differentiates on its own."""
    dtype = np.result_type(a.dtype, b.dtype)
    a, b, initial = (array.astype(dtype) for array in (a, b, initial))
    h, states = initial, [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        keep, start = valid[t][:, None], starts[t][:, None]
        before = jnp.where(start, jnp.where(first[t][:, None], initial, 0), h)
        h = jnp.where(keep, a[t] * before + b[t], h)
        states[t] = h
    return jnp.stack(states), h


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_and_second_derivatives(arrays, reverse, rng, x64):
    a, b, initial, _ = map(jnp.asarray, arrays)
    given = (a, b, initial)

    def random_like(array, dtype):
        complex_numbers = np.issubdtype(dtype, np.complexfloating)
        return jnp.asarray(draw(rng, *array.shape, complex_numbers=complex_numbers))

    cotangents = [
        random_like(array, np.result_type(a.dtype, b.dtype)) for array in (a, initial)
    ]
    direction = tuple(random_like(array, array.dtype) for array in given)

    def everything(run):
        def loss(*given):
            results = run(*given, **masks(IDS, reverse), reverse=reverse)
            return sum(map(jnp.vdot, cotangents, results)).real ** 2

        gradient = jax.grad(loss, argnums=(0, 1, 2))
        return gradient(*given), jax.jvp(gradient, given, direction)[1]

    found, expected = (
        jax.jit(everything, static_argnums=0)(run) for run in (linear_recurrence, plain)
    )
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-10, atol=1e-10),
        found,
        expected,
    )


@pytest.mark.parametrize("mapped", [*itertools.product([None, 0, -1], repeat=3)][1:])
def test_vmap(mapped, rng):
    shapes = [(T, H), (T, H), (H,)]
    given = [
        rng.normal(size=np.insert(shape, axis % (len(shape) + 1), 4))
        if axis is not None
        else rng.normal(size=shape)
        for shape, axis in zip(shapes, mapped, strict=True)
    ]
    given = [array.astype(np.float32) for array in given]
    found = jax.vmap(linear_recurrence, in_axes=mapped)(*given)
    for k in range(4):
        one = [
            array if axis is None else np.take(array, k, axis)
            for array, axis in zip(given, mapped, strict=True)
        ]
        for ours, theirs in zip(found, linear_recurrence(*one), strict=True):
            np.testing.assert_allclose(ours[k], theirs, rtol=1e-6)


def test_padding_is_not_read(rng):
    a, b = rng.normal(size=(2, T, B, H)).astype(np.float32)
    options = masks(IDS, False)
    initial = np.ones((B, H), np.float32)

    def loss(a, b, initial):
        states, final = linear_recurrence(a, b, initial, **options)
        return jnp.sum(states**2) + jnp.sum(final)

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
    hole = ~options["valid"][..., None]
    clean = gradient(np.where(hole, 0, a), np.where(hole, 0, b), initial)
    nan = np.float32(np.nan)
    found = gradient(np.where(hole, nan, a), np.where(hole, nan, b), initial)
    jax.tree.map(np.testing.assert_array_equal, found, clean)


def test_no_steps():
    states, final = linear_recurrence(
        jnp.ones((0, 2)), jnp.ones((0, 2)), jnp.array([3.0, 4.0])
    )
    assert states.shape == (0, 2)
    assert final.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("cuda", False)])
def test_a_loop_on_cpu_alone(platform, loops):
    shape = jax.ShapeDtypeStruct((64, 2), jnp.float32)
    exported = jax.export.export(jax.jit(linear_recurrence), platforms=[platform])
    assert ("stablehlo.while" in exported(shape, shape).mlir_module()) == loops


def test_exported_for_any_number_of_steps_and_rows(rng):
    steps, rows = jax.export.symbolic_shape("t, b")
    shape = jax.ShapeDtypeStruct((steps, rows, H), jnp.float32)
    exported = jax.export.export(
        jax.jit(linear_recurrence), platforms=["cpu", "cuda", "tpu"]
    )(shape, shape)
    a, b = rng.normal(size=(2, T, B, H)).astype(np.float32)
    for found, expected in zip(
        exported.call(a, b), linear_recurrence(a, b), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_memory_grows_linearly_with_time():
    """65,536 steps: the backward pass needs a few arrays of their size, and no more."""
    shape = (65_536, 16)

    def gradient(a, b):
        loss = lambda a, b: jnp.sum(linear_recurrence(a, b)[0] ** 2)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(a, b)

    array = jax.ShapeDtypeStruct(shape, jnp.float32)
    analysis = jax.jit(gradient).lower(array, array).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 6 * 4 * np.prod(shape)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_rows_stay_on_their_devices(axis_type, rng):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
    a, b = rng.normal(size=(2, T, 4, H)).astype(np.float32)
    rows = jax.NamedSharding(mesh, PartitionSpec(None, "data"))

    def gradient(a, b):
        loss = lambda a, b: jnp.sum(linear_recurrence(a, b)[0] ** 2)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(a, b)

    expected = gradient(a, b)
    placed = [jax.device_put(array, rows) for array in (a, b)]
    compiled = jax.jit(gradient).lower(*placed).compile()
    assert "all-gather" not in compiled.as_text()
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-6),
        compiled(*placed),
        expected,
    )


def test_in_shard_map(rng):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    a, b = rng.normal(size=(2, T, 4, H)).astype(np.float32)

    def loss(a, b):
        return jax.lax.psum(jnp.sum(linear_recurrence(a, b)[0] ** 2), "data")

    spec = PartitionSpec(None, "data")
    sharded = jax.shard_map(
        loss, mesh=mesh, in_specs=(spec, spec), out_specs=PartitionSpec()
    )
    found = jax.jit(jax.grad(sharded))(a, b)
    expected = jax.grad(lambda a: jnp.sum(linear_recurrence(a, b)[0] ** 2))(a)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


ONES = np.ones((T, B, H), np.float32)


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ((ONES, ONES[1:]), {}, ValueError, r"of one shape.*\(7, 3, 2\) and \(6, 3, 2"),
        ((ONES, ONES, ONES), {}, ValueError, r"initial has shape \(7, 3, 2\).*\(3, 2"),
        (
            (ONES, ONES),
            {"first_state": ONES},
            ValueError,
            r"first_state has shape \(7, 3, 2\)",
        ),
        ((ONES, ONES), {"valid": ONES[..., 0]}, TypeError, "valid must be boolean"),
        (
            (ONES, ONES),
            {"starts": np.ones((B, T), bool)},
            ValueError,
            r"starts has shape \(3, 7\)",
        ),
        ((ONES.astype(int), ONES), {}, TypeError, "a must be floating point"),
        ((ONES, ONES.astype(jnp.bfloat16)), {}, TypeError, "one precision"),
        (
            (ONES.astype(np.complex64), ONES.astype(np.float16)),
            {},
            TypeError,
            "one precision.*complex64.*float16",
        ),
    ],
)
def test_bad_arguments(given, options, error, message):
    with pytest.raises(error, match=message):
        linear_recurrence(*given, **options)


@pytest.mark.parametrize("compute", [_loop, _associative_scan])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_ends_with_its_sequence(compute, reverse, bad):
    """`a` of zero starts a sequence, whatever was before; so do its derivatives."""
    a, b = np.full((4, 1), 0.5), np.ones((4, 1))
    start, before = (1, 3) if reverse else (2, 1)
    a[start] = 0

    def states():
        arrays = map(jnp.asarray, (a, b, np.zeros(1)))
        return np.asarray(compute(*arrays, reverse=reverse))

    alone = states()
    b[before] = bad
    found = states()
    own = slice(0, 2) if reverse else slice(2, 4)
    np.testing.assert_array_equal(found[own], alone[own])


def test_the_state_of_another_sequence_reaches_no_gradient():
    a, b = np.full((4, 1), 0.5), np.ones((4, 1))
    b[0] = np.nan
    starts = np.array([True, False, True, False])[:, None]

    def total(a, b, initial):
        return linear_recurrence(a, b, initial, starts=starts)[0][2:].sum()

    d_a, d_b, d_initial = jax.grad(total, argnums=(0, 1, 2))(a, b, np.full(1, np.nan))
    # h_2 = b_2 and h_3 = a_3 b_2 + b_3.
    np.testing.assert_array_equal(d_a[2:].ravel(), [0, 1])
    np.testing.assert_array_equal(d_b.ravel(), [0, 0, 1.5, 1])
    np.testing.assert_array_equal(d_initial, [0])


def test_a_factor_of_zero_has_the_derivative_of_any_other():
    a, b, initial = np.zeros((2, 1)), np.ones((2, 1)), np.full(1, 3.0)
    d_a = jax.grad(lambda a: linear_recurrence(a, b, initial)[0].sum())(a)
    np.testing.assert_array_equal(d_a.ravel(), [3, 1])  # the states before


def test_without_jit():
    a, b = np.full((3, 2), 0.5), np.ones((3, 2))
    expected = loop(a[:, None], b[:, None], np.zeros((1, 2)))[0][:, 0]
    with jax.disable_jit():
        np.testing.assert_allclose(linear_recurrence(a, b)[0], expected, rtol=1e-12)
