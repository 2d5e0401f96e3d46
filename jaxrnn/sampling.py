"""Autoregressive decoding of any model with a single-step function.

The model is a pure function `step(params, tokens, state) -> (logits, state)`, one token
per row in, the logits of the next tokens out. Of a Flax module with such a method::

    step = functools.partial(model.apply, method="step")
    generate(step, state, prompt, length, keys, params=variables)

`step` is a static argument of the compiled loops and `params` a traced one: other
parameters of the same shapes compile nothing, another function object does. So make
`step` once, and not anew for every call: a lambda, a nested function and a
`functools.partial` are equal only to themselves. Without `params` it is called as
`step(tokens, state)`; arrays that such a function holds are compiled in as constants.

Each draw depends only on the row's key folded with the number of tokens drawn before.
So a row depends neither on the other rows of the batch, nor on the devices that they
are sharded over, nor on the pieces in which it is decoded. Key, prompt and state
sharded along the rows keep their sharding; devices then synchronize at a step only for
`stop`, to learn whether all rows ended, and for `top_k`, which XLA does not partition.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from jaxrnn._jax_compat import concrete_or_none
from jaxrnn._validation import as_int32, check_callable, check_min, check_within
from jaxrnn.logits import (
    Candidates,
    PerRow,
    check_top_k,
    keys_per_row,
    penalize,
    per_row,
    sample,
    sample_inverse_cdf,
    truncate,
)

__all__ = [
    "Candidates",
    "DecodeState",
    "GenerateOutput",
    "decode",
    "generate",
    "init_decode_state",
    "penalize",
    "prefill",
    "sample",
    "sample_inverse_cdf",
    "stream",
    "truncate",
]

# step(params, tokens, state), or step(tokens, state) where there are no params.
Step: TypeAlias = Callable[..., tuple[Float[Array, "b v"], PyTree]]


class DecodeOptions(TypedDict, total=False):
    """The options of `decode` that `generate` and `stream` pass on."""

    temperature: PerRow
    top_k: int | None
    top_p: PerRow | None
    min_p: PerRow | None
    repetition_penalty: PerRow
    stop: Sequence[int] | None
    pad_id: int


class DecodeState(NamedTuple):
    """Everything that the tokens still to be drawn depend on, besides their keys.

    Attributes:
        model_state: the recurrent state; in a row that stopped, after its last token.
        logits: of the next token.
        seen: which tokens the prompt holds or were drawn, for the repetition penalty.
        tail: the last tokens drawn, to be compared with `stop`; -1 for none.
        stopped: the rows that ended with `stop`.
        position: number of tokens drawn in each row.

    >>> decode_state = init_decode_state({"h": jnp.zeros((2, 4))}, jnp.zeros((2, 10)))
    >>> decode_state.position.tolist()
    [0, 0]
    """

    model_state: PyTree
    logits: Float[Array, "b v"]
    seen: Bool[Array, "b v"]
    tail: Int[Array, "b s"]
    stopped: Bool[Array, "b"]
    position: Int[Array, "b"]


class GenerateOutput(NamedTuple):
    """Tokens drawn, and the state to continue from.

    Attributes:
        tokens: with `pad_id` after the end of a row.
        lengths: number of tokens in each row, padding excluded.
        decode_state: for `decode` or `stream`.

    >>> def uniform(tokens, state):
    ...     return jnp.zeros((2, 10)), state
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> tokens, lengths, decode_state = generate(uniform, None, [[1], [2]], 5, keys)
    >>> tokens.shape, lengths.tolist()
    ((2, 5), [5, 5])
    """

    tokens: Int[Array, "b t"]
    lengths: Int[Array, "b"]
    decode_state: DecodeState


def init_decode_state(
    model_state: PyTree, logits: Float[ArrayLike, "b v"]
) -> DecodeState:
    """The state before the first token is drawn, from the logits of that token.

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
        model_state=model_state,
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
    *,
    params: PyTree = None,
) -> DecodeState:
    """Runs the model over the prompt; compiles once per padded prompt length.

    Args:
        step: the model, `step(params, tokens, state) -> (logits, state)`, or without
            the first argument where `params` is None.
        state: the model's state before the prompt.
        prompt: token ids, padded at the end with anything.
        prompt_lengths: of each row, if they differ. Every leaf of the state must then
            lead with the rows.
        params: the first argument of `step`.

    Raises:
        TypeError: `step` is not callable or not hashable; prompt or lengths are not
            integers.
        ValueError: there are no rows, or a row without a token (`init_decode_state`
            needs none); a token is outside the vocabulary; a shape does not fit;
            `step` returns something else than logits and a state like its argument.

    >>> def count(tokens, steps):
    ...     return jax.nn.one_hot(tokens + 1, 10), steps + 1
    >>> prompt = [[4, 5, 6], [1, 0, 0]]
    >>> decode_state = prefill(count, jnp.zeros(2), prompt, prompt_lengths=[3, 1])
    >>> decode_state.logits.argmax(axis=-1).tolist(), decode_state.model_state.tolist()
    ([7, 2], [3.0, 1.0])
    """
    _check_step(step)
    prompt = as_int32(2, prompt=prompt)
    rows, longest = prompt.shape
    if not prompt.size:
        raise ValueError(
            f"the prompt has shape {prompt.shape}, but each row needs a token: without "
            "a prompt, init_decode_state takes the logits of the first token"
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
        # Padding need not be a valid token.
        prompt = jnp.where(times < prompt_lengths[:, None], prompt, 0)
    decode_state = _prefill(step, params, state, prompt, prompt_lengths)
    vocab_size = decode_state.logits.shape[-1]
    check_within(0, vocab_size - 1, prompt=concrete_or_none(prompt))
    return decode_state


def decode(
    step: Step,
    decode_state: DecodeState,
    length: int,
    key: Key[Array, "b"],
    *,
    params: PyTree = None,
    temperature: PerRow = 1.0,
    top_k: int | None = None,
    top_p: PerRow | None = None,
    min_p: PerRow | None = None,
    repetition_penalty: PerRow = 1.0,
    stop: Sequence[int] | None = None,
    pad_id: int = 0,
    limit: Int[ArrayLike, ""] | None = None,
) -> GenerateOutput:
    """Draws the next `length` tokens of each row in one compiled loop.

    Decoding in pieces with the same keys and options gives the tokens of one call; each
    `length` is compiled once.

    Args:
        step: the model, as in `prefill`.
        decode_state: where to continue.
        length: number of tokens to draw; static.
        key: one per row, as `jax.random.split(key, rows)` makes them; the same for all
            pieces of a text.
        params: the first argument of `step`, as in `prefill`.
        temperature: as in `truncate`.
        top_k: as in `truncate`; static.
        top_p: as in `truncate`.
        min_p: as in `truncate`.
        repetition_penalty: of the tokens in the prompt and those drawn, as in
            `penalize`.
        stop: token ids that end a row once it has drawn them in this order. Its state
            stays as it is after them, for which every leaf of it must lead with the
            rows. Without `stop` all rows continue, also those that had stopped.
        pad_id: fills the tokens after the end of a row.
        limit: draws at most so many tokens and pads the others; unlike `length` traced,
            so that any number shares one compilation. None is `length`.

    Raises:
        TypeError: as `prefill`, `truncate` and `penalize`.
        ValueError: `length` is below 1; there is not one key for each row; `stop` is
            empty or outside the vocabulary; `step` returns something else than logits
            and a state like its argument; as `truncate` and `penalize`.

    >>> def fibonacci(tokens, before):
    ...     return jax.nn.one_hot((tokens + before) % 10, 10), tokens
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> decode_state = prefill(fibonacci, jnp.array([0]), [[1, 1, 2]])
    >>> for _ in range(2):
    ...     tokens, lengths, decode_state = decode(
    ...         fibonacci, decode_state, 3, keys, temperature=0, stop=[8, 3], pad_id=-1
    ...     )
    ...     print(tokens.tolist(), lengths.tolist(), decode_state.stopped.tolist())
    [[3, 5, 8]] [3] [False]
    [[3, -1, -1]] [1] [True]
    """
    _check_step(step)
    rows, vocab_size = decode_state.logits.shape
    length = check_min(1, length=length)
    key = keys_per_row(key, rows)
    if top_k is not None:
        check_top_k(top_k, vocab_size)
    options = {"temperature": temperature, "repetition_penalty": repetition_penalty}
    optional = {"top_p": top_p, "min_p": min_p}
    options |= {name: x for name, x in optional.items() if x is not None}
    options = {name: per_row(name, x, rows) for name, x in options.items()}
    stop_ids = None
    if stop is not None:
        stop_ids = as_int32(1, stop=stop)
        if not stop_ids.size:
            raise ValueError("stop is empty: give at least one token, or None")
        check_within(0, vocab_size - 1, stop=concrete_or_none(stop_ids))
    return _decode(
        step,
        params,
        _with_tail(decode_state, 0 if stop_ids is None else stop_ids.size),
        key,
        options,
        stop_ids,
        as_int32(0, pad_id=pad_id),
        as_int32(0, limit=length if limit is None else limit),
        length=length,
        top_k=top_k,
    )


def generate(
    step: Step,
    state: PyTree,
    prompt: Int[ArrayLike, "b p"] | Sequence[Sequence[int]],
    length: int,
    key: Key[Array, "b"],
    *,
    prompt_lengths: Int[ArrayLike, "b"] | Sequence[int] | None = None,
    params: PyTree = None,
    **options: Unpack[DecodeOptions],
) -> GenerateOutput:
    """`prefill` with the prompt, then `decode` with the other options.

    Raises:
        TypeError: as `prefill` and `decode`.
        ValueError: as `prefill` and `decode`.

    >>> def fibonacci(tokens, before):
    ...     return jax.nn.one_hot((tokens + before) % 10, 10), tokens
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> generate(fibonacci, jnp.array([0]), [[1]], 4, keys, temperature=0).tokens
    Array([[1, 2, 3, 5]], dtype=int32)
    """
    decode_state = prefill(step, state, prompt, prompt_lengths, params=params)
    return decode(step, decode_state, length, key, params=params, **options)


def stream(
    step: Step,
    decode_state: DecodeState,
    length: int,
    key: Key[Array, "b"],
    *,
    piece_length: int = 64,
    params: PyTree = None,
    **options: Unpack[DecodeOptions],
) -> Iterator[GenerateOutput]:
    """Yields what `decode` with the same options returns, a piece at a time.

    Every piece has `piece_length` columns, so there is one compilation for all; the
    last one is padded with `pad_id`, as `lengths` says. With `stop` the iterator ends
    once all rows have stopped. While the caller handles a piece the next one is not
    computed yet.

    Raises:
        TypeError: as `decode`.
        ValueError: as `decode`, or `piece_length` is below 1; at the first piece.

    >>> def fibonacci(tokens, before):
    ...     return jax.nn.one_hot((tokens + before) % 10, 10), tokens
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> decode_state = prefill(fibonacci, jnp.array([0]), [[1, 1, 2]])
    >>> pieces = stream(fibonacci, decode_state, 5, keys, piece_length=3, temperature=0)
    >>> [(piece.tokens.tolist(), piece.lengths.tolist()) for piece in pieces]
    [([[3, 5, 8]], [3]), ([[3, 1, 0]], [2])]
    """
    piece_length = check_min(1, piece_length=piece_length)
    for start in range(0, check_min(1, length=length), piece_length):
        limit = min(piece_length, length - start)
        output = decode(
            step,
            decode_state,
            piece_length,
            key,
            params=params,
            limit=limit,
            **options,
        )
        decode_state = output.decode_state
        yield output
        if options.get("stop") is not None and decode_state.stopped.all():
            return


@functools.partial(jax.jit, static_argnames="step")
def _prefill(
    step: Step,
    params: PyTree,
    state: PyTree,
    prompt: Int[Array, "b p"],
    lengths: Int[Array, "b"] | None,
) -> DecodeState:
    step = _bind(step, params)
    rows, longest = prompt.shape
    times = jnp.arange(longest, dtype=jnp.int32)

    def body(before, inputs):
        time, tokens = inputs
        after = step(tokens, before[1])
        if lengths is not None:
            after = _select_rows(time < lengths, after, before)
        return after, None

    spec = _logits_spec(step, prompt[:, 0], state)
    before = (jnp.zeros(spec.shape, spec.dtype), state)
    (logits, state), _ = jax.lax.scan(body, before, (times, prompt.T))
    decode_state = init_decode_state(state, logits)
    valid = jnp.ones(prompt.shape, bool)
    if lengths is not None:
        valid = times[None] < lengths[:, None]
    each_row = jnp.arange(rows)[:, None]
    seen = decode_state.seen.at[each_row, prompt].max(valid)
    return decode_state._replace(seen=seen)


@functools.partial(jax.jit, static_argnames=("step", "length", "top_k"))
def _decode(
    step: Step,
    params: PyTree,
    decode_state: DecodeState,
    key: Key[Array, "b"],
    options: dict[str, Float[Array, "b"]],
    stop: Int[Array, "s"] | None,
    pad_id: Int[Array, ""],
    limit: Int[Array, ""],
    *,
    length: int,
    top_k: int | None,
) -> GenerateOutput:
    step = _bind(step, params)
    rows, vocab_size = decode_state.logits.shape
    penalty = options.pop("repetition_penalty")
    spec = _logits_spec(step, jnp.zeros(rows, jnp.int32), decode_state.model_state)
    expected = jax.typeof(decode_state.logits)
    if (spec.shape, spec.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"step returns logits {spec.dtype}{[*spec.shape]}, but those of the "
            f"decode state are {expected.dtype}{[*expected.shape]}"
        )
    times = jnp.arange(length, dtype=jnp.int32)
    # Before the loop and for all steps at once, which is several times as fast.
    uniforms = jax.vmap(_uniforms, in_axes=(None, 0))(
        key, times[:, None] + decode_state.position[None]
    )
    ids = jnp.arange(vocab_size, dtype=jnp.int32)[None]

    def unfinished(carry):
        time, _, before = carry
        going = time < jnp.minimum(limit, length)
        # A reduction over all rows: an all-reduce at every step where they are sharded.
        return going if stop is None else going & ~before.stopped.all()

    def draw(carry):
        time, tokens, before = carry
        logits = penalize(before.logits, before.seen, penalty)
        candidates = truncate(logits, top_k=top_k, **options)
        token = sample_inverse_cdf(candidates, uniforms[time])
        token = jnp.where(before.stopped, pad_id, token)
        logits, model_state = step(token, before.model_state)
        after = before._replace(
            model_state=model_state,
            logits=logits,
            seen=before.seen | (ids == token[:, None]),
            position=before.position + 1,
        )
        if stop is not None:
            tail = jnp.concatenate([before.tail[:, 1:], token[:, None]], axis=1)
            stopped = (tail == stop[None]).all(axis=1)
            after = after._replace(tail=tail, stopped=stopped)
            after = _select_rows(before.stopped, before, after)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, time, axis=0)
        return time + 1, tokens, after

    before = decode_state
    if stop is None:
        before = before._replace(stopped=jnp.zeros_like(before.stopped))
    padding = jnp.broadcast_to(pad_id, (length, rows))
    carry = (jnp.zeros((), jnp.int32), padding, before)
    _, tokens, after = jax.lax.while_loop(unfinished, draw, carry)
    return GenerateOutput(tokens.T, after.position - before.position, after)


def _uniforms(key: Key[Array, "b"], position: Int[Array, "b"]) -> Float[Array, "b"]:
    return jax.vmap(jax.random.uniform)(jax.vmap(jax.random.fold_in)(key, position))


def _check_step(step: Step) -> None:
    owner = getattr(step, "__self__", None)
    if isinstance(owner, nnx.Module):
        raise TypeError(
            "step is a method of an NNX module, whose parameters would be compiled in: "
            "give graph, params = nnx.split(model), step = lambda params, tokens, "
            "state: nnx.merge(graph, params).step(tokens, state), and params=params"
        )
    if isinstance(owner, nn.Module) and getattr(step, "__name__", "") == "apply":
        raise TypeError(
            "step is the apply of a Flax module, which has to know the method: give "
            'functools.partial(model.apply, method="step")'
        )
    try:
        hash(check_callable(step=step))
    except TypeError as error:
        raise TypeError(
            f"step must be a function that can be hashed ({error}): pass the arrays in "
            "it as params"
        ) from None


def _bind(step: Step, params: PyTree) -> Step:
    return step if params is None else functools.partial(step, params)


def _with_tail(decode_state: DecodeState, width: int) -> DecodeState:
    """With a tail as wide as `stop`, so that all pieces have the same shapes."""
    rows, current = decode_state.tail.shape
    if current == width:
        return decode_state
    blank = np.full((rows, width), -1, np.int32)
    tail = jnp.concatenate([blank, decode_state.tail], axis=1)[:, current:]
    return decode_state._replace(tail=tail)


def _logits_spec(
    step: Step, tokens: Int[Array, "b"], state: PyTree
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the logits, after checking what `step` returns."""
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


def _select_rows(rows: Bool[Array, "b"], this: PyTree, other: PyTree) -> PyTree:
    """`this` in the rows that are True, `other` elsewhere, leaf by leaf."""

    def select(this, other):
        if jnp.shape(this)[:1] != rows.shape:
            raise ValueError(
                f"a leaf of the state has shape {jnp.shape(this)}, but must lead with "
                f"the {rows.size} rows, which end apart (prompt_lengths, stop)"
            )
        return jnp.where(jnp.expand_dims(rows, range(1, this.ndim)), this, other)

    return jax.tree.map(select, this, other)
