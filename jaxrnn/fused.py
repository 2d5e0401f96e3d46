"""The fast recurrences: LSTM, GRU and RNN with derivatives written by hand.

They compute what `scan` computes, in about half the time and memory. Automatic
differentiation of a scan keeps what every primitive of a step asks for, and adds up the
gradient of the weights step by step. Here each cell says what to keep, and how tangents
pass through one step. What the tangents of the weights have to do with that,
`h_before @ d_w_h`, is one product for all steps, before the loop.

So the loop over tangents is linear in them and holds one product, and JAX transposes
it into the backward pass one would write by hand (Appleyard, Kocisky and Blunsom, 2016,
arXiv:1604.01946): its loop carries the cotangent of the state and nothing else, and the
gradient of `w_h` is one product after it. Because it is JAX that transposes, forward
mode, second derivatives and `vmap` work as for any other function.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.equations import ACTIVATIONS
from jaxrnn.products import bilinear_product, product
from jaxrnn.scan import finite_at_padding, restart, select
from jaxrnn.types import Array, Bool, CellState, Dtype, Float, LSTMState

CellName = Literal["lstm", "gru", "rnn-tanh", "rnn-relu"]
Weights = dict[str, Array]


class Kernel(NamedTuple):
    """One cell: its step, and the derivative of that in two parts.

    `dot(a, w)` is their product, with factors in the dtype that the cell computes in.
    """

    # (dot, weights, state, x_gates) -> (state, saved): one step, and what the
    # derivative needs to know of it.
    step: Callable[..., tuple[CellState, Any]]
    # (dot, d_weights, saved, d_x_gates) -> d_inputs: the share of the weights and of
    # the inputs in the tangents of every step, for all steps at once.
    tangent_inputs: Callable[..., Any]
    # (dot, weights, saved, d_state, d_inputs) -> d_state: one step.
    tangent_step: Callable[..., CellState]


class Loop(NamedTuple):
    """What is known of a recurrence before any array."""

    cell: CellName
    dtype: Dtype  # of the factors of products
    reverse: bool = False
    unroll: int = 1

    @property
    def kernel(self) -> Kernel:
        """The step of `cell` and its derivative."""
        return _KERNELS[self.cell]

    def dot(self, a: Float[Array, "*b h"], w: Float[Array, "h g"]) -> Array:
        """`product` of `a` and `w`, with factors in `dtype`."""
        return product(a, w, self.dtype)

    def tangent_dot(self, a: Float[Array, "*b h"], w: Float[Array, "h g"]) -> Array:
        """The same where one of them is a tangent."""
        return bilinear_product(a, w, self.dtype)


class Masks(NamedTuple):
    """Which steps are valid and where sequences start, as in `jaxrnn.scan.scan`."""

    valid: Bool[Array, "t *b"] | None = None
    starts: Bool[Array, "t *b"] | None = None
    first: Bool[Array, "t *b"] | None = None


def fused(
    loop: Loop,
    weights: Weights,
    states: tuple[CellState, CellState],
    x_gates: Float[Array, "t *b g"],
    masks: Masks,
) -> tuple[Float[Array, "t *b h"], CellState]:
    """Outputs and last state of a recurrence over projected inputs, without the bias.

    `states` are the one before the first step read, and that of the steps where `first`
    says so; `weights` are `w_h` and, where the cell has them, `b`, `b_n` and `w_p`.

    >>> loop, h = Loop("rnn-relu", jnp.float32), jnp.zeros((1, 1))
    >>> weights = {"w_h": jnp.ones((1, 1)), "b": jnp.ones(1)}
    >>> outputs, h = fused(loop, weights, (h, h), jnp.ones((3, 1, 1)), Masks())
    >>> outputs.ravel().tolist(), h.tolist()
    ([2.0, 4.0, 6.0], [[6.0]])
    """
    return _recurrence(loop, weights, states, x_gates, masks)


def forward(loop: Loop, weights: Weights, states, x_gates, masks: Masks):
    """Outputs, last state, and what the derivative needs of each step."""
    initial, first_state = states

    # A cast belongs before the loop: XLA would move it into it.
    weights = jax.lax.optimization_barrier(_cast(weights, loop.dtype))

    def body(state, step):
        x_gates, masks = step
        x_gates = _with_bias(x_gates, weights)
        state = _restart(state, first_state, masks)
        read = finite_at_padding(state, masks.valid)
        next_state, saved = loop.kernel.step(loop.dot, weights, read, x_gates)
        state, output = _end(next_state, state, masks)
        return state, (output, saved)

    state, (outputs, saved) = jax.lax.scan(
        body, initial, (x_gates, masks), reverse=loop.reverse, unroll=loop.unroll
    )
    return outputs, state, saved


def tangents(
    loop: Loop, weights: Weights, saved, masks: Masks, of_weights, of_states, of_x_gates
):
    """The tangents of the outputs and the last state.

    They come from the tangents of all that `forward` is given and from what it saved:
    linear in the tangents, to be transposed.
    """
    d_initial, d_first = of_states

    # Laid out for the transposed loop; the barrier keeps that out of the loop.
    turned = jax.tree.map(jnp.transpose, _cast(weights, loop.dtype))
    turned = jax.lax.optimization_barrier(turned)

    def body(d_state, step):
        saved, d_inputs, masks = step
        weights = jax.tree.map(jnp.transpose, turned)
        d_state = _restart(d_state, d_first, masks)
        d_next = loop.kernel.tangent_step(
            loop.tangent_dot, weights, saved, d_state, d_inputs
        )
        return _end(d_next, d_state, masks)

    of_x_gates = _with_bias(of_x_gates, of_weights)
    d_inputs = loop.kernel.tangent_inputs(
        loop.tangent_dot, of_weights, saved, of_x_gates
    )
    d_state, d_outputs = jax.lax.scan(
        # JAX would else compute the factors of the tangents beforehand, and keep them.
        jax.checkpoint(body, prevent_cse=False),
        d_initial,
        (saved, d_inputs, masks),
        reverse=loop.reverse,
        unroll=loop.unroll,
    )
    return d_outputs, d_state


def states_before(loop: Loop, states, after: CellState, masks: Masks) -> CellState:
    """The state that each step read, from those that the valid ones left.

    >>> h, after = jnp.array([9.0]), jnp.array([[1.0], [0.0], [3.0], [4.0]])
    >>> masks = Masks(valid=after != 0, starts=after == 4)
    >>> states_before(Loop("gru", jnp.float32), (h, h), after, masks).ravel().tolist()
    [9.0, 1.0, 1.0, 0.0]
    """
    initial, first_state = states

    def body(state, step):
        after, masks = step
        state = _restart(state, first_state, masks)
        next_state = after if masks.valid is None else select(masks.valid, after, state)
        return next_state, state

    _, before = jax.lax.scan(body, initial, (after, masks), reverse=loop.reverse)
    return before


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recurrence(loop: Loop, weights: Weights, states, x_gates, masks: Masks):
    outputs, state, _ = forward(loop, weights, states, x_gates, masks)
    return outputs, state


@_recurrence.defjvp
def _recurrence_jvp(loop: Loop, primals, of_primals):
    weights, states, x_gates, masks = primals
    of_weights, of_states, of_x_gates, _ = of_primals
    outputs, state, saved = forward(loop, weights, states, x_gates, masks)
    of_results = tangents(
        loop, weights, saved, masks, of_weights, of_states, of_x_gates
    )
    return (outputs, state), of_results


def _restart(state: CellState, first_state: CellState, masks: Masks) -> CellState:
    zeros = jax.tree.map(jnp.zeros_like, state)
    return restart(state, first_state, zeros, masks.starts, masks.first)


def _end(
    next_state: CellState, state: CellState, masks: Masks
) -> tuple[CellState, Array]:
    """The state after a step, and its output."""
    output = next_state.h if isinstance(next_state, LSTMState) else next_state
    if masks.valid is None:
        return next_state, output
    next_state = select(masks.valid, next_state, state)
    return next_state, select(masks.valid, output, jnp.zeros_like(output))


def _with_bias(x_gates: Float[Array, "*b g"], weights: Weights) -> Array:
    """Added step by step: another pass over the gates of all steps would cost more."""
    if "b" not in weights:
        return x_gates
    return x_gates + _like(x_gates, weights["b"])


def _cast(weights: Weights, dtype: Dtype) -> Weights:
    """The matrices in the dtype of products."""
    return jax.tree.map(lambda w: w.astype(dtype) if w.ndim > 1 else w, weights)


def _like(array: Array, bias: Float[Array, "g"]) -> Array:
    """The bias in the dtype of `array`, with as many axes."""
    return jnp.expand_dims(bias.astype(array.dtype), range(array.ndim - 1))


def _lstm_step(dot, weights, state, x_gates):
    gates = x_gates + dot(state.h, weights["w_h"])
    # sigmoid(x) = (1 + tanh(x / 2)) / 2: one tanh for all four. On a CPU, XLA would
    # else compute the gates inside of what uses them, in a loop it cannot vectorize.
    is_tanh = jnp.arange(gates.shape[-1]) // state.c.shape[-1] == 2
    half = _like(gates, jnp.where(is_tanh, 1.0, 0.5).astype(gates.dtype))
    i, f, g, o = jnp.split(half * jnp.tanh(half * gates) + (1 - half), 4, axis=-1)
    c = f * state.c + i * g
    h = o * jnp.tanh(c)
    if "w_p" in weights:
        h = dot(h, weights["w_p"])
    return LSTMState(h, c), (state, i, f, g, o)


def _lstm_tangent_inputs(dot, d_weights, saved, d_x_gates):
    before, i, f, g, o = saved
    d_gates = d_x_gates + dot(before.h, d_weights["w_h"])
    if "w_p" not in d_weights:
        return d_gates, None
    return d_gates, dot(o * jnp.tanh(f * before.c + i * g), d_weights["w_p"])


def _lstm_tangent_step(dot, weights, saved, d_state, d_inputs):
    before, i, f, g, o = saved
    d_gates, d_projected = d_inputs
    d_gates = d_gates + dot(d_state.h, weights["w_h"])
    d_i, d_f, d_g, d_o = jnp.split(d_gates, 4, axis=-1)
    d_c = (
        f * d_state.c
        + f * (1 - f) * before.c * d_f
        + i * (1 - i) * g * d_i
        + i * (1 - g * g) * d_g
    )
    tanh_c = jnp.tanh(f * before.c + i * g)
    d_h = o * (1 - tanh_c * tanh_c) * d_c + o * (1 - o) * tanh_c * d_o
    if "w_p" in weights:
        d_h = d_projected + dot(d_h, weights["w_p"])
    return LSTMState(d_h, d_c)


def _gru_step(dot, weights, h, x_gates):
    cut = [2 * h.shape[-1]]
    x_rz, x_n = jnp.split(x_gates, cut, axis=-1)
    h_rz, h_n = jnp.split(dot(h, weights["w_h"]), cut, axis=-1)
    if "b_n" in weights:
        h_n = h_n + _like(h_n, weights["b_n"])
    r, z = jnp.split(0.5 * jnp.tanh(0.5 * (x_rz + h_rz)) + 0.5, 2, axis=-1)
    n = jnp.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h, (h, h_n, r, z, n)


def _gru_tangent_inputs(dot, d_weights, saved, d_x_gates):
    h = saved[0]
    d_h_gates = dot(h, d_weights["w_h"])
    if "b_n" in d_weights:
        d_b = jnp.pad(d_weights["b_n"], (2 * h.shape[-1], 0))
        d_h_gates = d_h_gates + _like(d_h_gates, d_b)
    return d_x_gates, d_h_gates


def _gru_tangent_step(dot, weights, saved, d_state, d_inputs):
    h, h_n, r, z, n = saved
    d_x_gates, d_h_gates = d_inputs
    d_xr, d_xz, d_xn = jnp.split(d_x_gates, 3, axis=-1)
    d_h_gates = d_h_gates + dot(d_state, weights["w_h"])
    d_hr, d_hz, d_hn = jnp.split(d_h_gates, 3, axis=-1)
    d_r = r * (1 - r) * (d_xr + d_hr)
    d_z = z * (1 - z) * (d_xz + d_hz)
    d_n = (1 - n * n) * (d_xn + r * d_hn + h_n * d_r)
    return (1 - z) * d_n + (h - n) * d_z + z * d_state


def _rnn(activation: str, slope: Callable[[Array], Array]) -> Kernel:
    """With the slope of the activation as a function of what it returned."""

    def step(dot, weights, h, x_gates):
        after = ACTIVATIONS[activation](x_gates + dot(h, weights["w_h"]))
        return after, (h, after)

    def tangent_inputs(dot, d_weights, saved, d_x_gates):
        return d_x_gates + dot(saved[0], d_weights["w_h"])

    def tangent_step(dot, weights, saved, d_state, d_inputs):
        return slope(saved[1]) * (d_inputs + dot(d_state, weights["w_h"]))

    return Kernel(step, tangent_inputs, tangent_step)


_KERNELS: dict[CellName, Kernel] = {
    "lstm": Kernel(_lstm_step, _lstm_tangent_inputs, _lstm_tangent_step),
    "gru": Kernel(_gru_step, _gru_tangent_inputs, _gru_tangent_step),
    "rnn-tanh": _rnn("tanh", lambda h: 1 - h * h),
    "rnn-relu": _rnn("relu", lambda h: (h > 0).astype(h.dtype)),
}
