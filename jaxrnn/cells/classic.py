"""The simple recurrent network, the LSTM and the GRU.

The GRU is here in PyTorch's and in the published form. The cells run the steps of
`equations` on what `Cell` gives them.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrnn._validation import check_min
from jaxrnn.cells.base import Cell, ForgetBias, narrowed
from jaxrnn.equations import (
    ACTIVATIONS,
    NO_DROP,
    Activation,
    gru_step,
    lstm_step,
    reset_before_gru_step,
    rnn_step,
)
from jaxrnn.types import LSTMState


class RNNCell(Cell):
    """The simple recurrent network, `h' = tanh(x w_x + b + h w_h)` (Elman, 1990).

    With `activation="relu"` it is that of Le, Jaitly and Hinton (2015).

    Attributes:
        activation: `"tanh"` or `"relu"`.

    Raises:
        ValueError: if `activation` is neither.

    >>> import jax
    >>> cell = RNNCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_h', 'w_x'])
    """

    activation: Activation = "tanh"
    gates: ClassVar[int] = 1
    has_torch_init: ClassVar[bool] = True
    regularizers: ClassVar[frozenset[str]] = frozenset(
        {"zoneout_h", "recurrent_dropout"}
    )

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {[*ACTIVATIONS]}, got {self.activation!r}"
            )
        super().__post_init__()

    @nn.nowrap
    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        h = rnn_step(drop.of_state(state), x_gates, w_h, self.activation)
        return h, h


class LSTMCell(ForgetBias):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997).

    `lstm_step` has the equations. The state is `LSTMState(h, c)`.

    Attributes:
        forget_bias: added to the initial bias of the forget gate (Jozefowicz, Zaremba
            and Sutskever, 2015): 1 lets gradients pass from the start; 0 is PyTorch's.
        proj_size: features that the output is projected to; 0 for no projection.

    Raises:
        ValueError: if `proj_size` is negative or not below `features`.

    >>> import jax
    >>> cell = LSTMCell(features=8)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> y.shape, state.c.shape, variables["params"]["w_x"].shape
    ((2, 8), (2, 8), (3, 32))
    """

    proj_size: int = 0
    gates: ClassVar[int] = 4
    forget_gate: ClassVar[int] = 1
    has_torch_init: ClassVar[bool] = True
    regularizers: ClassVar[frozenset[str]] = frozenset(
        {"zoneout_h", "zoneout_c", "recurrent_dropout", "update_dropout"}
    )

    def __post_init__(self):
        if (
            check_min(0, proj_size=self.proj_size)
            and not 0 < self.proj_size < self.features
        ):
            raise ValueError(
                f"proj_size must be below features ({self.features}) or 0 for none, "
                f"got {self.proj_size}"
            )
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        if self.proj_size:
            shape = (self.features, self.proj_size)
            init = narrowed(self._or_torch(self.kernel_init))
            self.w_p = self.param("w_p", init, shape, self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch_shape):
        """The output and the memory cell before anything was read.

        >>> LSTMCell(features=3, proj_size=1).initial_state(())
        LSTMState(h=Array([0.], dtype=float32), c=Array([0., 0., 0.], dtype=float32))
        """
        c = super().initial_state(batch_shape)
        h = jnp.zeros((*c.shape[:-1], self.output_features), c.dtype)
        return LSTMState(h, c)

    @property
    def output_features(self) -> int:
        """Like `Cell.output_features`, after the projection if there is one."""
        return self.proj_size or self.features

    @nn.nowrap
    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        w_p = self.w_p.astype(self.compute_dtype) if self.proj_size else None
        state = lstm_step(state, x_gates, w_h, w_p, drop)
        return state, state.h


class GRUCell(Cell):
    """The gated recurrent unit of PyTorch and cuDNN, reset gate after the product.

    `gru_step` has the equations.

    >>> import jax
    >>> cell = GRUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'b_n', 'w_h', 'w_x'])
    """

    gates: ClassVar[int] = 3
    has_torch_init: ClassVar[bool] = True
    regularizers: ClassVar[frozenset[str]] = frozenset(
        {"zoneout_h", "recurrent_dropout", "update_dropout"}
    )

    def setup(self):
        """Creates the parameters."""
        super().setup()
        if self.use_bias:
            init = narrowed(self._or_torch(self.bias_init))
            self.b_n = self.param("b_n", init, (self.features,), self.param_dtype)

    @nn.nowrap
    def _bias_init(self, key, shape, dtype):
        if not self.torch_init:
            return self.bias_init(key, shape, dtype)
        # Of the new state's, `b_n` is the one that PyTorch keeps with the state.
        key, alone_key = jax.random.split(key)
        both = super()._bias_init(key, shape, dtype)
        alone = narrowed(self._or_torch(self.bias_init))(alone_key, shape, dtype)
        return jnp.where(jnp.arange(shape[0]) < 2 * self.features, both, alone)

    @nn.nowrap
    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        b_n = self._broadcast(self.b_n, x_gates.ndim) if self.use_bias else None
        h = gru_step(state, x_gates, w_h, b_n, drop)
        return h, h


class ResetBeforeGRUCell(Cell):
    """The gated recurrent unit as published, reset gate before the product.

    It is that of Cho et al. (2014); `reset_before_gru_step` has the equations. PyTorch
    has no such cell.

    >>> import jax
    >>> cell = ResetBeforeGRUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_h', 'w_x'])
    """

    gates: ClassVar[int] = 3
    regularizers: ClassVar[frozenset[str]] = frozenset(
        {"zoneout_h", "recurrent_dropout", "update_dropout"}
    )

    @nn.nowrap
    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        h = reset_before_gru_step(state, x_gates, w_h, drop)
        return h, h
