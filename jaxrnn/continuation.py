"""Where a text stands: what a model has read of it, and all that the rest depends on.

A model is a function `step(tokens, state) -> (logits, state)`: from one token of each
row, and what it remembers, to the logits of the next ones. Nothing is drawn here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from jaxrnn._jax_compat import concrete_or_none
from jaxrnn._validation import as_int32, check_within
from jaxrnn.closures import Arrays, Frame, take_apart

Step: TypeAlias = Callable[
    [Int[Array, "b"], PyTree], tuple[Float[Array, "b v"], PyTree]
]


class DecodeState(NamedTuple):
    """What the rest of a text depends on.

    Attributes:
        state: the model's; in a row that stopped, that behind its stop string.
        logits: of the next token.
        seen: which tokens stand in the prompt or have been drawn.
        tail: the last tokens drawn, where a stop string may have begun; -1 for none.
        stopped: the rows that ended with the stop string.
        position: how many tokens each row has drawn.

    >>> state = init_decode_state({"h": jnp.zeros((2, 4))}, jnp.zeros((2, 10)))
    >>> state.position.tolist()
    [0, 0]
    """

    state: PyTree
    logits: Float[Array, "b v"]
    seen: Bool[Array, "b v"]
    tail: Int[Array, "b s"]
    stopped: Bool[Array, "b"]
    position: Int[Array, "b"]


def init_decode_state(state: PyTree, logits: Float[ArrayLike, "b v"]) -> DecodeState:
    """Where a text stands before its first token, which has these logits.

    Raises:
        ValueError: the logits are not of shape [rows, vocabulary].

    >>> init_decode_state(None, jnp.zeros((2, 10))).stopped.tolist()
    [False, False]
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 2:
        raise ValueError(
            f"logits must have the shape [rows, vocabulary], got {logits.shape}"
        )
    rows = logits.shape[0]
    return DecodeState(
        state=state,
        logits=logits,
        seen=jnp.zeros(logits.shape, bool),
        tail=jnp.zeros((rows, 0), jnp.int32),
        stopped=jnp.zeros(rows, bool),
        position=jnp.zeros(rows, jnp.int32),
    )


def prefill(
    step: Step,
    state: PyTree,
    prompt: Int[ArrayLike, "b p"] | Sequence[Sequence[int]],
    prompt_lengths: Int[ArrayLike, "b"] | Sequence[int] | None = None,
) -> DecodeState:
    """Where a text stands behind its prompt, whose tokens go through the model in turn.

    `state` is the model's before the prompt. Prompts of different lengths are padded
    behind, with anything, `prompt_lengths` says how long they are, and every leaf of
    the state must lead with the rows. Each length of the padded prompt is compiled
    once.

    Raises:
        ValueError: there are no rows, or a row without a token (`init_decode_state`
            needs none); a token is outside the vocabulary; a shape does not fit;
            `step` returns something else than logits and a state like the one before.

    >>> def count(tokens, steps):
    ...     return jax.nn.one_hot(tokens + 1, 10), steps + 1
    >>> prompt = [[4, 5, 6], [1, 0, 0]]
    >>> text = prefill(count, jnp.zeros(2), prompt, prompt_lengths=[3, 1])
    >>> text.logits.argmax(axis=-1).tolist(), text.state.tolist()
    ([7, 2], [3.0, 1.0])
    """
    prompt = as_int32(2, prompt=prompt)
    rows, longest = prompt.shape
    if not prompt.size:
        raise ValueError(
            f"the prompt has shape {prompt.shape}, but each row needs a token; to draw "
            "without any, begin(state, logits) takes the logits of the first one"
        )
    if prompt_lengths is not None:
        prompt_lengths = as_int32(1, prompt_lengths=prompt_lengths)
        if prompt_lengths.shape != (rows,):
            raise ValueError(
                f"prompt_lengths has shape {prompt_lengths.shape}, "
                f"but the prompt {rows} rows"
            )
        check_within(1, longest, prompt_lengths=concrete_or_none(prompt_lengths))
        times = np.arange(longest, dtype=np.int32)[None]
        # What is behind them need be no token.
        prompt = jnp.where(times < prompt_lengths[:, None], prompt, 0)
    text = _read(*take_apart(step), state, prompt, prompt_lengths)
    check_within(0, text.logits.shape[-1] - 1, prompt=concrete_or_none(prompt))
    return text


@functools.partial(jax.jit, static_argnums=0)
def _read(
    frame: Frame,
    arrays: Arrays,
    state: PyTree,
    prompt: Int[Array, "b p"],
    lengths: Int[Array, "b"] | None,
) -> DecodeState:
    step = frame.fill(arrays)
    rows, longest = prompt.shape
    times = jnp.arange(longest, dtype=jnp.int32)

    def body(before, inputs):
        time, tokens = inputs
        after = step(tokens, before[1])
        if lengths is not None:
            after = select_rows(time < lengths, after, before)
        return after, None

    spec = logits_spec(step, prompt[:, 0], state)
    before = (jnp.zeros(spec.shape, spec.dtype), state)
    (logits, state), _ = jax.lax.scan(body, before, (times, prompt.T))
    text = init_decode_state(state, logits)
    valid = jnp.ones(prompt.shape, bool)
    if lengths is not None:
        valid = times[None] < lengths[:, None]
    each_row = jnp.arange(rows)[:, None]
    return text._replace(seen=text.seen.at[each_row, prompt].max(valid))


def logits_spec(
    step: Step, tokens: Int[Array, "b"], state: PyTree
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the logits that `step` returns.

    Raises:
        ValueError: it returns something else than logits of shape [rows, vocabulary]
            and a state like the one before.

    >>> logits_spec(lambda tokens, _: (jnp.zeros((2, 10)), _), jnp.zeros(2, int), 0.0)
    ShapeDtypeStruct(shape=(2, 10), dtype=float32)
    """
    returned = jax.eval_shape(step, tokens, state)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(f"step must return (logits, state), not {returned}")
    logits, after = returned
    shape = getattr(logits, "shape", ())
    if len(shape) != 2 or shape[0] != tokens.shape[0]:
        raise ValueError(
            f"step must return logits of shape [{tokens.shape[0]}, vocabulary], "
            f"not {logits}"
        )
    before, after = (
        jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{[*jnp.shape(leaf)]}", tree)
        for tree in (state, after)
    )
    if before != after:
        raise ValueError(
            f"step must return a state like the one it is given: {before}, not {after}"
        )
    return logits


def select_rows(rows: Bool[Array, "b"], this: PyTree, other: PyTree) -> PyTree:
    """`this` in the rows that are true, `other` elsewhere, leaf by leaf.

    Raises:
        ValueError: a leaf does not lead with the rows.

    >>> rows = jnp.array([True, False])
    >>> select_rows(rows, jnp.array([1, 2]), jnp.array([3, 4])).tolist()
    [1, 4]
    """

    def leaf(this, other):
        if jnp.shape(this)[:1] != rows.shape:
            raise ValueError(
                f"a leaf of the state has shape {jnp.shape(this)}, but must lead with "
                f"the {rows.size} rows where they end apart (prompt_lengths, stop)"
            )
        return jnp.where(jnp.expand_dims(rows, range(1, this.ndim)), this, other)

    return jax.tree.map(leaf, this, other)
