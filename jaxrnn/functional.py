"""The recurrences as pure functions of arrays: `lstm`, `gru` and `rnn`.

    outputs, state = lstm(weights, state, x, valid=..., starts=..., reverse=...)

Weights are a dictionary with the names and shapes of the parameters of a layer of
`jaxrnn`, and `x` is `[*b, t, d]`. These functions are what the layers run; they take no
Flax modules. Each is compiled once for its shapes and options, under `jax.jit` and
outside of it.

Three backends compute the same, to rounding:

    "scan"    the equations step by step, differentiated by JAX: the reference
    "fused"   pure JAX with derivatives written by hand (`jaxrnn.fused`)
    "native"  C++ kernels for CPUs in float32 (`jaxrnn.native`), if they were compiled

`"auto"` picks the last one that is available. All support forward-mode differentiation,
second derivatives, `vmap`, `jax.checkpoint` and sharding. `"native"` runs in pure JAX
when it is exported (`jax.export`), in forward mode and for second derivatives.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxrnn import fused
from jaxrnn._jax_compat import has_sharding_in_type
from jaxrnn._validation import check_min
from jaxrnn.equations import Activation, gru_step, lstm_step, rnn_step
from jaxrnn.fused import CellName, Loop, Masks
from jaxrnn.native import library, primitives
from jaxrnn.products import product
from jaxrnn.scan import finite_at_padding, restart, select
from jaxrnn.types import (
    Array,
    Bool,
    CellState,
    Dtype,
    Float,
    LSTMState,
    accumulation_dtype,
)

Backend = Literal["auto", "native", "fused", "scan"]
__all__ = ["gru", "lstm", "resolve_backend", "rnn"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)
Weights = Mapping[str, Array]

_GATES: dict[CellName, int] = {"lstm": 4, "gru": 3, "rnn-tanh": 1, "rnn-relu": 1}
# Those that a cell may have besides w_x, w_h and b.
_MORE = {"lstm": {"w_p"}, "gru": {"b_n"}}


def lstm(
    weights: Weights,
    state: LSTMState | None,
    x: Float[Array, "*b t d"],
    *,
    valid: Bool[Array, "*b t"] | None = None,
    starts: Bool[Array, "*b t"] | None = None,
    first: Bool[Array, "*b t"] | None = None,
    first_state: LSTMState | None = None,
    reverse: bool = False,
    dtype: Dtype | None = None,
    backend: Backend = "auto",
    unroll: int = 1,
) -> tuple[Float[Array, "*b t h"], LSTMState]:
    """A long short-term memory over time: the outputs, and the last state.

    The last state is the one after the last step read. `jaxrnn.equations.lstm_step`
    has the equations.

    Args:
        weights: `w_x [d, 4h]`, `w_h [h, 4h]` and an optional bias `b [4h]`, gates in
            the order i f g o; with a projection `w_p [h, p]`, outputs are `p` wide and
            `w_h` is `[p, 4h]`.
        state: the one before the first step read; zeros if None.
        x: the inputs; what is not valid is not read.
        valid: false at padding, where the state stays as it is and the output is zero.
        starts: true where a sequence starts from zeros, whatever came before.
        first: true at the steps of the sequence that starts from `first_state`
            instead, if `starts` is true there.
        first_state: `state` if None.
        reverse: read the last step first; outputs stay at the steps they belong to.
        dtype: of the factors of products and of the outputs; that of `w_h` if None.
            States and sums are never in less than float32.
        backend: one of those above.
        unroll: steps in an iteration of the loop, as in `jax.lax.scan`; the native
            kernels have a loop of their own.

    Raises:
        TypeError: `weights` is no dictionary.
        ValueError: a shape or dtype does not fit, with the numbers; or the backend is
            `"native"` where there is none.

    Reference: Hochreiter and Schmidhuber (1997); Sak, Senior and Beaufays (2014) for
    the projection.

    >>> x, ones = jnp.ones((2, 5, 3)), jnp.ones((3, 16)) / 10
    >>> weights = {"w_x": ones, "w_h": jnp.zeros((4, 16)), "b": jnp.zeros(16)}
    >>> valid = jnp.arange(5)[None] < jnp.array([[5], [0]])
    >>> y, state = lstm(weights, None, x, valid=valid)
    >>> y.shape, bool((y[0, -1] == state.h[0]).all()), bool((state.c[1] == 0).all())
    ((2, 5, 4), True, True)
    """
    return recurrence(
        "lstm",
        weights,
        (state, first_state),
        x,
        Masks(valid, starts, first),
        reverse=reverse,
        dtype=dtype,
        backend=backend,
        unroll=unroll,
    )


def gru(
    weights: Weights,
    state: Float[Array, "*b h"] | None,
    x: Float[Array, "*b t d"],
    *,
    valid: Bool[Array, "*b t"] | None = None,
    starts: Bool[Array, "*b t"] | None = None,
    first: Bool[Array, "*b t"] | None = None,
    first_state: Float[Array, "*b h"] | None = None,
    reverse: bool = False,
    dtype: Dtype | None = None,
    backend: Backend = "auto",
    unroll: int = 1,
) -> tuple[Float[Array, "*b t h"], Float[Array, "*b h"]]:
    """A gated recurrent unit over time: the outputs, and the last state.

    The last state is the one after the last step read. `jaxrnn.equations.gru_step`
    has the equations.

    Weights are `w_x [d, 3h]`, `w_h [h, 3h]` and perhaps the biases `b [3h]` and `b_n
    [h]`, which is inside of the reset gate; gates are in the order r z n. All else is
    as for `lstm`.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`.

    Reference: Cho et al. (2014), arXiv:1406.1078v1.

    >>> weights = {"w_x": jnp.ones((3, 12)), "w_h": jnp.zeros((4, 12))}
    >>> y, h = gru(weights, None, jnp.ones((2, 5, 3)), reverse=True)
    >>> y.shape, bool((y[:, 0] == h).all())
    ((2, 5, 4), True)
    """
    return recurrence(
        "gru",
        weights,
        (state, first_state),
        x,
        Masks(valid, starts, first),
        reverse=reverse,
        dtype=dtype,
        backend=backend,
        unroll=unroll,
    )


def rnn(
    weights: Weights,
    state: Float[Array, "*b h"] | None,
    x: Float[Array, "*b t d"],
    *,
    activation: Activation = "tanh",
    valid: Bool[Array, "*b t"] | None = None,
    starts: Bool[Array, "*b t"] | None = None,
    first: Bool[Array, "*b t"] | None = None,
    first_state: Float[Array, "*b h"] | None = None,
    reverse: bool = False,
    dtype: Dtype | None = None,
    backend: Backend = "auto",
    unroll: int = 1,
) -> tuple[Float[Array, "*b t h"], Float[Array, "*b h"]]:
    """A simple recurrent network over time: the outputs, and the last state.

    The last state is the one after the last step read. `jaxrnn.equations.rnn_step`
    has the equation.

    Weights are `w_x [d, h]`, `w_h [h, h]` and an optional bias `b [h]`. All else is as
    for `lstm`.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`; or `activation` is neither `"tanh"` nor `"relu"`.

    Reference: Elman (1990), "Finding structure in time".

    >>> weights = {"w_x": jnp.ones((1, 1)), "w_h": jnp.ones((1, 1))}
    >>> y, h = rnn(weights, None, jnp.array([[1.0], [2.0], [3.0]]), activation="relu")
    >>> y.ravel().tolist(), h.tolist()
    ([1.0, 3.0, 6.0], [6.0])
    """
    if activation not in ("tanh", "relu"):
        raise ValueError(f"activation must be 'tanh' or 'relu', got {activation!r}")
    return recurrence(
        "rnn-tanh" if activation == "tanh" else "rnn-relu",
        weights,
        (state, first_state),
        x,
        Masks(valid, starts, first),
        reverse=reverse,
        dtype=dtype,
        backend=backend,
        unroll=unroll,
    )


def resolve_backend(
    backend: Backend, dtype: Dtype = jnp.float32
) -> Literal["native", "fused", "scan"]:
    """The backend that runs where `backend` is asked for, and products are in `dtype`.

    Raises:
        ValueError: if there is no backend of that name, or it is `"native"` and there
            is none: it needs compiled kernels, a CPU as JAX's default backend, and
            float32.

    >>> resolve_backend("scan"), resolve_backend("auto", jnp.bfloat16)
    ('scan', 'fused')
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {[*BACKENDS]}, got {backend!r}")
    if backend in ("fused", "scan"):
        return backend
    missing = None
    if library.instruction_set() is None:
        missing = "they are not compiled: install jaxrnn where there is a C++ compiler"
    elif jnp.dtype(dtype) != jnp.float32:
        missing = f"they compute in float32, not in {jnp.dtype(dtype)}"
    elif jax.default_backend() != "cpu":
        missing = f"they are for CPUs, and JAX runs on {jax.default_backend()}"
    if missing and backend == "native":
        raise ValueError(f"backend='native' has no kernels here, {missing}")
    return "fused" if missing else "native"


def recurrence(
    cell: CellName,
    weights: Weights,
    states: tuple[Any, Any],
    x: Array,
    masks: Masks,
    *,
    reverse: bool,
    dtype: Dtype | None,
    backend: Backend,
    unroll: int = 1,
):
    """`lstm`, `gru` and `rnn`, by the name of the cell."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a dict of arrays, got {weights!r:.200}")
    weights = {name: jnp.asarray(w) for name, w in weights.items() if w is not None}
    missing = {"w_x", "w_h"} - set(weights)
    unknown = set(weights) - {"w_x", "w_h", "b"} - _MORE.get(cell, set())
    if missing or unknown:
        raise ValueError(
            f"the weights of a recurrence are w_x, w_h and perhaps "
            f"{', '.join(['b', *_MORE.get(cell, ())])}, got {sorted(weights)}"
        )
    dtype = jnp.dtype(weights["w_h"].dtype if dtype is None else dtype)
    dtypes = {"dtype": dtype, **{name: w.dtype for name, w in weights.items()}}
    for name, kind in dtypes.items():
        if not jnp.issubdtype(kind, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {kind}")
    x = jnp.asarray(x)
    masks = Masks(*(None if mask is None else jnp.asarray(mask) for mask in masks))
    expected = _expected_state(cell, weights, x, masks)
    state, first_state = states
    states = (
        _checked_state("state", state, expected),
        None
        if first_state is None
        else _checked_state("first_state", first_state, expected),
    )
    return _run(
        cell,
        weights,
        states,
        x,
        masks,
        reverse=bool(reverse),
        dtype=dtype,
        backend=resolve_backend(backend, dtype),
        unroll=check_min(1, unroll=unroll),
    )


def _expected_state(cell: CellName, weights: Weights, x: Array, masks: Masks) -> Any:
    """The shapes of a state. Raises a ValueError where others do not fit."""
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be floating point, [*b, t, d], got {x.dtype} {x.shape}"
        )
    if weights["w_h"].ndim != 2:
        raise ValueError(f"w_h must have two axes, got shape {weights['w_h'].shape}")
    gates, (outputs, width) = _GATES[cell], weights["w_h"].shape
    if width % gates:
        raise ValueError(
            f"w_h must have a multiple of {gates} columns, got shape {(outputs, width)}"
        )
    hidden = width // gates
    shapes = {
        "w_x": (x.shape[-1], gates * hidden),
        "w_h": (outputs if "w_p" in weights else hidden, gates * hidden),
        "b": (gates * hidden,),
        "b_n": (hidden,),
        "w_p": (hidden, outputs),
    }
    for name, w in weights.items():
        if w.shape != shapes[name]:
            raise ValueError(
                f"{name} has shape {w.shape}, expected {shapes[name]} for inputs of "
                f"{x.shape[-1]} features and w_h of shape {weights['w_h'].shape}"
            )
    for name, mask in masks._asdict().items():
        if mask is not None and (mask.shape, mask.dtype) != (x.shape[:-1], jnp.bool_):
            raise ValueError(
                f"{name} must be boolean of shape {x.shape[:-1]}, that of the steps "
                f"of x, got {mask.dtype} of shape {mask.shape}"
            )
    if masks.first is not None and masks.starts is None:
        raise ValueError("first says how the steps in starts start: give starts too")
    batch = x.shape[:-2]
    if cell == "lstm":
        return LSTMState(*((*batch, size) for size in (outputs, hidden)))  # pyright: ignore[reportArgumentType]
    return (*batch, outputs)


def _checked_state(name: str, state: Any, expected: Any):
    if state is None:
        return None
    if isinstance(expected, LSTMState):
        if not isinstance(state, tuple) or len(state) != 2:
            raise ValueError(
                f"{name} must be an LSTMState(h, c), got {type(state).__name__}"
            )
        state = LSTMState(*map(jnp.asarray, state))
    else:
        state = jnp.asarray(state)
    if jax.tree.map(jnp.shape, state) != expected:
        raise ValueError(
            f"{name} has shape {jax.tree.map(jnp.shape, state)}, expected {expected}"
        )
    return state


# A loop in JAX is traced anew at each call, and outside of `jit` compiled anew as well.
@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("reverse", "dtype", "backend", "unroll")
)
def _run(
    cell: CellName,
    weights: Weights,
    states: tuple[Any, Any],
    x: Array,
    masks: Masks,
    *,
    reverse: bool,
    dtype: Dtype,
    backend: Literal["native", "fused", "scan"],
    unroll: int,
):
    sums = accumulation_dtype(dtype)
    x = x.astype(sums)
    states = _with_defaults(cell, weights, states, x)
    if backend == "native":
        return _native(cell, weights, states, x, masks, reverse)

    if masks.valid is not None:
        # Not only for the outputs' sake: 0 * NaN would reach the gradients.
        x = jnp.where(masks.valid[..., None], x, 0)
    x_gates = product(jnp.moveaxis(x, -2, 0), weights["w_x"], dtype)
    masks = Masks(*(m if m is None else jnp.moveaxis(m, -1, 0) for m in masks))
    weights = {name: w for name, w in weights.items() if name != "w_x"}
    compute = fused.fused if backend == "fused" else _reference
    outputs, state = compute(
        Loop(cell, dtype, reverse, unroll), weights, states, x_gates, masks
    )
    return jnp.moveaxis(outputs, 0, -2).astype(dtype), state


def _with_defaults(cell: CellName, weights: Weights, states: tuple[Any, Any], x: Array):
    """The initial state and that of the first sequence, in the dtype of `x`."""
    state, first_state = states
    if state is None:
        hidden = weights["w_h"].shape[1] // _GATES[cell]
        features = (weights["w_h"].shape[0], hidden)
        h, c = (jnp.zeros((*x.shape[:-2], n), x.dtype) for n in features)
        state = LSTMState(h, c) if cell == "lstm" else h
    if has_sharding_in_type(x):
        # Where its rows of x are: a loop must return what it takes.
        nothing = jnp.zeros_like(x[..., :1].sum(axis=-2))
        state = jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), state)
    states = (state, state if first_state is None else first_state)
    return jax.tree.map(lambda leaf: leaf.astype(x.dtype), states)


def _native(cell: CellName, weights: Weights, states, x: Array, masks: Masks, reverse):
    operands = {"x": x} | {name: w.astype(x.dtype) for name, w in weights.items()}
    operands |= {name: m for name, m in masks._asdict().items() if m is not None}
    prefixes = ("0", "_first") if masks.first is not None else ("0",)
    for suffix, state in zip(prefixes, states, strict=False):
        leaves = state if cell == "lstm" else (state,)
        operands |= {
            f"{n}{suffix}": leaf for n, leaf in zip("hc", leaves, strict=False)
        }
    outputs, *last = primitives.recurrence(cell, operands, reverse=reverse)
    return outputs, LSTMState(*last) if cell == "lstm" else last[0]


def _reference(loop: Loop, weights: Weights, states, x_gates: Array, masks: Masks):
    """What `fused.fused` computes, by the equations alone."""
    initial, first_state = states
    w_h = weights["w_h"].astype(loop.dtype)

    def like(name: str, array: Array):
        return jnp.expand_dims(weights[name].astype(array.dtype), range(array.ndim - 1))

    def step(state: CellState, x_gates: Array) -> CellState:
        if "b" in weights:
            x_gates = x_gates + like("b", x_gates)
        if loop.cell == "lstm":
            w_p = weights["w_p"].astype(loop.dtype) if "w_p" in weights else None
            return lstm_step(state, x_gates, w_h, w_p)
        if loop.cell == "gru":
            b_n = like("b_n", x_gates) if "b_n" in weights else None
            return gru_step(state, x_gates, w_h, b_n)
        return rnn_step(
            state, x_gates, w_h, "tanh" if loop.cell == "rnn-tanh" else "relu"
        )

    def body(state, inputs):
        x_gates, masks = inputs
        zeros = jax.tree.map(jnp.zeros_like, state)
        state = restart(state, first_state, zeros, masks.starts, masks.first)
        after = step(finite_at_padding(state, masks.valid), x_gates)
        output = after.h if loop.cell == "lstm" else after
        if masks.valid is not None:
            after = select(masks.valid, after, state)
            output = select(masks.valid, output, jnp.zeros_like(output))
        return after, output

    state, outputs = jax.lax.scan(
        body, initial, (x_gates, masks), reverse=loop.reverse, unroll=loop.unroll
    )
    return outputs, state
