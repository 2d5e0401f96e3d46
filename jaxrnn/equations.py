"""The equations of the recurrent cells, as pure functions from one state to the next.

A step takes inputs that are *already projected*, `x_gates = x @ w_x + b`: the product
with the inputs does not depend on the state, so that a layer does it for all time steps
at once. What is left for each step is the product with the state. (The `x_gates` of
`Cell.project` and `Cell.recur` have no bias yet: `recur` adds it.)

Sums and element-wise arithmetic are in the state's dtype, the factors of products in
that of the weights. Nothing here knows about time, padding, direction or where weights
come from.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.products import product
from jaxrnn.types import Array, Float, LSTMState

Activation = Literal["tanh", "relu"]
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class Drop(NamedTuple):
    """What a step drops in training.

    Each field holds factors, 0 for what is dropped and above 1 for what is kept, or is
    None.

    >>> drop = Drop(state=jnp.array([0.0, 2.0]))
    >>> drop.of_state(jnp.array([3.0, 3.0])).tolist()
    [0.0, 6.0]
    >>> drop.of_update(jnp.array([3.0, 3.0])).tolist()
    [3.0, 3.0]
    """

    state: Float[Array, "*b h"] | None = None
    update: Float[Array, "*b h"] | None = None

    def of_state(self, h: Float[Array, "*b h"]) -> Float[Array, "*b h"]:
        """The state as the products with weights see it.

        >>> Drop().of_state(jnp.ones(1)).tolist()
        [1.0]
        """
        return h if self.state is None else h * self.state.astype(h.dtype)

    def of_update(self, n: Float[Array, "*b h"]) -> Float[Array, "*b h"]:
        """What is new, as it is added to the memory.

        >>> Drop(update=jnp.array([2.0])).of_update(jnp.ones(1)).tolist()
        [2.0]
        """
        return n if self.update is None else n * self.update.astype(n.dtype)


NO_DROP = Drop()


def rnn_step(
    h: Float[Array, "*b h"],
    x_gates: Float[Array, "*b h"],
    w_h: Float[Array, "h h"],
    activation: Activation = "tanh",
) -> Float[Array, "*b h"]:
    """The next state of the simple recurrent network (Elman, 1990).

    The equation is `h' = tanh(x_gates + h w_h)`.

    >>> rnn_step(jnp.ones(1), jnp.ones(1), -jnp.ones((1, 1))).tolist()
    [0.0]
    """
    return ACTIVATIONS[activation](x_gates + product(h, w_h, w_h.dtype))


def lstm_step(
    state: LSTMState,
    x_gates: Float[Array, "*b 4*h"],
    w_h: Float[Array, "h 4*h"],
    w_p: Float[Array, "h p"] | None = None,
    drop: Drop = NO_DROP,
) -> LSTMState:
    """The next state of the long short-term memory (Hochreiter and Schmidhuber, 1997).

    With a forget gate (Gers, Schmidhuber and Cummins, 2000):

        i, f, o = sigmoid(...), g = tanh(...) of x_gates + h w_h
        c' = f * c + i * g
        h' = o * tanh(c')

    Gates lie in the order i f g o, as in PyTorch and cuDNN. With `w_p` the output is
    projected, `h' = (o * tanh(c')) w_p` (Sak, Senior and Beaufays, 2014, LSTMP).

    >>> state = LSTMState(h=jnp.zeros(1), c=jnp.ones(1))
    >>> lstm_step(state, jnp.array([-99.0, 99, 0, 99]), jnp.zeros((1, 4))).c.tolist()
    [1.0]
    """
    h = drop.of_state(state.h)
    i, f, g, o = jnp.split(x_gates + product(h, w_h, w_h.dtype), 4, axis=-1)
    g = drop.of_update(jnp.tanh(g))
    c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * g
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return LSTMState(h if w_p is None else product(h, w_p, w_p.dtype), c)


def gru_step(
    h: Float[Array, "*b h"],
    x_gates: Float[Array, "*b 3*h"],
    w_h: Float[Array, "h 3*h"],
    b_n: Float[Array, "h"] | None = None,
    drop: Drop = NO_DROP,
) -> Float[Array, "*b h"]:
    """The next state of the gated recurrent unit, reset gate after the product.

    The reset gate is applied *after* the product, as in PyTorch and cuDNN (Cho et al.,
    2014, arXiv:1406.1078v1):

        r, z = sigmoid(...) of x_gates + h w_h
        n = tanh(x_n + r * (h w_n + b_n))
        h' = (1 - z) * n + z * h

    Gates lie in the order r z n.

    >>> gru_step(jnp.ones(1), jnp.array([0.0, 99, 0]), jnp.zeros((1, 3))).tolist()
    [1.0]
    """
    x_r, x_z, x_n = jnp.split(x_gates, 3, axis=-1)
    seen = drop.of_state(h)
    h_r, h_z, h_n = jnp.split(product(seen, w_h, w_h.dtype), 3, axis=-1)
    r = jax.nn.sigmoid(x_r + h_r)
    z = jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n if b_n is None else h_n + b_n))
    return (1 - z) * drop.of_update(n) + z * h


def reset_before_gru_step(
    h: Float[Array, "*b h"],
    x_gates: Float[Array, "*b 3*h"],
    w_h: Float[Array, "h 3*h"],
    drop: Drop = NO_DROP,
) -> Float[Array, "*b h"]:
    """The next state of the gated recurrent unit as published (Cho et al., 2014).

    As in arXiv:1406.1078v3, equations 5 to 8, the reset gate acts on the state *before*
    the product,

        n = tanh(x_n + (r * h) w_n)

    and all else is as in `gru_step`.

    >>> reset_before_gru_step(
    ...     jnp.ones(1), jnp.array([0.0, 99, 0]), jnp.zeros((1, 3))
    ... ).tolist()
    [1.0]
    """
    x_rz, x_n = jnp.split(x_gates, [2 * h.shape[-1]], axis=-1)
    w_rz, w_n = jnp.split(w_h, [2 * h.shape[-1]], axis=-1)
    seen = drop.of_state(h)
    rz = jax.nn.sigmoid(x_rz + product(seen, w_rz, w_rz.dtype))
    r, z = jnp.split(rz, 2, axis=-1)
    n = jnp.tanh(x_n + product(r * seen, w_n, w_n.dtype))
    return (1 - z) * drop.of_update(n) + z * h
