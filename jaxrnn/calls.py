"""How a layer is called: `layer(x, lengths, segment_ids, *, state, reverse, train)`.

What says which steps hold data may be given by position, which is all that the lifted
transformations `flax.linen.vmap` and `flax.linen.scan` pass on. The state never is:
`flax.linen.Sequential` gives the next layer by position whatever the last one returned.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrnn.types import Array, Int, State


def call_layer(
    layer: Any,
    x: Array,
    lengths: Int[ArrayLike, "*b"] | None = None,
    segment_ids: Int[ArrayLike, "*b t"] | None = None,
    *,
    state: State | None = None,
    reverse: bool = False,
    train: bool = False,
) -> tuple[Array, State]:
    """Calls `layer` with those of the arguments that are not the defaults.

    So somebody's layer need not know all of them, and a lifted transformation of it
    neither drops them nor makes tracers of them.

    Raises:
        TypeError: as `check_ragged` does.

    >>> from jaxrnn import GRU
    >>> layer = GRU(features=2)
    >>> x, lengths = jnp.ones((1, 3, 4)), jnp.array([2])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> outputs, state = call_layer(layer.bind(variables), x, lengths, reverse=True)
    >>> bool((outputs[0, 0] == state[0][0]).all())
    True
    """
    check_ragged(lengths, segment_ids)
    ragged = [lengths, segment_ids]
    while ragged and ragged[-1] is None:
        ragged.pop()
    options = {"state": state, "reverse": reverse, "train": train}
    given = {
        name: value
        for name, value in options.items()
        if value is not None and value is not False
    }
    return layer(x, *ragged, **given)


def check_ragged(lengths: Any, segment_ids: Any) -> None:
    """Refuses a state in the place of lengths or segment ids.

    `segments.resolve` checks their shapes and values.

    Raises:
        TypeError: one of them is a tuple or a dictionary of arrays, or floating point.

    >>> check_ragged(jnp.array([3, 1]), None)
    """
    for name, value in [("lengths", lengths), ("segment_ids", segment_ids)]:
        leaves = jax.tree.leaves(value)
        parts = isinstance(value, (tuple, dict)) and any(map(jnp.ndim, leaves))
        dtypes = [jnp.result_type(leaf) for leaf in leaves]
        floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
        if parts or floating:
            got = type(value).__name__ if parts else floating[0]
            raise TypeError(
                f"{name} must be an array of integers, got {got}. A state is given by "
                "name, state=...; layers on top of each other are a Stack, not a "
                "flax.linen.Sequential, which gives each one the state of the last"
            )
