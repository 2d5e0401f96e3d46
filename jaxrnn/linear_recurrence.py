"""Recurrences that are linear in the state: `h_t = a_t * h_{t-1} + b_t`.

Nothing in `a` and `b` depends on the state, so that the steps can be computed in
parallel: two neighbours combine to one step, `(a_1, b_1), (a_2, b_2)` to
`(a_1 * a_2, a_2 * b_1 + b_2)`, which is associative (Blelloch, 1990, "Prefix sums and
their applications"; Martin and Cundy, 2018, arXiv:1709.04057). On GPU and TPU
`jax.lax.associative_scan` does that, in `2 log2(t)` rounds over memory. On a CPU the
plain loop reads and writes every number once and was the fastest at every size
measured; so it runs there.

The recurrence is a primitive of its own, because its derivatives are recurrences of the
same kind: the tangent of `h` runs forwards with the same `a`, the cotangent backwards
with `a` one step later. What is kept for the backward pass is `a` and `h`, which grows
linearly with time. Forward mode, second derivatives and `vmap` work as for any function
of JAX.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn._jax_compat import has_sharding_in_type
from jaxrnn.types import Array, Bool

__all__ = ["linear_recurrence"]


def linear_recurrence(
    a: Array,
    b: Array,
    initial: Array | None = None,
    *,
    valid: Bool[Array, "t *b"] | None = None,
    starts: Bool[Array, "t *b"] | None = None,
    first: Bool[Array, "t *b"] | None = None,
    first_state: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """All states of `h_t = a_t * h_{t-1} + b_t`, elementwise, and the last one read.

    Args:
        a: `[t, *b, h]`, real or complex, of the same shape as `b`.
        b: `[t, *b, h]`. `a` and `b` may differ in being real or complex; the states
            then are complex.
        initial: `[*b, h]`, the state before the first step read; zeros if None.
        valid: `[t, *b]`, false at padding: the state stays as it is there, whatever
            `a` and `b` hold (NaN too).
        starts: `[t, *b]`, true where a sequence starts, from zeros, whatever came
            before. Only valid steps may be starts.
        first: `[t, *b]`, true at the steps of the sequence that starts from
            `first_state` instead.
        first_state: like `initial`, which it is if None.
        reverse: read the last step first. States stay at the steps they belong to.

    Returns:
        The states, `[t, *b, h]`, and the one after the last step read, `[*b, h]`, in
        the widest dtype of `a`, `b` and `initial`. At padding the states are those of
        the last valid step before it.

    Raises:
        ValueError: shapes do not fit; `first` without `starts`.
        TypeError: a dtype is neither floating point nor complex, or they are of
            different precision.

    Reference: Blelloch (1990), "Prefix sums and their applications", section 1.4.1.

    >>> a, b = jnp.array([[0.5], [0.5], [2.0]]), jnp.array([[1.0], [4.0], [1.0]])
    >>> states, final = linear_recurrence(a, b, jnp.array([2.0]))
    >>> states.ravel().tolist(), final.tolist()
    ([2.0, 5.0, 11.0], [11.0])
    >>> valid = jnp.array([True, False, True])
    >>> linear_recurrence(a, b, jnp.array([2.0]), valid=valid)[0].ravel().tolist()
    [2.0, 2.0, 5.0]
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.ndim < 1 or a.shape != b.shape:
        raise ValueError(
            f"a and b must be of one shape, time first, got {a.shape} and {b.shape}"
        )
    given = {"a": a, "b": b}
    for name, state in (("initial", initial), ("first_state", first_state)):
        if state is not None:
            given[name] = jnp.asarray(state)
            if given[name].shape != a.shape[1:]:
                raise ValueError(
                    f"{name} has shape {given[name].shape}, but a step of a and b "
                    f"{a.shape[1:]}"
                )
    dtype = _common_dtype(given)
    given = {name: array.astype(dtype) for name, array in given.items()}
    a, b = given["a"], given["b"]
    initial = given.get("initial", jnp.zeros(a.shape[1:], dtype))
    first_state = given.get("first_state", initial)

    masks = {"valid": valid, "starts": starts, "first": first}
    steps = {name: _like(name, mask, a) for name, mask in masks.items()}
    if first is not None and starts is None:
        raise ValueError("first says how the steps in starts start: give starts too")
    if a.shape[0] == 0:
        return b, initial
    if steps["valid"] is not None:
        a = jnp.where(steps["valid"], a, 1)
        b = jnp.where(steps["valid"], b, 0)
    if steps["starts"] is not None:
        if steps["first"] is not None:
            # What the state before them adds, as a part of b.
            from_first = steps["starts"] & steps["first"]
            # Both factors: 0 * NaN would reach the gradients.
            decay = jnp.where(from_first, a, 0)
            b = b + decay * jnp.where(from_first, first_state[None], 0)
        a = jnp.where(steps["starts"], 0, a)
    states = _bind(a, b, initial, reverse)
    return states, states[0 if reverse else -1]


def _common_dtype(given: dict[str, Array]) -> Any:
    """Their dtype, complex if one of them is."""
    precisions = {}
    for name, array in given.items():
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            raise TypeError(
                f"{name} must be floating point or complex, got {array.dtype}"
            )
        precisions[name] = jnp.finfo(array.dtype).dtype
    if len(set(precisions.values())) > 1:
        spelled = {name: str(array.dtype) for name, array in given.items()}
        raise TypeError(f"all must be of one precision, got {spelled}")
    if any(jnp.iscomplexobj(array) for array in given.values()):
        (precision,) = set(precisions.values())
        return jnp.complex128 if precision == jnp.float64 else jnp.complex64
    return given["a"].dtype


def _like(name: str, mask: Bool[Array, "t *b"] | None, a: Array) -> Array | None:
    """The mask with an axis of one for each of `a` that it has not."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got {mask.dtype}")
    if mask.shape != a.shape[: mask.ndim]:
        raise ValueError(
            f"{name} has shape {mask.shape}, but the first axes of a are {a.shape}"
        )
    return jnp.expand_dims(mask, range(mask.ndim, a.ndim))


def _bind(a: Array, b: Array, initial: Array, reverse: bool) -> Array:
    if any(map(has_sharding_in_type, (a, b, initial))):
        # Only JAX's own operations have derivatives with such types, and a loop must
        # return the types that it takes.
        initial = initial + jnp.zeros_like(a[0]) + jnp.zeros_like(b[0])
        return jax.lax.platform_dependent(
            a,
            b,
            initial,
            cpu=functools.partial(_loop, reverse=reverse),
            default=functools.partial(_associative_scan, reverse=reverse),
        )
    return _recurrence.bind(a, b, initial, reverse=reverse)


def _read(a: Array, h: Array) -> Array:
    """`h` as a factor of `a`: zero where `a` is zero and `h` is not finite.

    An `a` of zero starts a sequence, which 0 * NaN of the one before must not reach.
    """
    return jnp.where((a == 0) & ~jnp.isfinite(h), 0, h)


def _loop(a: Array, b: Array, initial: Array, *, reverse: bool) -> Array:
    """Step by step."""

    def body(h, step):
        a, b = step
        h = a * _read(a, h) + b
        return h, h

    return jax.lax.scan(body, initial, (a, b), reverse=reverse)[1]


def _associative_scan(a: Array, b: Array, initial: Array, *, reverse: bool) -> Array:
    """In parallel, in rounds whose number depends on that of steps."""
    if not isinstance(a.shape[0], int):  # exported for any
        return _loop(a, b, initial, reverse=reverse)
    first = -1 if reverse else 0
    b = b.at[first].add(a[first] * _read(a[first], initial))

    def combine(earlier, later):
        a, b = later
        return a * _read(a, earlier[0]), a * _read(a, earlier[1]) + b

    return jax.lax.associative_scan(combine, (a, b), reverse=reverse)[1]


def shifted(values: Array, initial: Array, *, reverse: bool) -> Array:
    """The value one step earlier in reading order, `initial` at the first step.

    >>> values, initial = jnp.array([1.0, 2.0, 3.0]), jnp.array(9.0)
    >>> shifted(values, initial, reverse=False).tolist()
    [9.0, 1.0, 2.0]
    """
    if reverse:
        return jnp.concatenate([values[1:], initial[None]])
    return jnp.concatenate([initial[None], values[:-1]])


_recurrence = Primitive("linear_recurrence")
_compiled = jax.jit(_recurrence.bind, static_argnames="reverse")


@_recurrence.def_impl
def _run(*arrays: Array, reverse: bool) -> Array:
    with jax.disable_jit(False):  # It would call itself.
        return _compiled(*arrays, reverse=reverse)


_recurrence.def_abstract_eval(
    lambda a, b, initial, *, reverse: ShapedArray(b.shape, b.dtype)
)
mlir.register_lowering(
    _recurrence, mlir.lower_fun(_associative_scan, multiple_results=False)
)
mlir.register_lowering(
    _recurrence, mlir.lower_fun(_loop, multiple_results=False), platform="cpu"
)


def _jvp(primals, tangents, *, reverse):
    """`dh_t = a_t dh_{t-1} + (da_t h_{t-1} + db_t)`, the same recurrence."""
    a, b, initial = primals
    d_a, d_b, d_initial = tangents
    states = _recurrence.bind(a, b, initial, reverse=reverse)
    d_b = ad.instantiate_zeros(d_b)
    if not isinstance(d_a, ad.Zero):
        before = shifted(states, initial, reverse=reverse)
        d_b = d_b + d_a * _read(a, before)
    d_initial = ad.instantiate_zeros(d_initial)
    return states, _recurrence.bind(a, d_b, d_initial, reverse=reverse)


def _transpose(cotangent, a, b, initial, *, reverse):
    """`g_t = ct_t + a_{t+1} g_{t+1}`, backwards; `g` is the cotangent of `b`."""
    if isinstance(cotangent, ad.Zero):
        return None, ad.Zero(b.aval), ad.Zero(initial.aval)
    later = shifted(a, jnp.zeros_like(a[0]), reverse=not reverse)
    g = _recurrence.bind(later, cotangent, jnp.zeros_like(a[0]), reverse=not reverse)
    first = -1 if reverse else 0
    return (
        None,
        g if ad.is_undefined_primal(b) else None,
        a[first] * _read(a[first], g[first])
        if ad.is_undefined_primal(initial)
        else None,
    )


def _batch(arguments, axes, *, reverse):
    """The new axis comes after time."""
    size = next(
        argument.shape[axis]
        for argument, axis in zip(arguments, axes, strict=True)
        if axis is not None
    )
    a, b, initial = (
        jnp.broadcast_to(
            jnp.expand_dims(argument, place), _inserted(argument.shape, place, size)
        )
        if axis is None
        else jnp.moveaxis(argument, axis, place)
        for argument, axis, place in zip(arguments, axes, (1, 1, 0), strict=True)
    )
    return _recurrence.bind(a, b, initial, reverse=reverse), 1


def _inserted(shape: tuple[int, ...], place: int, size: int) -> tuple[int, ...]:
    return (*shape[:place], size, *shape[place:])


ad.primitive_jvps[_recurrence] = _jvp
ad.primitive_transposes[_recurrence] = _transpose
batching.primitive_batchers[_recurrence] = _batch
