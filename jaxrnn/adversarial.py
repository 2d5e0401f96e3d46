"""Adversarial and virtual adversarial perturbations of embeddings.

Miyato, Dai and Goodfellow (2017), "Adversarial training methods for semi-supervised
text classification". A classifier is trained on inputs that are moved, within a small
distance, to where its loss is greatest. Words cannot be moved, but their embeddings
can. Without labels the loss is how much the prediction changes (virtual adversarial
training; Miyato et al., 2018, arXiv:1704.03976).

The functions take the loss or the logits as functions of the embedded inputs, so they
work with any model, of Flax or not. Of each sequence the perturbation has the norm
`epsilon` over all of its steps and features; at padding it is zero, whatever the
embeddings hold there. Both perturbations are constants to the derivative: differentiate
the loss with them with respect to the parameters only.

A model could make all perturbations small beside its embeddings by letting these grow,
which is why the paper normalizes them: `normalize_embeddings`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrnn._validation import check_min, check_scalar
from jaxrnn.types import Array, Bool, Float, accumulation_dtype


def normalize_embeddings(
    table: Float[Array, "v d"], frequencies: Float[ArrayLike, "v"]
) -> Float[Array, "v d"]:
    """The embeddings with mean 0 and variance 1 of each feature over all words.

    Words count by their frequency in the training texts.

    Args:
        table: a row for each word.
        frequencies: of the words, in any unit: they are divided by their sum.

    Raises:
        ValueError: there is not one frequency for each word.

    Reference: Miyato, Dai and Goodfellow (2017), equation 1.

    >>> normalize_embeddings(jnp.array([[1.0], [5.0]]), jnp.array([1, 1])).tolist()
    [[-1.0], [1.0]]
    """
    table, frequencies = jnp.asarray(table), jnp.asarray(frequencies)
    if frequencies.shape != table.shape[:1]:
        raise ValueError(
            f"frequencies have shape {frequencies.shape}, but the table has "
            f"{table.shape[0]} words"
        )
    dtype = accumulation_dtype(table.dtype)
    x, shares = table.astype(dtype), frequencies.astype(dtype)[:, None]
    shares = shares / shares.sum()
    centred = x - (shares * x).sum(axis=0, keepdims=True)
    variance = (shares * centred**2).sum(axis=0, keepdims=True)
    # A feature that is the same for all words has the variance of its rounding errors.
    rounding = jnp.finfo(dtype).eps * jnp.abs(x).max(axis=0, keepdims=True)
    varies = variance > (4 * rounding) ** 2
    scale = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1)), 0)
    return (centred * scale).astype(table.dtype)


def adversarial_perturbation(
    loss: Callable[[Float[Array, "*b t d"]], Float[Array, ""]],
    x: Float[Array, "*b t d"],
    epsilon: float,
    valid: Bool[ArrayLike, "*b t"] | None = None,
) -> Float[Array, "*b t d"]:
    """The perturbation of each sequence in the direction in which the loss grows most.

    It is `epsilon` times the normalized gradient of the loss, and zero at padding and
    for a sequence on which the loss does not depend.

    Args:
        loss: the sum over a batch as a function of its embedded inputs; it may contain
            random numbers, if they are the same in each call.
        x: the embedded inputs.
        epsilon: the norm of the perturbation of a sequence.
        valid: which steps are not padding; None if all.

    Raises:
        ValueError: `epsilon` is not finite or below 0; `x` has no axis of time and of
            features; `valid` is not boolean or not of the shape of the steps.

    Reference: Miyato, Dai and Goodfellow (2017), equations 5 and 6.

    >>> x = jnp.ones((1, 2, 2))
    >>> weights = jnp.array([3.0, 4.0])
    >>> r = adversarial_perturbation(
    ...     lambda x: (x @ weights).sum(), x, 1.0, valid=jnp.array([[True, False]])
    ... )
    >>> bool(jnp.allclose(r, jnp.array([[[0.6, 0.8], [0.0, 0.0]]])))
    True
    """
    x, valid = _checked(x, valid)
    x = jax.lax.stop_gradient(x)
    gradient = jax.grad(_constant_but_for_input(loss, x))(x)
    return jax.lax.stop_gradient(_epsilon(epsilon) * _unit(gradient, valid))


def virtual_adversarial_perturbation(
    logits: Callable[[Float[Array, "*b t d"]], Float[Array, "*s c"]],
    x: Float[Array, "*b t d"],
    epsilon: float,
    key: Array,
    valid: Bool[ArrayLike, "*b t"] | None = None,
    *,
    reference: Float[Array, "*s c"] | None = None,
    xi: float = 0.1,
    num_iterations: int = 1,
) -> Float[Array, "*b t d"]:
    """The perturbation of each sequence that changes the prediction most.

    It is `epsilon` times the dominant eigenvector of the Hessian of the divergence
    between the predictions without and with a perturbation, at none, by the power
    method: each iteration is a gradient at a distance of `xi`. It needs no labels.

    Args:
        logits: of the classes on the last axis, as a function of the embedded inputs;
            of two classes with one logit, the logits of both: `two_class_logits`.
        x: the embedded inputs.
        epsilon: the norm of the perturbation of a sequence.
        key: of the random direction that the first iteration starts from.
        valid: which steps are not padding; None if all.
        reference: `logits(x)`, if it is known already.
        xi: the distance at which gradients are taken. The smaller the closer they are
            to the Hessian's product; too small a one is lost in rounding.
        num_iterations: how many of them; the paper has one.

    Raises:
        ValueError: as `adversarial_perturbation`; `xi` is not above 0 and finite, or
            there are fewer iterations than 1.

    Reference: Miyato, Dai and Goodfellow (2017), equations 7 and 8; Miyato et al.
    (2018), algorithm 1.

    >>> def logits(x):
    ...     return (x * jnp.array([[[3.0, 0.0], [0.0, 0.0]]])).sum(axis=1)
    >>> r = virtual_adversarial_perturbation(
    ...     logits, jnp.zeros((1, 2, 2)), 1.0, jax.random.key(0)
    ... )
    >>> jnp.abs(r).round(4).tolist()  # only one number changes the logits
    [[[1.0, 0.0], [0.0, 0.0]]]
    """
    x, valid = _checked(x, valid)
    xi = check_scalar(xi=xi)
    if not 0 < xi < float("inf"):
        raise ValueError(f"xi must be above 0 and finite, got {xi}")
    check_min(1, num_iterations=num_iterations)
    x = jax.lax.stop_gradient(x)
    logits = _constant_but_for_input(logits, x)
    if reference is None:
        reference = logits(x)
    reference = jax.lax.stop_gradient(reference)

    def divergence(direction: Array) -> Array:
        return kl_divergence(reference, logits(x + direction)).sum()

    direction = _unit(jax.random.normal(key, x.shape, x.dtype), valid)
    for _ in range(num_iterations):
        direction = _unit(jax.grad(divergence)(xi * direction), valid)
    return jax.lax.stop_gradient(_epsilon(epsilon) * direction)


def kl_divergence(
    reference: Float[Array, "*b c"], logits: Float[Array, "*b c"]
) -> Float[Array, "*b"]:
    """The divergence of two predictions in nats, by their logits; not reduced.

    No gradient reaches the reference, as in virtual adversarial training.

    Raises:
        ValueError: the shapes differ, or there is no axis of classes.

    >>> kl_divergence(jnp.array([0.0, 0.0]), jnp.array([0.0, 0.0]))
    Array(0., dtype=float32)
    """
    if reference.shape != logits.shape or not logits.ndim:
        raise ValueError(
            f"reference and logits must have the same shape and an axis of classes, "
            f"got {reference.shape} and {logits.shape}"
        )
    p = _log_probabilities(jax.lax.stop_gradient(reference))
    q = _log_probabilities(logits)
    # A class that is ruled out, of log probability -inf, adds nothing.
    possible = p > -jnp.inf
    difference = jnp.where(possible, p, 0) - jnp.where(possible, q, 0)
    return (jnp.exp(p) * difference).sum(axis=-1)


def entropy(logits: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """The entropy of a prediction in nats, by its logits; not reduced.

    Minimized on texts without labels, it keeps the decision away from them (Grandvalet
    and Bengio, 2005), a part of the mixed objective of Sachan, Zaheer and Salakhutdinov
    (2019), "Revisiting LSTM networks for semi-supervised text classification via mixed
    objective function".

    Raises:
        ValueError: there is no axis of classes.

    >>> entropy(jnp.array([0.0, 0.0]))  # log 2
    Array(0.6931472, dtype=float32)
    """
    if not logits.ndim:
        raise ValueError("logits must have an axis of classes, got shape ()")
    logs = _log_probabilities(logits)
    return -(jnp.exp(logs) * jnp.where(logs > -jnp.inf, logs, 0)).sum(axis=-1)


def _log_probabilities(logits: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """In float32 at least: small differences would be rounding errors in less."""
    return jax.nn.log_softmax(logits.astype(accumulation_dtype(logits.dtype)))


def two_class_logits(logits: Float[Array, "*b"]) -> Float[Array, "*b 2"]:
    """The logits of both classes, where a model has one: that of the second.

    >>> two_class_logits(jnp.array([3.0]))
    Array([[0., 3.]], dtype=float32)
    """
    return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


def _checked(
    x: Float[ArrayLike, "*b t d"], valid: Bool[ArrayLike, "*b t"] | None
) -> tuple[Array, Array]:
    x = jnp.asarray(x)
    if x.ndim < 2:
        raise ValueError(f"x must have a time and a feature axis, got shape {x.shape}")
    valid = jnp.ones(x.shape[:-1], bool) if valid is None else jnp.asarray(valid)
    if valid.dtype != jnp.bool_:
        raise ValueError(f"valid must be boolean, got {valid.dtype}")
    if valid.shape != x.shape[:-1]:
        raise ValueError(
            f"valid has shape {valid.shape}, but batch and time of x are {x.shape[:-1]}"
        )
    return x, valid


def _constant_but_for_input(fun: Callable, x: Array) -> Callable:
    """`fun` with everything that it closes over, such as weights, behind stop_gradient.

    Without it, JAX would prepare second derivatives of `fun` for a gradient that ends
    at the perturbation.
    """
    converted, closed_over = jax.closure_convert(fun, x)
    closed_over = jax.lax.stop_gradient(closed_over)
    return lambda x: converted(x, *closed_over)


def _epsilon(epsilon: float) -> float:
    epsilon = check_scalar(epsilon=epsilon)
    if not 0 <= epsilon < float("inf"):
        raise ValueError(f"epsilon must be finite and at least 0, got {epsilon}")
    return epsilon


def _unit(direction: Float[Array, "*b t d"], valid: Array) -> Float[Array, "*b t d"]:
    """Of norm 1 in each sequence; zero where there is no direction, and at padding."""
    dtype = direction.dtype
    sums = accumulation_dtype(dtype)
    direction = jnp.where(valid[..., None], direction, 0).astype(sums)
    # First by the greatest: squares of small gradients would be zero.
    greatest = jnp.abs(direction).max(axis=(-2, -1), keepdims=True, initial=0)
    direction = direction / jnp.where(greatest > 0, greatest, 1)
    norm = jnp.sqrt((direction**2).sum(axis=(-2, -1), keepdims=True))
    return (direction / jnp.where(norm > 0, norm, 1)).astype(dtype)
