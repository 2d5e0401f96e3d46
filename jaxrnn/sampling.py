"""Texts drawn token by token, from any model that has a step.

A model is a function `step(tokens, state) -> (logits, state)`: from one token of each
row, and what it remembers, to the logits of the next ones. Of a Flax module with such a
method it is::

    step = functools.partial(model.apply, variables, method="step")

Arrays in a `functools.partial` (or in a callable that is a pytree) are arguments of the
compiled loop: other weights of the same shapes compile nothing. Those that a function
closes over are constants in it, and each new closure is compiled anew.

A row depends on its key alone: a draw is decided by the row's key folded with the
number of tokens drawn before. So neither the rows beside it matter, nor the devices
that share them, nor the pieces in which a text is drawn.

Devices share the rows when key, prompt and state are sharded along them. They meet at a
step only for `stop`, to learn whether all rows ended, and for `top_k`, which XLA does
not split.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from jaxrnn._jax_compat import concrete_or_none
from jaxrnn._validation import as_int32, check_min, check_within
from jaxrnn.closures import Arrays, Frame, take_apart
from jaxrnn.continuation import (
    DecodeState,
    Step,
    init_decode_state,
    logits_spec,
    prefill,
    select_rows,
)
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
    "truncate",
]


class GenerateOutput(NamedTuple):
    """Tokens, and what it takes to go on.

    Attributes:
        tokens: `pad_id` behind a stop string.
        lengths: how many tokens of each row are no padding.
        text: for `decode`.

    >>> def ten(tokens, state):
    ...     return jnp.zeros((2, 10)), state
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> tokens, lengths, text = generate(ten, None, [[1], [2]], 5, keys)
    >>> tokens.shape, lengths.tolist()
    ((2, 5), [5, 5])
    """

    tokens: Int[Array, "b t"]
    lengths: Int[Array, "b"]
    text: DecodeState


def generate(
    step: Step,
    state: PyTree,
    prompt: Int[ArrayLike, "b p"] | Sequence[Sequence[int]],
    length: int,
    key: Key[Array, "b"],
    *,
    prompt_lengths: Int[ArrayLike, "b"] | Sequence[int] | None = None,
    temperature: PerRow = 1.0,
    top_k: int | None = None,
    top_p: PerRow | None = None,
    min_p: PerRow | None = None,
    repetition_penalty: PerRow = 1.0,
    stop: Sequence[int] | None = None,
    pad_id: int = 0,
) -> GenerateOutput:
    """The next `length` tokens of each row: `prefill` with the prompt, then `decode`.

    `state` is the model's before the prompt; `prompt` and `prompt_lengths` are as in
    `prefill`, `length`, `key` and all after them as in `decode`.

    Raises:
        ValueError: as `prefill` and `decode`.

    >>> def fibonacci(tokens, before):
    ...     return jax.nn.one_hot((tokens + before) % 10, 10), tokens
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> drawn = generate(fibonacci, jnp.array([0]), [[1]], 4, keys, temperature=0)
    >>> drawn.tokens.tolist()
    [[1, 2, 3, 5]]
    """
    return decode(
        step,
        prefill(step, state, prompt, prompt_lengths),
        length,
        key,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        pad_id=pad_id,
    )


def decode(
    step: Step,
    text: DecodeState,
    length: int,
    key: Key[Array, "b"],
    *,
    temperature: PerRow = 1.0,
    top_k: int | None = None,
    top_p: PerRow | None = None,
    min_p: PerRow | None = None,
    repetition_penalty: PerRow = 1.0,
    stop: Sequence[int] | None = None,
    pad_id: int = 0,
) -> GenerateOutput:
    """The next `length` tokens of each row, drawn by one compiled loop.

    Pieces drawn with the same keys and options are the text drawn at once, so they can
    be shown as they come; pieces of the same length are compiled once.

    Args:
        step: the model, `step(tokens, state) -> (logits, state)`.
        text: what to go on with.
        length: how many tokens to draw.
        key: one for each row, as `jax.random.split(key, rows)` gives them; the same for
            all pieces of a text, others for another text.
        temperature, top_k, top_p, min_p: as in `truncate`.
        repetition_penalty: of the tokens of the prompt and of those drawn, as in
            `penalize`.
        stop: the tokens that end a row, once it has drawn them one behind the other.
            Its state stays as they left it, for which every leaf of the state must lead
            with the rows. Without `stop` all rows go on, those that had stopped too.
        pad_id: what stands behind the end of a row.

    Raises:
        ValueError: `length` is below 1; there is not one key for each row; `stop` is
            empty or outside the vocabulary; `step` returns something else than logits
            and a state like the one before; an option is as `truncate` and `penalize`
            refuse it.

    >>> def fibonacci(tokens, before):
    ...     return jax.nn.one_hot((tokens + before) % 10, 10), tokens
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> text = prefill(fibonacci, jnp.array([0]), [[1, 1, 2]])
    >>> for _ in range(2):
    ...     tokens, lengths, text = decode(
    ...         fibonacci, text, 3, keys, temperature=0, stop=[8, 3], pad_id=-1
    ...     )
    ...     print(tokens.tolist(), lengths.tolist(), text.stopped.tolist())
    [[3, 5, 8]] [3] [False]
    [[3, -1, -1]] [1] [True]
    """
    rows, vocab = text.logits.shape
    length = check_min(1, length=length)
    key = keys_per_row(key, rows)
    if top_k is not None:
        check_top_k(top_k, vocab)
    options = {"temperature": temperature, "repetition_penalty": repetition_penalty}
    given = {"top_p": top_p, "min_p": min_p}
    options |= {k: v for k, v in given.items() if v is not None}
    options = {k: per_row(k, v, rows) for k, v in options.items()}
    ids = None
    if stop is not None:
        ids = as_int32(1, stop=stop)
        if not ids.size:
            raise ValueError("stop is empty: give at least one token, or None")
        check_within(0, vocab - 1, stop=concrete_or_none(ids))
    return _extend(
        *take_apart(step),
        _with_tail(text, 0 if ids is None else ids.size),
        key,
        options,
        ids,
        as_int32(0, pad_id=pad_id),
        length=length,
        top_k=top_k,
    )


def _with_tail(text: DecodeState, width: int) -> DecodeState:
    """With a tail that wide: all pieces of a text must have the same shapes."""
    rows, has = text.tail.shape
    if has == width:
        return text
    blank = np.full((rows, width), -1, np.int32)
    return text._replace(tail=jnp.concatenate([blank, text.tail], axis=1)[:, has:])


@functools.partial(jax.jit, static_argnames=("frame", "length", "top_k"))
def _extend(
    frame: Frame,
    arrays: Arrays,
    text: DecodeState,
    key: Key[Array, "b"],
    options: dict[str, Float[Array, "b"]],
    stop: Int[Array, "s"] | None,
    pad_id: Int[Array, ""],
    *,
    length: int,
    top_k: int | None,
) -> GenerateOutput:
    step = frame.fill(arrays)
    rows, vocab = text.logits.shape
    penalty = options.pop("repetition_penalty")
    spec = logits_spec(step, jnp.zeros(rows, jnp.int32), text.state)
    if (spec.shape, spec.dtype) != (text.logits.shape, text.logits.dtype):
        raise ValueError(
            f"step returns logits {spec.dtype}{[*spec.shape]}, but the text goes on "
            f"with {text.logits.dtype}{[*text.logits.shape]}"
        )
    times = jnp.arange(length, dtype=jnp.int32)
    # Beforehand, together: one by one they cost several times as much.
    uniforms = jax.vmap(_uniforms, in_axes=(None, 0))(
        key, times[:, None] + text.position[None]
    )
    ids = jnp.arange(vocab, dtype=jnp.int32)[None]

    def unfinished(carry):
        time, _, text = carry
        going = time < length
        # Devices that share the rows would meet at this at every step.
        return going if stop is None else going & ~text.stopped.all()

    def draw(carry):
        time, tokens, text = carry
        logits = penalize(text.logits, text.seen, penalty)
        token = sample_inverse_cdf(
            truncate(logits, top_k=top_k, **options), uniforms[time]
        )
        token = jnp.where(text.stopped, pad_id, token)
        logits, state = step(token, text.state)
        after = DecodeState(
            state=state,
            logits=logits,
            seen=text.seen | (ids == token[:, None]),
            tail=text.tail,
            stopped=text.stopped,
            position=text.position + 1,
        )
        if stop is not None:
            tail = jnp.concatenate([text.tail[:, 1:], token[:, None]], axis=1)
            stopped = (tail == stop[None]).all(axis=1)
            after = after._replace(tail=tail, stopped=stopped)
            after = select_rows(text.stopped, text, after)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, time, axis=0)
        return time + 1, tokens, after

    if stop is None:
        text = text._replace(stopped=jnp.zeros_like(text.stopped))
    padding = jnp.broadcast_to(pad_id, (length, rows))
    _, tokens, after = jax.lax.while_loop(
        unfinished, draw, (jnp.zeros((), jnp.int32), padding, text)
    )
    return GenerateOutput(tokens.T, after.position - text.position, after)


def _uniforms(key: Key[Array, "b"], position: Int[Array, "b"]) -> Float[Array, "b"]:
    return jax.vmap(jax.random.uniform)(jax.vmap(jax.random.fold_in)(key, position))
