"""Hidden sizes with which every cell has equally many parameters."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp

from experiments.charlm.config import Settings
from experiments.charlm.model import make_model

TOLERANCE = 0.05  # share of the number of parameters
MULTIPLE = 4  # of which hidden sizes are: SCRN's units come in quarters


@functools.cache
def count_parameters(settings: Settings, vocab_size: int) -> int:
    """Return the number of parameters of a character model; nothing is computed.

    >>> count_parameters(Settings(embed=3, hidden=4, cell="rnn"), vocab_size=7)
    88
    """
    model = make_model(settings, vocab_size)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


def fit_hidden(settings: Settings, wanted: int, vocab_size: int) -> Settings:
    """Return the settings with the hidden size that gives `wanted` parameters.

    It is the multiple of 4 that comes nearest.

    Raises:
        ValueError: none comes within 5%.

    >>> fit_hidden(Settings(cell="gru"), 267_649, vocab_size=65).hidden
    256
    """

    def sized(hidden: int) -> Settings:
        return dataclasses.replace(settings, hidden=hidden)

    def count(hidden: int) -> int:
        return count_parameters(sized(hidden), vocab_size)

    # A polynomial of second degree in the hidden size: three small ones determine it,
    # by their differences. The initial values of a large S5 take seconds.
    first, second, third = (count(k * MULTIPLE) for k in (1, 2, 3))
    grows, bends = second - first, third - 2 * second + first
    above = next(
        k
        for k in itertools.count(2)
        if first + (k - 1) * grows + (k - 1) * (k - 2) // 2 * bends >= wanted
    )
    nearest = min(
        ((above - 1) * MULTIPLE, above * MULTIPLE),
        key=lambda hidden: abs(count(hidden) - wanted),
    )
    if abs(count(nearest) - wanted) > TOLERANCE * wanted:
        raise ValueError(
            f"--cell {settings.cell} has {count(nearest):,} parameters with a hidden "
            f"size of {nearest}, not within {TOLERANCE:.0%} of {wanted:,}"
        )
    return sized(nearest)
