"""The choice of one token for each row, from logits: repetition penalty, temperature,
top-k, top-p and min-p, and the draw from what they leave.

They act in this order, the usual one. The penalty is about logits as the model gave
them; temperature scales what it left. Top-k asks only for the order, which temperature
does not change; top-p and min-p ask for probabilities, so they come behind both, and
top-p's share is of what top-k left.
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

# What the values of an option must fulfil, and how to say so.
_RANGES = {
    "temperature": (lambda x: (x >= 0) & (x < np.inf), "finite and at least 0"),
    "top_p": (lambda x: (x > 0) & (x <= 1), "above 0 and at most 1"),
    "min_p": (lambda x: (x >= 0) & (x <= 1), "from 0 to 1"),
    "repetition_penalty": (lambda x: (x > 0) & (x < np.inf), "finite and above 0"),
}


class Candidates(NamedTuple):
    """The tokens that may be drawn from each row, among others of probability zero.

    >>> candidates = Candidates(jnp.array([[7, 5]]), jnp.array([[0.75, 0.25]]))
    >>> candidates.ids[0, candidates.probabilities[0].argmax()].item()
    7
    """

    ids: Int[Array, "b k"]
    probabilities: Float[Array, "b k"]


def penalize(
    logits: Float[Array, "b v"],
    seen: Bool[Array, "b v"],
    repetition_penalty: PerRow,
) -> Float[Array, "b v"]:
    """The logits, with those of the seen tokens divided by the penalty where they are
    positive and multiplied by it elsewhere: above 1 it makes them less likely.

    Raises:
        ValueError: a shape does not fit; the penalty is known and not above 0 or not
            finite.

    Reference: Keskar et al. (2019), "CTRL", section 4.1, with the sign of the logits
    minded: dividing a negative one would make its token likelier.

    >>> logits, seen = jnp.array([[2.0, -2.0, 2.0]]), jnp.array([[True, True, False]])
    >>> penalize(logits, seen, 2.0).tolist()
    [[1.0, -4.0, 2.0]]
    """
    logits = _rows_of_logits(logits)
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
    """The candidates: with `top_k` or `top_p` the likeliest first, else by their ids.

    A row without a greatest finite logit (NaN, infinity, or all minus infinity) has
    probabilities of NaN.

    Args:
        logits: of each token; minus infinity rules it out.
        temperature: divides the logits; 0 leaves only the likeliest token.
        top_k: leaves that many tokens, exactly.
        top_p: leaves the fewest of the likeliest whose probabilities reach this sum:
            the one that crosses it too.
        min_p: leaves the tokens at least this many times as likely as the likeliest.

    Equally likely tokens rank by their ids. Only `top_p` without `top_k` sorts the
    whole vocabulary.

    Raises:
        ValueError: a shape does not fit; `top_k` is not from 1 to the size of the
            vocabulary; or a value is known and out of range: `temperature` negative or
            not finite, `top_p` not above 0 and at most 1, `min_p` not from 0 to 1.

    Reference: Holtzman et al. (2020), "The curious case of neural text degeneration",
    section 3.1 (top-p); Nguyen et al. (2024), "Turning up the heat: min-p sampling".

    >>> logits = jnp.log(jnp.array([[0.125, 0.5, 0.125, 0.25]]))
    >>> ids, probabilities = truncate(logits, top_p=0.6)
    >>> ids.tolist(), (3 * probabilities).round(3).tolist()
    ([[1, 3, 0, 2]], [[2.0, 1.0, 0.0, 0.0]])
    """
    logits = _rows_of_logits(logits)
    temperature = _column("temperature", temperature, logits)
    ids = jnp.broadcast_to(_places(logits), logits.shape)
    if top_k is not None:
        check_top_k(top_k, logits.shape[-1])
        # It tells zeros and NaN apart by their signs.
        logits = jnp.where(logits == 0, 0, logits)
        logits = jnp.where(jnp.isnan(logits), jnp.nan, logits)
        # No column may be cut out of the result: XLA would merge that into the top-k,
        # no longer know it for one, and sort the whole vocabulary.
        logits, ids = jax.lax.top_k(logits, int(top_k))
    elif top_p is not None:
        negative, ids = jax.lax.sort((-logits, ids), num_keys=1)
        logits = -negative

    scaled = logits - logits.max(axis=-1, keepdims=True)
    likeliest = _places(scaled) == _first(scaled == 0)
    scaled = scaled / jnp.where(temperature > 0, temperature, 1)
    odds = jnp.where(temperature > 0, jnp.exp(scaled), likeliest.astype(scaled.dtype))
    if top_p is not None:
        top_p = _column("top_p", top_p, logits)
        reached = jnp.cumsum(odds, axis=-1)
        # 1 keeps all, also the last ones, which do not add to a rounded sum.
        wanted = jnp.where(top_p < 1, top_p * reached[:, -1:], jnp.inf)
        odds = jnp.where(_places(odds) <= _first(reached >= wanted), odds, 0)
    if min_p is not None:
        # The likeliest has odds of 1.
        odds = jnp.where(odds < _column("min_p", min_p, logits), 0, odds)
    return Candidates(ids, odds / odds.sum(axis=-1, keepdims=True))


def sample(
    logits: Float[Array, "b v"],
    key: Key[Array, "b"],
    *,
    temperature: PerRow = 1.0,
    top_k: int | None = None,
    top_p: PerRow | None = None,
    min_p: PerRow | None = None,
) -> Int[Array, "b"]:
    """One token for each row, with the row's own key; the options as in `truncate`.

    As `sample_inverse_cdf`, so -1 where the logits are no distribution.

    Raises:
        ValueError: as `truncate`, or if there is not one key for each row.

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
    """The candidate at which the sum of the probabilities passes `uniform`, a number
    from 0 to 1 for each row; -1 where they are NaN.

    So a draw takes one random number; Gumbel noise would take one for each token, which
    on a CPU costs more than all the rest. With either, probabilities below 1e-7 drown
    in float32.

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
    reached = jnp.cumsum(p, axis=-1)
    # Of those that begin at the number or below, the last. However the sums are
    # rounded, there is one, and it has not probability zero.
    begun = reached - p <= uniform.astype(p.dtype)[:, None] * reached[:, -1:]
    place = jnp.where(begun & (p > 0), _places(p), -1).max(axis=-1, keepdims=True)
    return jnp.where(_places(p) == place, ids, -1).max(axis=-1)


def per_row(name: str, value: PerRow, rows: int) -> Float[ArrayLike, "b"]:
    """The option called `name`, one number for each row.

    Raises:
        ValueError: it is neither one number nor `rows` of them, or out of range where
            its values are known.

    >>> per_row("temperature", 0.5, rows=2).tolist()
    [0.5, 0.5]
    """
    within, requirement = _RANGES[name]
    if np.shape(value) not in ((), (rows,)):
        raise ValueError(
            f"{name} must be one number or one for each of {rows} rows, "
            f"got shape {np.shape(value)}"
        )
    given = concrete_or_none(value)
    if given is None:
        return jnp.broadcast_to(jnp.asarray(value).astype(float), (rows,))
    if given.dtype.kind not in "biuf" and given.dtype != jnp.bfloat16:
        raise TypeError(f"{name} must be a number, got {value!r}")
    with np.errstate(over="ignore"):
        given = given.astype(jnp.result_type(float))
    if not within(given).all():
        wrong = given[~within(given)].ravel()[0]
        raise ValueError(f"{name} must be {requirement}, got {wrong}")
    return np.broadcast_to(given, (rows,))


def keys_per_row(key: Key[ArrayLike, "b"], rows: int) -> Key[Array, "b"]:
    """The keys, one for each row; a list of them will do.

    Raises:
        ValueError: they are something else, with what that is.

    >>> keys_per_row([jax.random.key(0), jax.random.key(1)], rows=2).shape
    (2,)
    """
    key = jnp.asarray(key)
    is_key = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape != (rows,):
        raise ValueError(
            f"key must hold a key for each row, jax.random.split(key, {rows}) of a "
            f"jax.random.key, got {key.dtype} of shape {key.shape}"
        )
    return key


def check_top_k(top_k: int, vocab: int) -> None:
    """Refuses what is no number of tokens, of so many.

    Raises:
        TypeError: it is not an integer, or a tracer: it decides a shape.
        ValueError: it is not from 1 to `vocab`.

    >>> check_top_k(3, vocab=5)
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer):
        raise TypeError(f"top_k must be an integer that is no tracer, got {top_k!r}")
    if not 1 <= top_k <= vocab:
        raise ValueError(f"top_k must be from 1 to the {vocab} tokens, got {top_k}")


def _column(
    name: str, value: PerRow, logits: Float[Array, "b v"]
) -> Float[Array, "b 1"]:
    values = jnp.asarray(per_row(name, value, logits.shape[0]))
    return values.astype(logits.dtype)[:, None]


def _rows_of_logits(logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
    logits = jnp.asarray(logits)
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"logits must be floating point of shape [rows, vocabulary], "
            f"got {logits.dtype} of shape {logits.shape}"
        )
    return logits.astype(accumulation_dtype(logits.dtype))


def _first(mask: Bool[Array, "b v"]) -> Int[Array, "b 1"]:
    """Where each row is first true, v where nowhere. Faster on CPUs than argmax."""
    places = jnp.where(mask, _places(mask), mask.shape[-1])
    return places.min(axis=-1, keepdims=True)


def _places(array: Array) -> Int[Array, "1 v"]:
    return jnp.arange(array.shape[-1], dtype=jnp.int32)[None]
