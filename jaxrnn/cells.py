"""The recurrent cells as Flax modules: `equations` plus weights, init and dtypes.

A cell knows about one step. Time, padding and direction are the business of `scan`.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from jaxrnn.arguments import at_least, sizes
from jaxrnn.equations import (
    ACTIVATIONS,
    Activation,
    gru_step,
    lstm_step,
    reset_before_gru_step,
    rnn_step,
)
from jaxrnn.products import product
from jaxrnn.types import Array, CellState, Dtype, Float, LSTMState, wide


class Cell(nn.RNNCellBase):
    """A recurrent cell with its weights: what `RNNCell`, `LSTMCell` and `GRUCell`
    share.

    A cell is used in two ways. `project` all inputs at once, then `recur` step by step:
    what this library's layers do. Or `cell(state, x)`, one step from raw inputs: the
    protocol of `flax.linen.RNN`, where it works as well.

    `kernel_init` and `recurrent_init` make one matrix for each gate. Products are
    computed in `dtype` (default: `param_dtype`); states are kept in it too, but never
    in less than float32.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_init: Initializer = nn.initializers.orthogonal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    gates: ClassVar[int]

    def __post_init__(self):
        at_least(1, features=self.features)
        super().__post_init__()

    def setup(self):
        self.w_h = self.param(
            "w_h",
            self._each_gate(self.recurrent_init),
            (self.output_features, self.gates * self.features),
            self.param_dtype,
        )
        if self.use_bias:
            shape = (self.gates * self.features,)
            self.b = self.param("b", self._bias_init, shape, self.param_dtype)

    @nn.compact  # The inputs alone decide the shape of w_x.
    def project(self, x: Float[Array, "*b d"]) -> Float[Array, "*b g"]:
        """`x @ w_x`, the inputs' share of every gate (the bias comes with each step).

        Raises:
            ValueError: if `x` is not floating point, wider than the cell computes, or
                of another number of features than the weights were made for.
        """
        self._check_inputs(x)
        w_x = self.param(
            "w_x",
            self._each_gate(self.kernel_init),
            (x.shape[-1], self.gates * self.features),
            self.param_dtype,
        )
        return product(x.astype(self.state_dtype), w_x, self.compute_dtype)

    def recur(
        self, state: CellState, x_gates: Float[Array, "*b g"]
    ) -> tuple[CellState, Float[Array, "*b h"]]:
        """One step from projected inputs: the next state, and the output."""
        if self.use_bias:
            x_gates = x_gates + self._broadcast(self.b, x_gates.ndim)
        w_h = self.w_h.astype(self.compute_dtype)
        state, output = self._step(state, x_gates, w_h)
        return state, output.astype(self.compute_dtype)

    def __call__(
        self, state: CellState, x: Float[Array, "*b d"]
    ) -> tuple[CellState, Float[Array, "*b h"]]:
        """One step from raw inputs: the next state, and the output."""
        return self.recur(state, self.project(x))

    def zero_state(self, batch_shape: tuple[int, ...]) -> CellState:
        """The state before anything was read."""
        batch_shape = sizes(batch_shape=batch_shape)
        return jnp.zeros((*batch_shape, self.features), self.state_dtype)

    def initialize_carry(self, rng, input_shape: tuple[int, ...]) -> CellState:
        """`zero_state` under the name `flax.linen.RNN` calls it by."""
        return self.zero_state(input_shape[: -self.num_feature_axes])

    @property
    def num_feature_axes(self) -> int:
        return 1

    @property
    def output_features(self) -> int:
        return self.features

    @property
    def compute_dtype(self) -> Dtype:
        return self.param_dtype if self.dtype is None else self.dtype

    @property
    def state_dtype(self) -> Dtype:
        return wide(self.compute_dtype)

    def _step(
        self, state: Any, x_gates: Float[Array, "*b g"], w_h: Float[Array, "h g"]
    ) -> tuple[Any, Float[Array, "*b h"]]:
        """The next state, and the output in its dtype."""
        raise TypeError(f"{type(self).__name__} does not define a step")

    def _bias_init(self, key, shape, dtype):
        return self.bias_init(key, shape, dtype)

    def _each_gate(self, init: Initializer) -> Initializer:
        """`init` for each gate on its own: the fused array is no matrix of its own."""

        def each_gate(key, shape, dtype):
            shape = (shape[0], self.features)
            # Not all initializers know the half-precision types.
            keys = jax.random.split(key, self.gates)
            gates = [init(k, shape, wide(dtype)) for k in keys]
            if {gate.shape for gate in gates} != {shape}:
                raise ValueError(
                    f"an initializer must return one gate's matrix, {shape}, "
                    f"got {gates[0].shape}"
                )
            return jnp.concatenate(gates, axis=-1).astype(dtype)

        return each_gate

    def _broadcast(self, bias: Float[Array, "g"], ndim: int) -> Array:
        return jnp.expand_dims(bias.astype(self.state_dtype), range(ndim - 1))

    def _check_inputs(self, x: Array) -> None:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"inputs must be floating point, got {x.dtype}")
        wider = jnp.finfo(x.dtype).bits > jnp.finfo(self.compute_dtype).bits
        if wider and self.dtype is None:
            raise ValueError(
                f"inputs are {x.dtype}, but the cell computes in "
                f"{jnp.dtype(self.compute_dtype)}: cast them, or set dtype"
            )
        if self.has_variable("params", "w_x"):
            made_for = self.get_variable("params", "w_x").shape[0]
            if x.shape[-1] != made_for:
                raise ValueError(
                    f"inputs have {x.shape[-1]} features, "
                    f"but the weights were made for {made_for}"
                )


class RNNCell(Cell):
    """The simple recurrent network, `h' = tanh(x w_x + b + h w_h)` (Elman, 1990), or
    with `activation="relu"` (Le, Jaitly and Hinton, 2015).

    Raises:
        ValueError: if `activation` is neither.

    >>> cell = RNNCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.zero_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_h', 'w_x'])
    """

    activation: Activation = "tanh"
    gates: ClassVar[int] = 1

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {[*ACTIVATIONS]}, got {self.activation!r}"
            )
        super().__post_init__()

    def _step(self, state, x_gates, w_h):
        h = rnn_step(state, x_gates, w_h, self.activation)
        return h, h


class LSTMCell(Cell):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997; `lstm_step` has the
    equations). The state is `LSTMState(h, c)`.

    `forget_bias` is added to the initial bias of the forget gate (Jozefowicz, Zaremba
    and Sutskever, 2015): 1 lets gradients pass from the start; 0 is PyTorch's. With
    `proj_size` the output is projected to that many features.

    Raises:
        ValueError: if `proj_size` is negative or not below `features`.

    >>> cell = LSTMCell(features=8)
    >>> x, state = jnp.ones((2, 3)), cell.zero_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> y.shape, state.c.shape, variables["params"]["w_x"].shape
    ((2, 8), (2, 8), (3, 32))
    """

    forget_bias: float = 1.0
    proj_size: int = 0
    gates: ClassVar[int] = 4

    def __post_init__(self):
        if (
            at_least(0, proj_size=self.proj_size)
            and not 0 < self.proj_size < self.features
        ):
            raise ValueError(
                f"proj_size must be below features ({self.features}) or 0 for none, "
                f"got {self.proj_size}"
            )
        super().__post_init__()

    def setup(self):
        super().setup()
        if self.proj_size:
            shape = (self.features, self.proj_size)
            self.w_p = self.param("w_p", self.kernel_init, shape, self.param_dtype)

    def zero_state(self, batch_shape):
        c = super().zero_state(batch_shape)
        h = jnp.zeros((*c.shape[:-1], self.output_features), c.dtype)
        return LSTMState(h, c)

    @property
    def output_features(self) -> int:
        return self.proj_size or self.features

    def _step(self, state, x_gates, w_h):
        w_p = self.w_p.astype(self.compute_dtype) if self.proj_size else None
        state = lstm_step(state, x_gates, w_h, w_p)
        return state, state.h

    def _bias_init(self, key, shape, dtype):
        b = jnp.asarray(self.bias_init(key, shape, dtype))
        forget = slice(self.features, 2 * self.features)
        return b.at[forget].add(jnp.asarray(self.forget_bias, dtype))


class GRUCell(Cell):
    """The gated recurrent unit of PyTorch and cuDNN, reset gate after the product
    (`gru_step` has the equations).

    >>> cell = GRUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.zero_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'b_n', 'w_h', 'w_x'])
    """

    gates: ClassVar[int] = 3

    def setup(self):
        super().setup()
        if self.use_bias:
            self.b_n = self.param(
                "b_n", self.bias_init, (self.features,), self.param_dtype
            )

    def _step(self, state, x_gates, w_h):
        b_n = self._broadcast(self.b_n, x_gates.ndim) if self.use_bias else None
        h = gru_step(state, x_gates, w_h, b_n)
        return h, h


class ResetBeforeGRUCell(Cell):
    """The gated recurrent unit as published (Cho et al., 2014), reset gate before the
    product (`reset_before_gru_step` has the equations). PyTorch has no such cell.

    >>> cell = ResetBeforeGRUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.zero_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_h', 'w_x'])
    """

    gates: ClassVar[int] = 3

    def _step(self, state, x_gates, w_h):
        h = reset_before_gru_step(state, x_gates, w_h)
        return h, h
