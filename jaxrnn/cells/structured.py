"""Cells with a structured recurrent matrix, or that follow a differential equation.

They are designed to keep gradients from vanishing or exploding over time.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from jaxrnn._validation import check_positive, check_scalar
from jaxrnn.cells.base import Cell
from jaxrnn.equations import ACTIVATIONS, Activation
from jaxrnn.types import Array, Float


class IndRNNCell(Cell):
    """The independently recurrent network: each unit sees the state of itself alone.

    As in Li et al. (2018, "Independently recurrent neural network (IndRNN)",
    arXiv:1803.04831):

        h' = relu(x w_x + u * h + b)

    Attributes:
        activation: `"relu"` or `"tanh"`.
        diagonal_init: makes u.

    >>> cell = IndRNNCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> {name: w.shape for name, w in sorted(variables["params"].items())}
    {'b': (8,), 'u': (8,), 'w_x': (3, 8)}
    """

    activation: Activation = "relu"
    diagonal_init: Initializer = nn.initializers.uniform(1.0)
    gates: ClassVar[int] = 1
    recurrent_gates: ClassVar[int | None] = 0
    regularizers: ClassVar[frozenset[str]] = frozenset({"zoneout_h"})

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {[*ACTIVATIONS]}, got {self.activation!r}"
            )
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        self.u = self._vector("u", self.diagonal_init)

    def _step(self, h, x_gates, w_h):
        u = self._broadcast(self.u, h.ndim)
        h = ACTIVATIONS[self.activation](x_gates + u * h)
        return h, h


class AntisymmetricRNNCell(Cell):
    """The antisymmetric network (Chang, Chen, Haber and Chi, 2019).

    As in "AntisymmetricRNN: a dynamical system view on recurrent neural networks",
    arXiv:1902.09689:

        a = h (w_h - w_h.T - gamma I)
        h' = h + epsilon * tanh(x w_x + a + b)
        gated: h' = h + epsilon * sigmoid(x w_z + a + b_z) * tanh(x w_x + a + b)

    Gates lie in the order z, if `gated`, and the one of tanh.

    Attributes:
        gated: whether there is the gate.
        step_size: epsilon.
        diffusion: gamma, which keeps eigenvalues from growing.

    Raises:
        ValueError: `step_size` is not positive, `diffusion` negative.

    >>> cell = AntisymmetricRNNCell(features=8, gated=True)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> {name: w.shape for name, w in sorted(variables["params"].items())}
    {'b': (16,), 'w_h': (8, 8), 'w_x': (3, 16)}
    """

    gated: bool = False
    step_size: float = 0.01
    diffusion: float = 0.01
    recurrent_gates: ClassVar[int | None] = 1
    regularizers: ClassVar[frozenset[str]] = frozenset({"zoneout_h"})

    def __post_init__(self):
        check_positive(step_size=self.step_size)
        if check_scalar(diffusion=self.diffusion) < 0:
            raise ValueError(f"diffusion must not be negative, got {self.diffusion}")
        super().__post_init__()

    @property
    def gates(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many gates there are.

        >>> AntisymmetricRNNCell(8).gates, AntisymmetricRNNCell(8, gated=True).gates
        (1, 2)
        """
        return 2 if self.gated else 1

    def _step(self, h, x_gates, w_h):
        a = self._dot(h, w_h - w_h.T) - self.diffusion * h
        *x_z, x_n = jnp.split(x_gates, self.gates, axis=-1)
        change = jnp.tanh(x_n + a)
        for x in x_z:
            change = jax.nn.sigmoid(x + a) * change
        h = h + self.step_size * change
        return h, h


class CoRNNState(NamedTuple):
    """What a coRNN remembers.

    These are the places `y` of its oscillators, which are the output, and their
    velocities `z`.

    >>> CoRNNState(y=jnp.zeros((2, 4)), z=jnp.zeros((2, 4))).z.shape
    (2, 4)
    """

    y: Float[Array, "*b h"]
    z: Float[Array, "*b h"]


class CoRNNCell(Cell):
    """The coupled oscillatory network (Rusch and Mishra, 2021).

    As in arXiv:2010.00951, with explicit damping:

        z' = z + dt * (tanh(x w_x + y w_y + z w_z + b) - gamma * y - epsilon * z)
        y' = y + dt * z'

    The output is y'. The columns of `w_h` are those of `w_y` and then of `w_z`.

    Attributes:
        dt: the time step.
        gamma: square of the frequency of the oscillators.
        epsilon: their damping.

    Raises:
        ValueError: `dt`, `gamma` or `epsilon` is not positive.

    >>> cell = CoRNNCell(features=8)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> {name: w.shape for name, w in sorted(variables["params"].items())}
    {'b': (8,), 'w_h': (8, 16), 'w_x': (3, 8)}
    """

    dt: float = 0.05
    gamma: float = 3.0
    epsilon: float = 5.0
    gates: ClassVar[int] = 1
    recurrent_gates: ClassVar[int | None] = 2

    def __post_init__(self):
        check_positive(dt=self.dt)
        check_positive(gamma=self.gamma)
        check_positive(epsilon=self.epsilon)
        super().__post_init__()

    def initial_state(self, batch_shape):
        """Oscillators at rest.

        >>> CoRNNCell(features=1).initial_state(())
        CoRNNState(y=Array([0.], dtype=float32), z=Array([0.], dtype=float32))
        """
        y, z = (super(CoRNNCell, self).initial_state(batch_shape) for _ in range(2))
        return CoRNNState(y, z)

    def _step(self, state, x_gates, w_h):
        y, z = state
        w_y, w_z = jnp.split(w_h, 2, axis=-1)
        force = jnp.tanh(x_gates + self._dot(y, w_y) + self._dot(z, w_z))
        z = z + self.dt * (force - self.gamma * y - self.epsilon * z)
        y = y + self.dt * z
        return CoRNNState(y, z), y


class LEMState(NamedTuple):
    """What a long expressive memory remembers: `y`, which is the output, and `z`.

    >>> LEMState(y=jnp.zeros((2, 4)), z=jnp.zeros((2, 4))).y.shape
    (2, 4)
    """

    y: Float[Array, "*b h"]
    z: Float[Array, "*b h"]


class LEMCell(Cell):
    """Long expressive memory (Rusch, Mishra, Erichson and Mahoney, 2022).

    As in arXiv:2110.04744:

        s = dt * sigmoid(x v_1 + y w_1 + b_1), t = dt * sigmoid(x v_2 + y w_2 + b_2)
        z' = (1 - s) * z + s * tanh(x v_z + y w_z + b_z)
        y' = (1 - t) * y + t * tanh(x v_y + z' w_y + b_y)

    The output is y'. Gates lie in the order 1 2 z y; the columns of `w_h` are w_1, w_2
    and w_z.

    Attributes:
        dt: the longest time step.

    Raises:
        ValueError: `dt` is not positive.

    >>> cell = LEMCell(features=8)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> {name: w.shape for name, w in sorted(variables["params"].items())}
    {'b': (32,), 'w_h': (8, 24), 'w_x': (3, 32), 'w_y': (8, 8)}
    """

    dt: float = 1.0
    gates: ClassVar[int] = 4
    recurrent_gates: ClassVar[int | None] = 3

    def __post_init__(self):
        check_positive(dt=self.dt)
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        shape = (self.features, self.features)
        self.w_y = self._matrix("w_y", shape, self.recurrent_init)

    def initial_state(self, batch_shape):
        """Zeros.

        >>> LEMCell(features=1).initial_state(())
        LEMState(y=Array([0.], dtype=float32), z=Array([0.], dtype=float32))
        """
        y, z = (super(LEMCell, self).initial_state(batch_shape) for _ in range(2))
        return LEMState(y, z)

    def _step(self, state, x_gates, w_h):
        y, z = state
        x_1, x_2, x_z, x_y = jnp.split(x_gates, 4, axis=-1)
        y_1, y_2, y_z = jnp.split(self._dot(y, w_h), 3, axis=-1)
        s = self.dt * jax.nn.sigmoid(x_1 + y_1)
        t = self.dt * jax.nn.sigmoid(x_2 + y_2)
        z = (1 - s) * z + s * jnp.tanh(x_z + y_z)
        y = (1 - t) * y + t * jnp.tanh(x_y + self._dot(z, self.w_y))
        return LEMState(y, z), y
