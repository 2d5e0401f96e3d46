"""Cells in continuous time, with steps that may be of unequal length.

With `time_feature` the last feature of the inputs is the length of the step: the time
since the step before, in the units of `dt`, which it replaces. It has no weights.
Padded and packed rows need nothing more; read in reverse, a step has the length that
stands at it. In a `Layer` of several every one reads it.
"""

from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._validation import (
    check_min,
    check_positive,
    check_probability,
    check_scalar,
)
from jaxrnn.cells.base import Cell
from jaxrnn.types import Array, Float

Rate = Literal["relu", "tanh", "sigmoid", "softplus"]
_RATES = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}
Integration = Literal["euler", "exponential"]


class _ContinuousCell(Cell):
    """A cell that has steps of length `dt`, or of the length that its inputs say."""

    dt: float = 1.0
    time_feature: bool = False
    bias_gates: ClassVar[int | None] = 1

    def __post_init__(self):
        check_positive(dt=self.dt)
        super().__post_init__()

    @property
    def time_features(self) -> int:
        """Like `Cell.time_features`: 1 if the cell reads it."""
        return int(self.time_feature)

    def _project(self, x):
        if not self.time_feature:
            return self._input_product(x)
        if x.shape[-1] < 2:
            raise ValueError(
                "with time_feature inputs need a feature and the length of the step, "
                f"got {x.shape[-1]} features"
            )
        x, elapsed = jnp.split(x, [x.shape[-1] - 1], axis=-1)
        return jnp.concatenate([self._input_product(x, gates=1), elapsed], axis=-1)

    def _split_time(self, x_gates: Float[Array, "*b g"]) -> tuple[Array, Array | float]:
        """The gates, and the length of the step."""
        if not self.time_feature:
            return x_gates, self.dt
        gates, elapsed = jnp.split(x_gates, [x_gates.shape[-1] - 1], axis=-1)
        return gates, elapsed


class LeakyRNNCell(_ContinuousCell):
    """The leaky, or continuous-time, network of computational neuroscience.

    As in Song, Yang and Wang (2016, "Training excitatory-inhibitory recurrent neural
    networks for cognitive tasks"), `time_constant * dv/dt = -v + x w_x + r w_h + b`
    with rates r = relu(v), by steps of Euler's method:

        alpha = dt / time_constant
        u = x w_x + r w_h + b
        v' = (1 - alpha) * v + alpha * u + sqrt(2 alpha) * noise * normal
        r' = relu(v')

    The state is v, the output r'.

    Attributes:
        dt: length of a step, in the units of `time_constant`.
        time_constant: of the decay of v.
        rate: the function from v to r: `"relu"`, `"tanh"`, `"sigmoid"` or `"softplus"`.
        noise: its strength, drawn where an rng stream `"noise"` is given and zero
            elsewhere.
        excitatory: share of units, the first ones, whose weights to all units are
            positive, while those of the others are negative (Dale's law): then the
            absolute value of `w_h` counts, with the sign of the row (the paper takes
            its positive part). None: weights may have any sign.
        integration: `"euler"`, or `"exponential"` for alpha = 1 - exp(-dt /
            time_constant), which no length of a step makes unstable.
        time_feature: the last feature of the inputs is the length of the step.

    Raises:
        ValueError: `time_constant` or `dt` is not positive; `dt` is above
            `time_constant` in Euler's method; `noise` is negative; `excitatory` is not
            from 0 to 1; `rate` or `integration` is not known.

    >>> cell = LeakyRNNCell(features=8, excitatory=0.8)
    >>> x, v = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (v, r), variables = cell.init_with_output(jax.random.key(0), v, x)
    >>> r.shape, bool((r >= 0).all()), sorted(variables["params"])
    ((2, 8), True, ['b', 'w_h', 'w_x'])
    """

    dt: float = 20.0
    time_constant: float = 100.0
    rate: Rate = "relu"
    noise: float = 0.0
    excitatory: float | None = None
    integration: Integration = "euler"
    gates: ClassVar[int] = 1

    def __post_init__(self):
        check_positive(time_constant=self.time_constant)
        if check_scalar(noise=self.noise) < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")
        if self.excitatory is not None:
            check_probability(excitatory=self.excitatory)
        for name, known in (("rate", Rate), ("integration", Integration)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} must be one of {[*get_args(known)]}, "
                    f"got {getattr(self, name)!r}"
                )
        super().__post_init__()
        unstable = self.integration == "euler" and self.dt > self.time_constant
        if unstable and not self.time_feature:
            raise ValueError(
                f"dt must not be above time_constant ({self.time_constant}) in Euler's "
                f"method, got {self.dt}: take shorter steps, or "
                'integration="exponential"'
            )

    @property
    def _widths(self):
        return (self.features,) + (1,) * self.time_features

    def _step(self, v, x_gates, w_h):
        x, elapsed = self._split_time(x_gates)
        alpha = elapsed / self.time_constant
        if self.integration == "exponential":
            alpha = -jnp.expm1(jnp.asarray(-alpha, v.dtype))
        if self.excitatory is not None:
            number_excitatory = round(self.excitatory * self.features)
            sign = np.where(np.arange(self.features) < number_excitatory, 1, -1)
            w_h = jnp.abs(w_h) * jnp.asarray(sign[:, None], w_h.dtype)
        rate = _RATES[self.rate]
        v = (1 - alpha) * v + alpha * (x + self._dot(rate(v), w_h))
        if self.noise and self.has_rng("noise"):
            normal = jax.random.normal(self.make_rng("noise"), v.shape, v.dtype)
            v = v + jnp.sqrt(jnp.asarray(2 * alpha, v.dtype)) * self.noise * normal
        return v, rate(v)


class CfCCell(_ContinuousCell):
    """The closed-form continuous-time network (Hasani et al., 2022).

    As in "Closed-form continuous-time neural networks", Nature Machine Intelligence 4,
    with its three networks f, g and n on one shared layer:

        s = tanh(x w_x + h w_h + b)
        f, g, n = s w_f + b_f, tanh(s w_g + b_g), tanh(s w_n + b_n)
        h' = sigmoid(-f * dt) * g + (1 - sigmoid(-f * dt)) * n

    The columns of `w_y` are those of f g n.

    Attributes:
        dt: length of a step.
        hidden_features: those of s; `features` if None.
        time_feature: the last feature of the inputs is the length of the step.

    Raises:
        ValueError: `dt` is not positive.

    >>> cell = CfCCell(features=8, hidden_features=5, time_feature=True)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> {name: w.shape for name, w in sorted(variables["params"].items())}
    {'b': (5,), 'b_y': (24,), 'w_h': (8, 5), 'w_x': (2, 5), 'w_y': (5, 24)}
    """

    hidden_features: int | None = None
    gates: ClassVar[int] = 1
    regularizers: ClassVar[frozenset[str]] = frozenset({"zoneout_h"})

    def __post_init__(self):
        if self.hidden_features is not None:
            check_min(1, hidden_features=self.hidden_features)
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        hidden = self._widths[0]
        shape = (self.features, hidden)
        self.w_h = self._matrix("w_h", shape, self.recurrent_init, (hidden,))
        shape = (hidden, 3 * self.features)
        self.w_y = self._matrix("w_y", shape, self.kernel_init)
        if self.use_bias:
            self.b = self.param("b", self._bias_init, (hidden,), self.param_dtype)
            self.b_y = self._vector("b_y", self.bias_init, 3 * self.features)

    @property
    def _widths(self):
        hidden = self.hidden_features or self.features
        return (hidden,) + (1,) * self.time_features

    def _step(self, h, x_gates, w_h):
        x, elapsed = self._split_time(x_gates)
        s = jnp.tanh(x + self._dot(h, w_h))
        heads = self._dot(s, self.w_y)
        if self.use_bias:
            heads = heads + self._broadcast(self.b_y, heads.ndim)
        f, g, n = jnp.split(heads, 3, axis=-1)
        mix = jax.nn.sigmoid(-f * elapsed)
        h = mix * jnp.tanh(g) + (1 - mix) * jnp.tanh(n)
        return h, h
