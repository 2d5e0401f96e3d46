"""Ragged sequences: which steps of a padded row hold data, and whose data it is.

Segment ids are the one ragged concept of the library: an integer for each step, 0 at
padding and 1, 2, ... for the sequences that share the row, in this order. Lengths and
boolean masks are special cases and convert to them. Padding may stand anywhere: before,
after or between sequences, or inside one (a hole: the sequence goes on behind it, as
long as the id is the same on both sides).

This file knows nothing about cells, layers or tokens; of a state, that it leads with
the rows.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrnn._jax_compat import concrete_or_none
from jaxrnn._validation import check_min, check_shape
from jaxrnn.types import Array, Bool, Float, Int, State, accumulation_dtype

Pooling = Literal["first", "last", "mean", "max"]


def from_lengths(lengths: Int[ArrayLike, "*b"], time: int) -> Int[Array, "*b t"]:
    """Segment ids of rows that hold one sequence each, padded at the end.

    Lengths outside 0 to `time` raise where their values are known; under `jax.jit`
    they are not, and a longer one means a full row, a negative one an empty row.

    Raises:
        ValueError: if a length is not an integer, negative or above `time`.

    >>> from_lengths(jnp.array([3, 0]), time=4).tolist()
    [[1, 1, 1, 0], [0, 0, 0, 0]]
    """
    (time,) = check_shape(time=(time,))
    _check_integers("lengths", lengths)
    values = concrete_or_none(lengths)
    if values is not None and values.size:
        shortest, longest = values.min(), values.max()
        if shortest < 0:
            raise ValueError(f"a length is negative: {shortest}")
        if longest > time:
            raise ValueError(f"length {longest} is above the {time} steps of the row")
    lengths = jnp.asarray(lengths).astype(jnp.int32)
    steps = _count((*lengths.shape, time), axis=-1)
    return (steps < lengths[..., None]).astype(jnp.int32)


def from_mask(mask: Bool[ArrayLike, "*b t"]) -> Int[Array, "*b t"]:
    """Segment ids of rows that hold one sequence each, where `mask` is True.

    Raises:
        ValueError: if `mask` is not boolean.

    >>> from_mask(jnp.array([False, True, False, True])).tolist()
    [0, 1, 0, 1]
    """
    return _require_flags("mask", mask).astype(jnp.int32)


def from_resets(
    resets: Bool[ArrayLike, "*b t"],
    state: State | None = None,
    fresh_state: State | None = None,
) -> tuple[Int[Array, "*b t"], State | None]:
    """Segment ids and a state for rows with flags of where a new sequence begins.

    The state is `state`, but fresh in the rows that begin with a reset. A layer that is
    given both returns what `step` does with a fresh state before each step that resets.

    This is the convention of reinforcement learning in which a flag belongs to the
    observation beside it: "this is the first one of an episode" (`is_first`, of dm_env;
    the `done` that a rollout stores before it acts). `from_dones` has the other one.

    Args:
        resets: boolean; a row that does not begin with one goes on.
        state: what the last call of the layer returned; None for a fresh one.
        fresh_state: `layer.initial_state(...)`, of which rows are taken; zeros if None.
            Needed for layers that start from something else, as with a learned initial
            state.

    Raises:
        ValueError: `resets` is not boolean, or its rows are not those of `state`.

    >>> state = (jnp.array([[3.0], [4.0]]),)
    >>> ids, (h,) = from_resets(jnp.array([[False, True], [True, False]]), state)
    >>> ids.tolist(), h.tolist()
    ([[1, 2], [1, 1]], [[3.0], [0.0]])
    """
    resets = _require_flags("resets", resets)
    later = resets.at[..., :1].set(False)
    # The state is that of the sequence with the lowest id of the row.
    ids = 1 + jnp.cumsum(later, axis=-1, dtype=jnp.int32)
    begins = resets[..., :1].any(axis=-1)  # of no steps, nothing

    def fresh_rows(leaf: Array, fresh: Array) -> Array:
        if leaf.shape[: begins.ndim] != begins.shape:
            raise ValueError(
                f"resets has rows {begins.shape}, but the state has shape {leaf.shape}"
            )
        rows = jnp.expand_dims(begins, range(begins.ndim, leaf.ndim))
        return jnp.where(rows, fresh, leaf)

    if state is None:
        return ids, None
    if fresh_state is None:
        fresh_state = jax.tree.map(jnp.zeros_like, state)
    return ids, jax.tree.map(fresh_rows, state, fresh_state)


def from_dones(
    dones: Bool[ArrayLike, "*b t"],
    state: State | None = None,
    fresh_state: State | None = None,
    *,
    done_before: Bool[ArrayLike, "*b"] | None = None,
) -> tuple[Int[Array, "*b t"], State | None]:
    """Like `from_resets`, for flags of where a sequence ended.

    The next one begins at the step after it.

    This is the convention of reinforcement learning in which a flag is what the
    environment returned for the action of this step: "the episode is over" (`done`, or
    `terminated | truncated`, of Gym and Gymnasium).

    Args:
        dones: boolean.
        state: as in `from_resets`.
        fresh_state: as in `from_resets`.
        done_before: the flags of the step before the first one, `dones[..., -1]` of the
            last call: where they are true, the carried state is of another episode.
            None if the state is known to be of this one.

    Raises:
        ValueError: as `from_resets`; `done_before` has not one flag for each row.

    >>> ids, _ = from_dones(jnp.array([[False, True, False], [False, False, True]]))
    >>> ids.tolist()
    [[1, 1, 2], [1, 1, 1]]
    >>> state, before = (jnp.array([[3.0]]),), jnp.array([True])
    >>> from_dones(jnp.array([[False]]), state, done_before=before)[1][0].tolist()
    [[0.0]]
    """
    dones = _require_flags("dones", dones)
    rows = dones.shape[:-1]
    if done_before is None:
        done_before = jnp.zeros(rows, bool)
    done_before = _require_flags("done_before", done_before)
    if done_before.shape != rows:
        raise ValueError(
            f"done_before has shape {done_before.shape}, but the rows of dones {rows}"
        )
    resets = jnp.concatenate([done_before[..., None], dones[..., :-1]], axis=-1)
    return from_resets(resets[..., : dones.shape[-1]], state, fresh_state)


def _require_flags(name: str, flags: Bool[ArrayLike, "..."]) -> Bool[Array, "..."]:
    flags = jnp.asarray(flags)
    if flags.dtype != jnp.bool_:
        raise ValueError(f"{name} must be boolean, got {flags.dtype}: give {name} != 0")
    return flags


def lengths(segment_ids: Int[Array, "*b t"], num_segments: int) -> Int[Array, "*b s"]:
    """The number of steps of the sequences 1 to `num_segments` of each row.

    >>> lengths(jnp.array([1, 1, 1, 2, 0]), num_segments=3).tolist()
    [3, 1, 0]
    """
    num_segments = check_min(1, num_segments=num_segments)
    _check_integers("segment_ids", segment_ids)
    ones = jnp.ones(np.shape(segment_ids), jnp.int32)
    return _reduce(jax.ops.segment_sum, ones, segment_ids, num_segments)


def starts(
    segment_ids: Int[Array, "*b t"], *, reverse: bool = False
) -> Bool[Array, "*b t"]:
    """The first step of every sequence in reading order, where the state is reset.

    Padding inside a sequence does not end it.

    >>> starts(jnp.array([1, 1, 0, 1, 2, 2])).tolist()
    [True, False, False, False, True, False]
    >>> starts(jnp.array([1, 1, 0, 1, 2, 2]), reverse=True).tolist()
    [False, False, False, True, False, True]
    """
    _check_integers("segment_ids", segment_ids)
    segment_ids = jnp.asarray(segment_ids)
    if reverse:
        # From behind ids fall; counted down from the greatest number they rise.
        greatest = jnp.iinfo(segment_ids.dtype).max
        risen = jnp.where(segment_ids > 0, greatest - (segment_ids - 1), 0)
        return jnp.flip(starts(jnp.flip(risen, axis=-1)), axis=-1)
    seen = jax.lax.cummax(segment_ids, axis=segment_ids.ndim - 1)
    none = jnp.zeros_like(segment_ids[..., :1])
    return segment_ids > jnp.concatenate([none, seen[..., :-1]], axis=-1)


def first(segment_ids: Int[Array, "*b t"]) -> Bool[Array, "*b t"]:
    """The steps of the first sequence of each row.

    >>> first(jnp.array([0, 1, 0, 1, 2])).tolist()
    [False, True, False, True, False]
    """
    _check_integers("segment_ids", segment_ids)
    segment_ids = jnp.asarray(segment_ids)
    valid = segment_ids > 0
    greatest = jnp.iinfo(segment_ids.dtype).max
    lowest = jnp.where(valid, segment_ids, greatest).min(
        axis=-1, keepdims=True, initial=greatest
    )
    return valid & (segment_ids == lowest)


def pool(
    x: Float[Array, "*b t h"],
    segment_ids: Int[Array, "*b t"],
    how: Pooling = "mean",
    num_segments: int = 1,
) -> Float[Array, "*b s h"]:
    """One vector for each of the sequences 1 to `num_segments` of a row.

    It is the first or last step, or the mean or maximum over the steps. Padding is not
    read, whatever it holds; a sequence of no steps gives zeros.

    Raises:
        ValueError: if `how` is none of the four, or an id is above `num_segments`
            (where ids are known: not under `jax.jit`).

    >>> x = jnp.array([[1.0], [5.0], [3.0], [7.0], [jnp.nan]])
    >>> pool(x, jnp.array([1, 1, 1, 2, 0]), "mean", num_segments=3).tolist()
    [[3.0], [7.0], [0.0]]
    """
    if how not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {[*get_args(Pooling)]}, got {how!r}")
    num_segments = check_min(1, num_segments=num_segments)
    _check_integers("segment_ids", segment_ids)
    if np.shape(segment_ids) != x.shape[:-1]:
        raise ValueError(
            f"segment_ids has shape {np.shape(segment_ids)}, "
            f"but batch and time of x are {x.shape[:-1]}"
        )
    values = concrete_or_none(segment_ids)
    if values is not None and values.size and values.max() > num_segments:
        raise ValueError(
            f"segment id {values.max()} is above num_segments = {num_segments}"
        )
    if x.shape[-2] == 0:
        return jnp.zeros((*x.shape[:-2], num_segments, x.shape[-1]), x.dtype)

    steps = lengths(segment_ids, num_segments)
    pooled = _pooled(x, segment_ids, how, steps)
    return jnp.where(steps[..., None] > 0, pooled, 0)


def _pooled(
    x: Float[Array, "*b t h"],
    segment_ids: Int[Array, "*b t"],
    how: str,
    steps: Int[Array, "*b s"],
) -> Float[Array, "*b s h"]:
    """What `pool` returns, given the lengths; undefined where they are 0."""
    number = steps.shape[-1]
    if how == "max":
        return _reduce(jax.ops.segment_max, x, segment_ids, number)
    if how == "mean":
        # Half precision can neither count nor add up a long sequence.
        values = x.astype(accumulation_dtype(x.dtype))
        total = _reduce(jax.ops.segment_sum, values, segment_ids, number)
        steps = jnp.maximum(steps, 1)[..., None].astype(values.dtype)
        return (total / steps).astype(x.dtype)
    nearest = {"first": jax.ops.segment_min, "last": jax.ops.segment_max}[how]
    step = _reduce(nearest, _count(x.shape[:-1], axis=-1), segment_ids, number)
    return jnp.take_along_axis(x, step[..., None], axis=-2, mode="clip")


def _reduce(
    reduction: Callable, values: Array, segment_ids: Int[Array, "*b t"], number: int
) -> Array:
    """The values `[*b, t, ...]`, reduced by sequence to `[*b, s, ...]` in one pass.

    With a mask for each sequence rows of nine took fifty times as long on a CPU.
    """
    ids = jnp.asarray(segment_ids).astype(jnp.int32)
    # Padding's are left out: as are all behind the last place.
    places = jnp.where(ids > 0, ids - 1, number)
    reduce = functools.partial(reduction, num_segments=number)
    for _ in range(ids.ndim - 1):
        reduce = jax.vmap(reduce)
    return reduce(values, places)


def resolve(
    shape: Sequence[int],
    lengths: Int[ArrayLike, "*b"] | None,
    segment_ids: Int[ArrayLike, "*b t"] | None,
) -> Int[Array, "*b t"] | None:
    """The segment ids of rows of `shape` `(*b, t)`, from either argument.

    None, which says that nothing is padded, if both are None.

    Raises:
        ValueError: if both are given, or one is of the wrong shape or dtype; of the
            wrong range or order where values are known. Under `jax.jit` they are not:
            lengths are as in `from_lengths`, a negative id is padding, and a step whose
            id is out of order goes on with the sequence read before it.

    >>> resolve((2, 3), lengths=jnp.array([1, 3]), segment_ids=None).tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    *batch, time = shape
    if lengths is not None and segment_ids is not None:
        raise ValueError("pass lengths or segment_ids, not both")
    if lengths is not None:
        if np.shape(lengths) != tuple(batch):
            raise ValueError(
                f"lengths has shape {np.shape(lengths)}, but the batch {tuple(batch)}"
            )
        return from_lengths(lengths, time)
    if segment_ids is None:
        return None
    _check_integers("segment_ids", segment_ids)
    if np.shape(segment_ids) != tuple(shape):
        raise ValueError(
            f"segment_ids has shape {np.shape(segment_ids)}, "
            f"but batch and time are {tuple(shape)}"
        )
    values = concrete_or_none(segment_ids)
    if values is not None and values.size:
        if values.min() < 0:
            raise ValueError(f"a segment id is negative: {values.min()}")
        if values.max() > np.iinfo(np.int32).max:
            raise ValueError(f"a segment id is above 32 bits: {values.max()}")
        falls = (values > 0) & (values < np.maximum.accumulate(values, axis=-1))
        if falls.any():
            raise ValueError(
                f"segment ids must rise along a row, but {values[falls][0]} stands "
                "behind a greater one"
            )
    return jnp.asarray(segment_ids).astype(jnp.int32)


def _count(shape: Sequence[int], axis: int) -> Int[Array, "..."]:
    """0, 1, 2, ... along one axis of an array of that shape."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) + axis)


def _check_integers(name: str, values: ArrayLike) -> None:
    dtype = getattr(values, "dtype", None) or np.asarray(values).dtype
    if np.size(values) and not jnp.issubdtype(dtype, jnp.integer):
        hint = "; convert it with segments.from_mask" if dtype == jnp.bool_ else ""
        raise ValueError(f"{name} must be integers, got {dtype}{hint}")
