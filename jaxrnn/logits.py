"""Sampling one token per row from logits.

Repetition penalty, temperature, top-k, top-p, min-p and the draw, in this order. Top-k
depends on the order of the logits alone, which temperature does not change; top-p and
min-p act on the probabilities after both, top-p on those renormalised over the top-k.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxrnn._jax_compat import concrete_or_none
from jaxrnn.types import accumulation_dtype

# One number, or one for each row.
PerRow: TypeAlias = Float[ArrayLike, ""] | Float[ArrayLike, "b"]

# Of each option: the condition on its values, and its wording in error messages.
_RANGES = {
    "temperature": (lambda x: (x >= 0) & (x < np.inf), "finite and at least 0"),
    "top_p": (lambda x: (x > 0) & (x <= 1), "above 0 and at most 1"),
    "min_p": (lambda x: (x >= 0) & (x <= 1), "from 0 to 1"),
    "repetition_penalty": (lambda x: (x > 0) & (x < np.inf), "finite and above 0"),
}


class Candidates(NamedTuple):
    """Token ids of each row and their probabilities; ruled out tokens have zero.

    >>> candidates = Candidates(jnp.array([[7, 5]]), jnp.array([[0.75, 0.25]]))
    >>> candidates.ids[0, candidates.probabilities[0].argmax()].item()
    7
    """

    ids: Int[Array, "b k"]
    probabilities: Float[Array, "b k"]


def penalize(
    logits: Float[Array, "b v"], seen: Bool[Array, "b v"], repetition_penalty: PerRow
) -> Float[Array, "b v"]:
    """Divides positive logits of seen tokens by the penalty, multiplies the others.

    A penalty above 1 makes the seen tokens less likely.

    Raises:
        ValueError: a shape does not fit; a concrete penalty is not finite and above 0.

    Reference: Keskar et al. (2019), "CTRL", section 4.1, which divides all logits: a
    negative one would become more likely.

    >>> logits, seen = jnp.array([[2.0, -2.0, 2.0]]), jnp.array([[True, True, False]])
    >>> penalize(logits, seen, 2.0).tolist()
    [[1.0, -4.0, 2.0]]
    """
    logits = _check_logits(logits)
    if np.shape(seen) != logits.shape:
        raise ValueError(f"seen has shape {np.shape(seen)}, the logits {logits.shape}")
    penalty = _column("repetition_penalty", repetition_penalty, logits)
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, penalized, logits)


def truncate(
    logits: Float[Array, "b v"],
    *,
    temperature: PerRow = 1.0,
    top_k: int | None = None,
    top_p: PerRow | None = None,
    min_p: PerRow | None = None,
) -> Candidates:
    """The distribution to draw from after temperature, top-k, top-p and min-p.

    Candidates are in descending order of probability with `top_k` or `top_p`, else in
    order of their ids. Ties are broken by the lower id. A row without a finite maximum
    (NaN, infinity, or all minus infinity) has probabilities of NaN. Only `top_p`
    without `top_k` sorts the whole vocabulary.

    Args:
        logits: of each token; minus infinity rules a token out.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: keeps exactly that many tokens.
        top_p: keeps the smallest set of the most likely tokens whose probabilities sum
            to at least this.
        min_p: keeps tokens at least this many times as likely as the most likely one.

    Raises:
        TypeError: `top_k` is no integer, or traced; another option is no number.
        ValueError: a shape does not fit; `top_k` is not from 1 to the size of the
            vocabulary; or a concrete value is out of range: `temperature` negative or
            not finite, `top_p` not above 0 and at most 1, `min_p` not from 0 to 1.

    Reference: Holtzman et al. (2020), "The curious case of neural text degeneration",
    section 3.1 (top-p); Nguyen et al. (2024), "Turning up the heat: min-p sampling".

    >>> logits = jnp.log(jnp.array([[0.125, 0.5, 0.125, 0.25]]))
    >>> ids, probabilities = truncate(logits, top_p=0.6)
    >>> ids.tolist(), (3 * probabilities).round(3).tolist()
    ([[1, 3, 0, 2]], [[2.0, 1.0, 0.0, 0.0]])
    """
    logits = _check_logits(logits)
    temperature = _column("temperature", temperature, logits)
    ids = jnp.broadcast_to(_positions(logits), logits.shape)
    if top_k is not None:
        check_top_k(top_k, logits.shape[-1])
        # `lax.top_k` orders zeros and NaNs by their sign bits.
        logits = jnp.where(logits == 0, 0, logits)
        logits = jnp.where(jnp.isnan(logits), jnp.nan, logits)
        # Do not slice the result: XLA would fuse the slice into its top-k pattern, no
        # longer recognise it, and sort the whole vocabulary.
        logits, ids = jax.lax.top_k(logits, int(top_k))
    elif top_p is not None:
        negative, ids = jax.lax.sort((-logits, ids), num_keys=1)
        logits = -negative

    scaled = logits - logits.max(axis=-1, keepdims=True)
    greedy = _positions(scaled) == _first(scaled == 0)
    ruled_out = scaled == -jnp.inf
    # XLA may multiply by the reciprocal, which is zero for a large temperature, and
    # 0 * -inf is NaN.
    scaled = jnp.where(ruled_out, 0, scaled)
    scaled = scaled / jnp.where(temperature > 0, temperature, 1)
    scaled = jnp.where(ruled_out, -jnp.inf, scaled)
    p = jnp.where(temperature > 0, jnp.exp(scaled), greedy.astype(scaled.dtype))
    if top_p is not None:
        top_p = _column("top_p", top_p, logits)
        cumulative = jnp.cumsum(p, axis=-1)
        # With 1 all are kept, the last ones too, which a rounded sum does not show.
        needed = jnp.where(top_p < 1, top_p * cumulative[:, -1:], jnp.inf)
        p = jnp.where(_positions(p) <= _first(cumulative >= needed), p, 0)
    if min_p is not None:
        # Not normalised yet: the most likely token has 1.
        p = jnp.where(p < _column("min_p", min_p, logits), 0, p)
    return Candidates(ids, p / p.sum(axis=-1, keepdims=True))


def sample(
    logits: Float[Array, "b v"],
    key: Key[Array, "b"],
    *,
    temperature: PerRow = 1.0,
    top_k: int | None = None,
    top_p: PerRow | None = None,
    min_p: PerRow | None = None,
) -> Int[Array, "b"]:
    """One token per row, drawn with the row's own key; -1 where logits are invalid.

    The options are those of `truncate`, the draw is `sample_inverse_cdf`.

    Raises:
        ValueError: as `truncate`, or there is not one key for each row.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> logits = jnp.array([[0.0, 5.0, 1.0], [9.0, 0.0, 9.0]])
    >>> sample(logits, keys, temperature=0).tolist()
    [1, 0]
    """
    candidates = truncate(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    key = keys_per_row(key, rows=candidates.ids.shape[0])
    return sample_inverse_cdf(candidates, jax.vmap(jax.random.uniform)(key))


def sample_inverse_cdf(
    candidates: Candidates, uniform: Float[Array, "b"]
) -> Int[Array, "b"]:
    """Inverse transform sampling: one uniform number from [0, 1) per row.

    Returns the first candidate whose cumulative probability exceeds `uniform`; -1 where
    probabilities are NaN. `jax.random.categorical` draws Gumbel noise for every token,
    which on a CPU costs more than the rest of the step. With either, float32 cannot
    resolve probabilities below 1e-7.

    Raises:
        ValueError: there is not one number for each row.

    >>> candidates = Candidates(jnp.array([[7, 5]]), jnp.array([[0.75, 0.25]]))
    >>> [sample_inverse_cdf(candidates, jnp.array([u])).item() for u in (0.0, 0.7, 0.8)]
    [7, 7, 5]
    """
    ids, p = candidates
    if np.shape(uniform) != ids.shape[:1]:
        raise ValueError(
            f"uniform must be a number for each of {ids.shape[0]} rows, "
            f"got shape {np.shape(uniform)}"
        )
    cumulative = jnp.cumsum(p, axis=-1)
    # The last candidate whose interval begins at or below the number: however the sums
    # are rounded there is one, and its probability is not zero.
    below = cumulative - p <= uniform.astype(p.dtype)[:, None] * cumulative[:, -1:]
    index = jnp.where(below & (p > 0), _positions(p), -1).max(axis=-1, keepdims=True)
    return jnp.where(_positions(p) == index, ids, -1).max(axis=-1)


def per_row(name: str, value: PerRow, rows: int) -> Float[ArrayLike, "b"]:
    """The option called `name` broadcast to the rows, its range checked if concrete."""
    is_valid, requirement = _RANGES[name]
    if np.shape(value) not in ((), (rows,)):
        raise ValueError(
            f"{name} must be one number or one for each of {rows} rows, "
            f"got shape {np.shape(value)}"
        )
    concrete = concrete_or_none(value)
    if concrete is None:
        return jnp.broadcast_to(jnp.asarray(value).astype(float), (rows,))
    if concrete.dtype.kind not in "biuf" and concrete.dtype != jnp.bfloat16:
        raise TypeError(f"{name} must be a number, got {value!r}")
    with np.errstate(over="ignore"):
        concrete = concrete.astype(jnp.result_type(float))
    invalid = concrete[~is_valid(concrete)]
    if invalid.size:
        raise ValueError(f"{name} must be {requirement}, got {invalid.ravel()[0]}")
    return np.broadcast_to(concrete, (rows,))


def keys_per_row(key: Key[ArrayLike, "b"], rows: int) -> Key[Array, "b"]:
    """The keys as one array, of one key per row; they may come in a list."""
    key = jnp.asarray(key)
    is_key = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape != (rows,):
        raise ValueError(
            f"key must hold a key for each row, jax.random.split(key, {rows}) of a "
            f"jax.random.key, got {key.dtype} of shape {key.shape}"
        )
    return key


def check_top_k(top_k: int, vocab_size: int) -> None:
    """Raises unless `top_k`, which decides a shape, is a static integer in range."""
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer):
        raise TypeError(f"top_k must be an integer that is not traced, got {top_k!r}")
    if not 1 <= top_k <= vocab_size:
        raise ValueError(
            f"top_k must be from 1 to the {vocab_size} tokens, got {top_k}"
        )


def _column(
    name: str, value: PerRow, logits: Float[Array, "b v"]
) -> Float[Array, "b 1"]:
    values = jnp.asarray(per_row(name, value, logits.shape[0]))
    return values.astype(logits.dtype)[:, None]


def _check_logits(logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
    logits = jnp.asarray(logits)
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"logits must be floating point of shape [rows, vocabulary], "
            f"got {logits.dtype} of shape {logits.shape}"
        )
    return logits.astype(accumulation_dtype(logits.dtype))


def _first(mask: Bool[Array, "b v"]) -> Int[Array, "b 1"]:
    """Index of each row's first True, v if none; on CPUs faster than argmax."""
    positions = jnp.where(mask, _positions(mask), mask.shape[-1])
    return positions.min(axis=-1, keepdims=True)


def _positions(array: Array) -> Int[Array, "1 v"]:
    return jnp.arange(array.shape[-1], dtype=jnp.int32)[None]
