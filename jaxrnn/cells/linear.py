"""Cells that are linear in their state: all steps can be computed at once.

Their gates depend on the inputs alone, so that the state follows
`h' = a * h + b` with `a` and `b` known for all steps beforehand. `linear_recurrence`
computes it. Each cell says once, in `_run`, what it computes, in terms of
`recurrence` and `previous`; one step and a whole sequence differ in what these do.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import meta
from flax.typing import Initializer

from jaxrnn._validation import check_min, check_positive, check_scalar
from jaxrnn.cells.base import Cell, ForgetBias, narrowed
from jaxrnn.linear_recurrence import linear_recurrence, shifted
from jaxrnn.types import Array, Bool, CellState, Float

Pooling = Literal["f", "fo", "ifo"]


class LinearCell(Cell):
    """A cell that is linear in its state.

    It has what `MinGRUCell`, `LRUCell` and the others of this file share.

    One of your own defines `gates` and `_run`. A layer then computes all its steps at
    once, unless a method that says otherwise, `_step`, `recur` or `__call__`, is its
    own too.

    >>> class Average(LinearCell):
    ...     gates = 1
    ...
    ...     def _run(self, x_gates, over):
    ...         h, final = over.recurrence(jnp.full_like(x_gates, 0.9), 0.1 * x_gates)
    ...         return final, h
    >>> from jaxrnn import Recurrent
    >>> layer = Recurrent(Average(features=8))
    >>> layer.resolved_backends
    ('parallel',)
    """

    recurrent_gates: ClassVar[int | None] = 0

    def over_time(
        self,
        state: CellState,
        x_gates: Float[Array, "t b g"],
        *,
        valid: Bool[Array, "t b"] | None = None,
        starts: Bool[Array, "t b"] | None = None,
        first: Bool[Array, "t b"] | None = None,
        first_state: CellState = None,
        reverse: bool = False,
    ) -> tuple[Float[Array, "t b h"], CellState]:
        """The outputs of all steps at once, and the state after the last step read.

        It is what `scan(Cell.recur, cell, state, x_gates, ...)` returns, to rounding,
        with `initial_state` as fresh state.

        Raises:
            ValueError: the cell has an option with which the steps depend on each other
                (`runs_in_parallel`).

        >>> def run(cell, x):
        ...     return cell.over_time(cell.initial_state((2,)), cell.project(x))
        >>> (y, h), variables = nn.init_with_output(run, MinGRUCell(features=8))(
        ...     jax.random.key(0), jnp.ones((5, 2, 3))
        ... )
        >>> y.shape, bool((y[-1] == h).all())
        ((5, 2, 8), True)
        """
        if not runs_in_parallel(self):
            raise ValueError(
                f"over_time is for cells linear in the state, got {self!r:.200}"
            )
        masks = {"valid": valid, "starts": starts, "first": first}
        first_state = state if first_state is None else first_state
        over = _AllSteps(state, first_state, masks, reverse)
        state, outputs = self._run(self._with_bias(x_gates), over)
        if valid is not None:
            outputs = jnp.where(valid[..., None], outputs, 0)
        return outputs.astype(self.compute_dtype), state

    @property
    def _is_linear(self) -> bool:
        """Whether the cell is linear with the options it has."""
        return True

    def _run(self, x_gates: Float[Array, "*b g"], over: Any) -> tuple[CellState, Array]:
        """The final state and the outputs, by `over.recurrence` and `over.previous`.

        The bias is in `x_gates`, which has a time axis or has not.
        """
        raise TypeError(f"{type(self).__name__} does not define a recurrence")

    def _step(self, state, x_gates, w_h):
        return self._run(x_gates, _OneStep(state))


def runs_in_parallel(cell: Any) -> bool:
    """Whether `LinearCell.over_time` computes what the cell's steps compute.

    Raises:
        TypeError: `cell` is no cell, but a layer or a class, say.

    >>> runs_in_parallel(MinGRUCell(8)), runs_in_parallel(nn.GRUCell(8))
    (True, False)
    """
    if not isinstance(cell, nn.RNNCellBase):
        raise TypeError(f"cell must be a flax.linen.RNNCellBase, got {cell!r:.200}")
    if not isinstance(cell, LinearCell) or not cell._is_linear:
        return False
    methods = ("_step", "recur", "__call__")
    return all(getattr(type(cell), m) is getattr(LinearCell, m) for m in methods)


@dataclasses.dataclass
class _OneStep:
    """What a cell's `_run` is given for one step, from `state`."""

    state: CellState

    def recurrence(self, a: Array, b: Array, name: str | None = None):
        """`a * h + b`, as the state of the step and as the final one.

        `h` is the part of the state with that name, or all of it.
        """
        h = a * _part(self.state, name) + b
        return h, h

    def previous(self, values: Array, name: str | None = None):
        """The values of the step before, and those for the step after it."""
        return _part(self.state, name), values


@dataclasses.dataclass
class _AllSteps:
    """The same for all steps; `masks` are those of `linear_recurrence`."""

    state: CellState
    first_state: CellState
    masks: dict[str, Array | None]
    reverse: bool

    def recurrence(self, a: Array, b: Array, name: str | None = None):
        h, final = self._states(a, b, name)
        return self._zero_at_padding(h), final

    def _states(self, a: Array, b: Array, name: str | None):
        return linear_recurrence(
            a,
            b,
            _part(self.state, name),
            first_state=_part(self.first_state, name),
            reverse=self.reverse,
            **self.masks,
        )

    def _zero_at_padding(self, values: Array) -> Array:
        """No output depends on them, but 0 * NaN would reach the gradients."""
        valid = self.masks["valid"]
        return values if valid is None else jnp.where(valid[..., None], values, 0)

    def previous(self, values: Array, name: str | None = None):
        # Of the last valid step, that is: a recurrence too, which forgets all before.
        held, final = self._states(jnp.zeros_like(values), values, name)
        initial, first = (_part(s, name) for s in (self.state, self.first_state))
        before = shifted(held, initial, reverse=self.reverse)
        starts, of_first = self.masks["starts"], self.masks["first"]
        if starts is not None:
            fresh = jnp.zeros_like(first)[None]
            if of_first is not None:
                fresh = jnp.where(of_first[..., None], first[None], fresh)
            before = jnp.where(starts[..., None], fresh, before)
        return self._zero_at_padding(before), final


def _part(state: CellState, name: str | None) -> Array:
    return state if name is None else getattr(state, name)


def positive(x: Float[Array, "*b h"]) -> Float[Array, "*b h"]:
    """`x + 1/2` where `x` is positive, `sigmoid(x)` elsewhere.

    It is the activation that keeps the states of MinGRU and MinLSTM positive (Feng et
    al., 2024, appendix B).

    >>> positive(jnp.array([1.5, 0.0])).tolist()
    [2.0, 0.5]
    """
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


class MinGRUCell(LinearCell):
    """The minimal gated recurrent unit in the form that its authors train.

    As in Feng et al. (2024, "Were RNNs all we needed?", arXiv:2410.01201, appendix B):

        z = sigmoid(x_z), n = g(x_n), with g as `positive`
        h' = (1 - z) * h + z * n

    The authors compute it on a logarithmic scale; `linear_recurrence` needs none, as
    it never divides by products of gates. Gates lie in the order z n.

    >>> cell = MinGRUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_x'])
    """

    gates: ClassVar[int] = 2
    regularizers: ClassVar[frozenset[str]] = frozenset({"zoneout_h"})

    def _run(self, x_gates, over):
        z, n = jnp.split(x_gates, 2, axis=-1)
        # 1 - sigmoid(z), without rounding a small one to zero.
        h, final = over.recurrence(jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * positive(n))
        return final, h


class MinLSTMCell(ForgetBias, LinearCell):
    """The minimal LSTM in the form that its authors train (Feng et al., 2024).

    As in arXiv:2410.01201, appendix B, with gates that add up to one:

        f, i = sigmoid(x_f), sigmoid(x_i), n = g(x_n), with g as `positive`
        h' = f / (f + i) * h + i / (f + i) * n

    Gates lie in the order f i n.

    Attributes:
        forget_bias: added to the initial bias of f.

    >>> cell = MinLSTMCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_x'])
    """

    forget_bias: float = 0.0
    gates: ClassVar[int] = 3
    regularizers: ClassVar[frozenset[str]] = frozenset({"zoneout_h"})

    def _run(self, x_gates, over):
        f, i, n = jnp.split(x_gates, 3, axis=-1)
        # f / (f + i) = 1 / (1 + i / f): the ratio on a logarithmic scale.
        share = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
        h, final = over.recurrence(
            jax.nn.sigmoid(share), jax.nn.sigmoid(-share) * positive(n)
        )
        return final, h


class SRUCell(LinearCell):
    """The simple recurrent unit (Lei et al., 2018).

    As in "Simple recurrent units for highly parallelizable recurrence",
    arXiv:1709.02755:

        f, r = sigmoid(x_f + v_f * c), sigmoid(x_r + v_r * c)
        c' = f * c + (1 - f) * x_c
        h' = r * c' + (1 - r) * alpha * x

    The state is `c`. Inputs with another number of features than the cell are projected
    where they skip the state. Gates lie in the order f r c, and only f and r have
    biases.

    Attributes:
        peephole: the gates read the state, as published; then steps are taken one after
            the other. Without, there are no `v_f` and `v_r`, as in the first version of
            the paper.
        skip_scale: alpha; the square root of 3 by the paper's derivation for biases of
            zero.

    >>> cell = SRUCell(features=8)
    >>> x, c = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (c, y), variables = cell.init_with_output(jax.random.key(0), c, x)
    >>> y.shape, variables["params"]["w_x"].shape  # of 3 inputs: one gate more
    ((2, 8), (3, 32))
    """

    peephole: bool = False
    skip_scale: float = 3**0.5
    gates: ClassVar[int] = 4
    bias_gates: ClassVar[int | None] = 2

    def __post_init__(self):
        check_scalar(skip_scale=self.skip_scale)
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        if self.peephole:
            shape = 2 * self.features
            self.v = self._vector("v", nn.initializers.normal(0.1), shape)

    @property
    def _is_linear(self) -> bool:
        return not self.peephole

    def _project(self, x):
        if x.shape[-1] != self.features:
            return self._input_product(x)
        return jnp.concatenate([self._input_product(x, gates=3), x], axis=-1)

    def _run(self, x_gates, over):
        fr, x_c, skip = jnp.split(
            x_gates, [2 * self.features, 3 * self.features], axis=-1
        )
        if self.peephole:
            v = self._broadcast(self.v, fr.ndim)
            fr = fr + v * jnp.concatenate([over.state, over.state], axis=-1)
        f, r = jnp.split(fr, 2, axis=-1)
        c, final = over.recurrence(jax.nn.sigmoid(f), jax.nn.sigmoid(-f) * x_c)
        r = jax.nn.sigmoid(r)
        return final, r * c + (1 - r) * (skip * self.skip_scale)


class QRNNState(NamedTuple):
    """What a QRNN with a window of 2 remembers.

    This is its memory cell `c`, and in `previous` what the inputs of the last step add
    to the gates of the next one.

    >>> QRNNState(c=jnp.zeros((2, 4)), previous=jnp.zeros((2, 12))).previous.shape
    (2, 12)
    """

    c: Float[Array, "*b h"]
    previous: Float[Array, "*b g"]


class QRNNCell(LinearCell):
    """The quasi-recurrent network (Bradbury, Merity, Xiong and Socher, 2017).

    As in arXiv:1611.01576, with gates by a convolution over the last inputs, and a
    pooling that is linear in the state:

        z = tanh(...), f, o, i = sigmoid(...) of x_t w_x[0] + x_{t-1} w_x[1] + b
        pooling "f":    h' = f * h + (1 - f) * z
        pooling "fo":   c' = f * c + (1 - f) * z, h' = o * c'
        pooling "ifo":  c' = f * c + i * z, h' = o * c'

    which are the paper's equations 3, 4 and 5. Before the first input of a sequence
    stands one of zeros. The state is `c`, or a `QRNNState` with a window of 2. Gates
    lie in the order z f o i, first those of this input, then of the one before.

    Attributes:
        window: inputs that a gate reads, 1 or 2.
        pooling: `"f"`, `"fo"` or `"ifo"`.

    >>> cell = QRNNCell(features=8, window=2)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> y.shape, variables["params"]["w_x"].shape
    ((2, 8), (3, 48))
    """

    window: int = 1
    pooling: Pooling = "fo"
    gates: ClassVar[int] = 0  # depends on the pooling

    def __post_init__(self):
        if self.window not in (1, 2):
            raise ValueError(f"window must be 1 or 2, got {self.window!r}")
        if self.pooling not in get_args(Pooling):
            raise ValueError(
                f"pooling must be one of {[*get_args(Pooling)]}, got {self.pooling!r}"
            )
        super().__post_init__()

    @property
    def bias_gates(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many gates there are of one input, which have a bias.

        >>> QRNNCell(8, pooling="ifo").bias_gates
        4
        """
        return 1 + len(self.pooling)

    @property
    def _widths(self):
        return (self.features,) * (self.bias_gates * self.window)

    def initial_state(self, batch_shape):
        """The memory cell, and of a window of 2 an input of zeros.

        >>> QRNNCell(features=1, window=2, pooling="f").initial_state(()).previous
        Array([0., 0.], dtype=float32)
        """
        c = super().initial_state(batch_shape)
        if self.window == 1:
            return c
        width = self.bias_gates * self.features
        return QRNNState(c, jnp.zeros((*c.shape[:-1], width), c.dtype))

    def _run(self, x_gates, over):
        last, name = None, None
        if self.window == 2:
            x_gates, x_later = jnp.split(x_gates, 2, axis=-1)
            name = "c"
            previous, last = over.previous(x_later, "previous")
            x_gates = x_gates + previous
        z, f, *others = jnp.split(x_gates, self.bias_gates, axis=-1)
        z = jnp.tanh(z)
        if self.pooling == "ifo":
            added = jax.nn.sigmoid(others[1]) * z
        else:
            added = jax.nn.sigmoid(-f) * z
        c, final = over.recurrence(jax.nn.sigmoid(f), added, name)
        h = c if self.pooling == "f" else jax.nn.sigmoid(others[0]) * c
        return final if last is None else QRNNState(final, last), h


class LRUCell(LinearCell):
    """The linear recurrent unit (Orvieto et al., 2023).

    As in "Resurrecting recurrent neural networks for long sequences", arXiv:2303.06349,
    with complex states:

        lambda = exp(-exp(nu) + i exp(theta))
        s' = lambda * s + exp(gamma) * (x B)
        h' = Re(s' C) + x D

    gamma starts as `log(sqrt(1 - abs(lambda)**2))`. `B`, real part and imaginary part,
    and `D`, a whole matrix, are the columns of `w_x`; `w_y` has `Re C` above `-Im C`.

    Attributes:
        state_features: number of complex states; `features` if None.
        r_min, r_max: the radii between which the initial eigenvalues lie, evenly in the
            ring.
        max_phase: their greatest phase.

    Raises:
        ValueError: `r_min`, `r_max` are not in order between 0 and 1.

    >>> cell = LRUCell(features=8, state_features=4)
    >>> x, s = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (s, y), variables = cell.init_with_output(jax.random.key(0), s, x)
    >>> y.shape, s.dtype.name, variables["params"]["w_x"].shape
    ((2, 8), 'complex64', (3, 16))
    """

    state_features: int | None = None
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * np.pi
    gates: ClassVar[int] = 3
    bias_gates: ClassVar[int | None] = 0

    def __post_init__(self):
        _check_state_features(self.state_features)
        if (
            not 0
            <= check_scalar(r_min=self.r_min)
            < check_scalar(r_max=self.r_max)
            <= 1
        ):
            raise ValueError(
                "r_min must be below r_max, both from 0 to 1, got "
                f"{self.r_min} and {self.r_max}"
            )
        check_scalar(max_phase=self.max_phase)
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        states = self._states
        self.nu = self._vector("nu", self._nu_init, states)
        self.theta = self._vector("theta", self._theta_init, states)
        self.gamma = self._vector("gamma", self._gamma_init, states)
        shape = (2 * states, self.features)
        self.w_y = self._matrix("w_y", shape, self.kernel_init)

    def initial_state(self, batch_shape):
        """Complex zeros.

        >>> LRUCell(features=8, state_features=2).initial_state(())
        Array([0.+0.j, 0.+0.j], dtype=complex64)
        """
        return _complex_zeros(self, batch_shape, self._states)

    @property
    def _states(self) -> int:
        return self.state_features or self.features

    @property
    def _widths(self):
        return (self._states, self._states, self.features)

    def _run(self, x_gates, over):
        re, im, direct = jnp.split(x_gates, [self._states, 2 * self._states], axis=-1)
        nu, theta, gamma = (
            self._broadcast(v, re.ndim) for v in (self.nu, self.theta, self.gamma)
        )
        eigenvalues = jnp.exp(jax.lax.complex(-jnp.exp(nu), jnp.exp(theta)))
        scale = jnp.exp(gamma)
        b = jax.lax.complex(scale * re, scale * im)
        s, final = over.recurrence(jnp.broadcast_to(eigenvalues, b.shape), b)
        parts = jnp.concatenate([s.real, s.imag], axis=-1)
        return final, self._dot(parts, self.w_y) + direct

    def _nu_init(self, key, shape, dtype):
        """Radii whose squares are uniform: an even density in the ring."""
        # By the distance of the squares from 1, which near it has more digits.
        closest, farthest = 1 - self.r_max**2, 1 - self.r_min**2
        uniform = jax.random.uniform(key, shape, dtype)
        distance = farthest - (farthest - closest) * uniform
        # Neither a radius of 1 nor one of 0, whose logarithms are infinite.
        limits = jnp.finfo(dtype).tiny, 1 - jnp.finfo(dtype).epsneg
        return jnp.log(-0.5 * jnp.log1p(-jnp.clip(distance, *limits)))

    def _theta_init(self, key, shape, dtype):
        tiny = jnp.finfo(dtype).tiny
        return jnp.log(jax.random.uniform(key, shape, dtype, tiny, self.max_phase))

    def _gamma_init(self, key, shape, dtype):
        del key
        nu = jnp.asarray(self.nu, dtype)
        return 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))


class RGLRUCell(LinearCell):
    """The real-gated linear recurrent unit (De et al., 2024).

    As in "Griffin", arXiv:2402.19427, equations 1 to 4:

        r, i = sigmoid(x w_r + b_r), sigmoid(x w_i + b_i)
        a = sigmoid(-decay) ** (c r), with c = 8
        h' = a * h + sqrt(1 - a**2) * (i * x)

    with dense gates. The state has the features of the inputs; inputs with another
    number of them are projected first (`w_in`), as the linear layer before it does in
    the paper's block.

    Attributes:
        r_min, r_max: at the start `sigmoid(-decay) ** c`, which is `a` where `r` is 1
            and most is forgotten, is uniform between them.

    Raises:
        ValueError: `r_min`, `r_max` are not in order between 0 and 1.

    >>> cell = RGLRUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'decay', 'w_in', 'w_x'])
    """

    r_min: float = 0.9
    r_max: float = 0.999
    gates: ClassVar[int] = 3
    bias_gates: ClassVar[int | None] = 2
    # "c is a scalar-valued constant set to 8", below equation 4.
    power: ClassVar[float] = 8.0
    regularizers: ClassVar[frozenset[str]] = frozenset({"zoneout_h"})

    def __post_init__(self):
        r_min, r_max = check_scalar(r_min=self.r_min), check_scalar(r_max=self.r_max)
        if not 0 < r_min < r_max < 1:
            raise ValueError(
                f"r_min must be below r_max, both between 0 and 1, got {r_min} and "
                f"{r_max}"
            )
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        self.decay = self._vector("decay", self._decay_init)

    def _project(self, x):
        if x.shape[-1] != self.features:
            x = self._input_product(x, "w_in", gates=1)
        return jnp.concatenate([self._input_product(x, gates=2), x], axis=-1)

    def _run(self, x_gates, over):
        r, i, x = jnp.split(x_gates, 3, axis=-1)
        decay = self._broadcast(self.decay, r.ndim)
        log_a = -self.power * jax.nn.softplus(decay) * jax.nn.sigmoid(r)
        # Where r is so small that a is 1: the slope of the root would be infinite.
        rest = jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(x.dtype).tiny)
        added = jnp.sqrt(rest) * (jax.nn.sigmoid(i) * x)
        h, final = over.recurrence(jnp.exp(log_a), added)
        return final, h

    def _decay_init(self, key, shape, dtype):
        radius = jax.random.uniform(key, shape, dtype, self.r_min, self.r_max)
        return jnp.log(jnp.expm1(-jnp.log(radius) / self.power))


class S5Cell(LinearCell):
    """The simplified state space layer (Smith, Warrington and Linderman, 2023).

    As in arXiv:2208.04933, with complex states, discretised by zero-order hold:

        lambda = -exp(log_decay) + i frequency, step = exp(log_step)
        s' = exp(lambda step) * s + (exp(lambda step) - 1) / lambda * (x B)
        h' = 2 Re(s' C) + x D

    The eigenvalues start as those of the normal part of the HiPPO-LegS matrix (Gu et
    al., 2020). The paper's real parts are not kept negative; here they are, as in S4D
    (Gu et al., 2022). `B`, real part and imaginary part, and `D`, a whole matrix, are
    the columns of `w_x`; `w_y` has `2 Re C` above `-2 Im C`. What surrounds the
    recurrence in the paper's layer (norm, gate, skip connection) is not part of the
    cell.

    Attributes:
        state_features: number of conjugate pairs of states, of which one each is kept;
            `features` if None.
        blocks: diagonal blocks that the eigenvalues start as those of.
        dt_min, dt_max: steps start between them, evenly on a logarithmic scale.

    Raises:
        ValueError: `blocks` does not divide `state_features`; `dt_min`, `dt_max` are
            not positive and in order.

    >>> cell = S5Cell(features=8, state_features=4)
    >>> x, s = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (s, y), variables = cell.init_with_output(jax.random.key(0), s, x)
    >>> y.shape, s.dtype.name, variables["params"]["w_x"].shape
    ((2, 8), 'complex64', (3, 16))
    """

    state_features: int | None = None
    blocks: int = 1
    dt_min: float = 0.001
    dt_max: float = 0.1
    gates: ClassVar[int] = 3
    bias_gates: ClassVar[int | None] = 0

    def __post_init__(self):
        _check_state_features(self.state_features)
        states = self.state_features or check_min(1, features=self.features)
        if states % check_min(1, blocks=self.blocks):
            raise ValueError(
                f"blocks must divide the {states} state features, got {self.blocks}"
            )
        if check_positive(dt_min=self.dt_min) >= check_positive(dt_max=self.dt_max):
            raise ValueError(
                f"dt_min must be below dt_max, got {self.dt_min} and {self.dt_max}"
            )
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        states = self._states
        eigenvalues, _ = _hippo(2 * states // self.blocks, self.blocks)
        self.log_decay = self._vector(
            "log_decay", _constant(np.log(-np.real(eigenvalues))), states
        )
        self.frequency = self._vector(
            "frequency", _constant(np.imag(eigenvalues)), states
        )
        self.log_step = self._vector("log_step", self._log_step_init, states)
        self.w_y = self.param(
            "w_y",
            narrowed(self._w_y_init),
            (2 * states, self.features),
            self.param_dtype,
        )

    def initial_state(self, batch_shape):
        """Complex zeros.

        >>> S5Cell(features=8, state_features=2).initial_state(())
        Array([0.+0.j, 0.+0.j], dtype=complex64)
        """
        return _complex_zeros(self, batch_shape, self._states)

    @property
    def _states(self) -> int:
        return self.state_features or self.features

    @property
    def _widths(self):
        return (self._states, self._states, self.features)

    def _project(self, x):
        shape = (x.shape[-1], sum(self._widths))
        w_x = self.param("w_x", narrowed(self._w_x_init), shape, self.param_dtype)
        return self._dot(x, w_x)

    def _run(self, x_gates, over):
        re, im, direct = jnp.split(x_gates, [self._states, 2 * self._states], axis=-1)
        log_decay, frequency, log_step = (
            self._broadcast(v, re.ndim)
            for v in (self.log_decay, self.frequency, self.log_step)
        )
        eigenvalues = jax.lax.complex(-jnp.exp(log_decay), frequency)
        step = jnp.exp(log_step)
        a = jnp.exp(jax.lax.complex(eigenvalues.real * step, frequency * step))
        b = (a - 1) / eigenvalues * jax.lax.complex(re, im)
        s, final = over.recurrence(jnp.broadcast_to(a, b.shape), b)
        parts = jnp.concatenate([s.real, s.imag], axis=-1)
        return final, self._dot(parts, self.w_y) + direct

    def _log_step_init(self, key, shape, dtype):
        return jax.random.uniform(
            key, shape, dtype, np.log(self.dt_min), np.log(self.dt_max)
        )

    def _w_x_init(self, key, shape, dtype):
        """`B` in the eigenvectors' coordinates, and `D`."""
        states, features = self._states, self.features
        _, vectors = _hippo(2 * states // self.blocks, self.blocks)
        keys = jax.random.split(key)
        # With the inputs as rows: x (V* B)^T = x B^T conj(V).
        b = meta.unbox(self.kernel_init(keys[0], (shape[0], 2 * states), dtype))
        re, im = (
            b @ jnp.asarray(p, dtype) for p in (np.real(vectors), -np.imag(vectors))
        )
        direct = meta.unbox(self.kernel_init(keys[1], (shape[0], features), dtype))
        return jnp.concatenate([re, im, direct], axis=-1)

    def _w_y_init(self, key, shape, dtype):
        """`C` in the eigenvectors' coordinates.

        With it, outputs are twice a real part.
        """
        _, vectors = _hippo(shape[0] // self.blocks, self.blocks)
        c = meta.unbox(self.kernel_init(key, shape, dtype)).T
        re, im = (
            c @ jnp.asarray(p, dtype) for p in (np.real(vectors), np.imag(vectors))
        )
        return 2 * jnp.concatenate([re, -im], axis=-1).T


def _complex_zeros(cell: Cell, batch_shape: tuple[int, ...], states: int) -> Array:
    real = Cell.initial_state(cell, batch_shape)
    zeros = jnp.zeros((*real.shape[:-1], states), real.dtype)
    return jax.lax.complex(zeros, zeros)


def _check_state_features(state_features: int | None) -> None:
    if state_features is not None:
        check_min(1, state_features=state_features)


def _constant(values: np.ndarray) -> Initializer:
    return lambda key, shape, dtype: jnp.asarray(values, dtype).reshape(shape)


def _hippo(size: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues with a positive imaginary part, and their vectors as columns.

    They are those of the normal part of the HiPPO-LegS matrix, as so many diagonal
    blocks of that size.
    """
    n = np.arange(size)
    root = np.sqrt(2 * n + 1)
    lower = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    # The rank-one part that is left out makes it -1/2 and a skew-symmetric matrix.
    normal = lower + np.outer(root, root) / 2
    frequencies, vectors = np.linalg.eigh(-1j * (normal + np.eye(size) / 2))
    kept = slice(size // 2, None)
    eigenvalues = np.tile(-0.5 + 1j * frequencies[kept], blocks)
    return eigenvalues, np.kron(np.eye(blocks), vectors[:, kept])
