"""The convolutional LSTM, in one, two or three dimensions."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxrnn._validation import check_min, check_shape
from jaxrnn.cells.base import ForgetBias
from jaxrnn.types import Array, Float, LSTMState


class ConvLSTMCell(ForgetBias):
    """The convolutional LSTM (Shi et al., 2015).

    As in "Convolutional LSTM network", arXiv:1506.04214, equation 3, without its
    peepholes:

        i, f, o = sigmoid(...), g = tanh(...) of conv(x, w_x) + conv(h, w_h) + b
        c' = f * c + i * g, h' = o * tanh(c')

    The inputs of a step are `[*b, *space, d]` with as many axes of space as
    `kernel_size` has numbers, one to three, and the outputs `[*b, *space, h]`, as many
    as the inputs: they are padded with zeros at the border. Gates lie in the order
    i f g o. `kernel_init` and `recurrent_init` make one gate's kernel. The convolutions
    round their results to `dtype`; the state is float32 or wider all the same.

    Attributes:
        kernel_size: along each axis of space.
        forget_bias: added to the initial bias of the forget gate.

    Raises:
        ValueError: `kernel_size` has no number, or more than three.

    >>> from jaxrnn import Recurrent
    >>> layer = Recurrent(ConvLSTMCell(features=4, kernel_size=(3, 3)))
    >>> video = jnp.ones((2, 5, 8, 8, 3))
    >>> (y, (state,)), variables = layer.init_with_output(
    ...     jax.random.key(0), video, lengths=jnp.array([5, 2])
    ... )
    >>> y.shape, state.c.shape
    ((2, 5, 8, 8, 4), (2, 8, 8, 4))
    """

    kernel_size: tuple[int, ...] = (3, 3)
    gates: ClassVar[int] = 4
    forget_gate: ClassVar[int] = 1

    def __post_init__(self):
        kernel = check_shape(kernel_size=self.kernel_size)
        if not 1 <= len(kernel) <= 3:
            raise ValueError(
                f"kernel_size must have one to three numbers, got {self.kernel_size}"
            )
        for size in kernel:
            check_min(1, kernel_size=size)
        object.__setattr__(self, "kernel_size", kernel)
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        shape = (*self.kernel_size, self.features, 4 * self.features)
        self.w_h = self._matrix("w_h", shape, self.recurrent_init)
        if self.use_bias:
            shape = (4 * self.features,)
            self.b = self.param("b", self._bias_init, shape, self.param_dtype)

    def initial_state(self, batch_shape):
        """Raises a `ValueError`: the state has the space of the inputs.

        >>> ConvLSTMCell(features=4).initial_state((2,))
        Traceback (most recent call last):
            ...
        ValueError: the state has the space of the inputs: use initialize_carry
        """
        raise ValueError("the state has the space of the inputs: use initialize_carry")

    def initialize_carry(self, rng, input_shape):
        """Zeros, for inputs `[*b, *space, d]` of one step.

        >>> cell = ConvLSTMCell(features=4)
        >>> cell.initialize_carry(jax.random.key(0), (2, 8, 8, 3)).h.shape
        (2, 8, 8, 4)
        """
        shape = (*input_shape[:-1], self.features)
        return LSTMState(*(jnp.zeros(shape, self.state_dtype) for _ in range(2)))

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input, the last ones, are space and features.

        >>> ConvLSTMCell(features=4, kernel_size=(3, 3)).num_feature_axes
        3
        """
        return len(self.kernel_size) + 1

    def _project(self, x):
        shape = (*self.kernel_size, x.shape[-1], 4 * self.features)
        w_x = self._matrix("w_x", shape, self.kernel_init)
        return self._convolve(x, w_x)

    def _step(self, state, x_gates, w_h):
        gates = x_gates + self._convolve(state.h, w_h)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return LSTMState(h, c), h

    def _convolve(self, x: Array, w: Float[Array, "*k d g"]) -> Array:
        """Over space, which stays as large; any number of axes before it."""
        batch = x.shape[: -self.num_feature_axes]
        space = x.shape[len(batch) :]
        axes = "DHW"[-len(self.kernel_size) :]
        out = jax.lax.conv_general_dilated(
            x.reshape(math.prod(batch), *space).astype(self.compute_dtype),
            w.astype(self.compute_dtype),
            (1,) * len(self.kernel_size),
            "SAME",
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        )
        return out.reshape(*batch, *out.shape[1:]).astype(self.state_dtype)
