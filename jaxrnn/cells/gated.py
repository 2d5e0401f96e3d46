"""Variants of the LSTM and the GRU, and other cells whose gates read the state."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.typing import Initializer

from jaxrnn._validation import (
    check_min,
    check_positive,
    check_probability,
    check_scalar,
)
from jaxrnn.cells.base import Cell, ForgetBias
from jaxrnn.equations import NO_DROP
from jaxrnn.types import Array, Float, LSTMState

# What those with a memory cell drop, and those without.
_OF_LSTM = frozenset({"zoneout_h", "zoneout_c", "recurrent_dropout", "update_dropout"})
_OF_GRU = _OF_LSTM - {"zoneout_c"}


class _LSTMLike(ForgetBias):
    """A cell with the state and the initial bias of an LSTM, gates i f g o."""

    gates: ClassVar[int] = 4
    forget_gate: ClassVar[int] = 1
    regularizers: ClassVar[frozenset[str]] = _OF_LSTM

    def initial_state(self, batch_shape):
        """Like `LSTMCell.initial_state`, without a projection."""
        h, c = (super(_LSTMLike, self).initial_state(batch_shape) for _ in range(2))
        return LSTMState(h, c)


class PeepholeLSTMCell(_LSTMLike):
    """The LSTM whose gates see the memory cell.

    As in Gers and Schmidhuber (2000, "Recurrent nets that time and count") and Gers,
    Schraudolph and Schmidhuber (2002):

        i, f = sigmoid(... + w_c[i] * c), sigmoid(... + w_c[f] * c)
        c' = f * c + i * tanh(...)
        o = sigmoid(... + w_c[o] * c'), h' = o * tanh(c')

    with ... the rows of `x w_x + h w_h + b`. Gates lie in the order i f g o, the
    weights `w_c` of the memory cell in the order i f o.

    Attributes:
        peephole_init: makes `w_c`.
        forget_bias: added to the initial bias of the forget gate.

    >>> cell = PeepholeLSTMCell(features=8)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> y.shape, variables["params"]["w_c"].shape
    ((2, 8), (24,))
    """

    peephole_init: Initializer = nn.initializers.normal(0.1)

    def setup(self):
        """Creates the parameters."""
        super().setup()
        self.w_c = self._vector("w_c", self.peephole_init, 3 * self.features)

    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        w_i, w_f, w_o = (
            self._broadcast(w, x_gates.ndim) for w in jnp.split(self.w_c, 3)
        )
        i, f, g, o = jnp.split(
            x_gates + self._dot(drop.of_state(state.h), w_h), 4, axis=-1
        )
        i = jax.nn.sigmoid(i + w_i * state.c)
        f = jax.nn.sigmoid(f + w_f * state.c)
        c = f * state.c + i * drop.of_update(jnp.tanh(g))
        h = jax.nn.sigmoid(o + w_o * c) * jnp.tanh(c)
        return LSTMState(h, c), h


class CoupledLSTMCell(_LSTMLike):
    """The LSTM with coupled input and forget gate (Greff et al., 2017).

    As the CIFG of "LSTM: a search space odyssey", without its peepholes:

        f, o = sigmoid(...), g = tanh(...)
        c' = f * c + (1 - f) * g, h' = o * tanh(c')

    The paper computes i and has f = 1 - i, which is the same with the other sign of
    weights. Gates lie in the order f g o.

    Attributes:
        forget_bias: added to the initial bias of the forget gate.

    >>> cell = CoupledLSTMCell(features=8)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> y.shape, variables["params"]["w_x"].shape
    ((2, 8), (3, 24))
    """

    gates: ClassVar[int] = 3
    forget_gate: ClassVar[int] = 0

    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        f, g, o = jnp.split(
            x_gates + self._dot(drop.of_state(state.h), w_h), 3, axis=-1
        )
        f = jax.nn.sigmoid(f)
        c = f * state.c + (1 - f) * drop.of_update(jnp.tanh(g))
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return LSTMState(h, c), h


class JANETCell(ForgetBias):
    """Just another network: an LSTM with a forget gate alone.

    As in van der Westhuizen and Lasenby (2018, "The unreasonable effectiveness of the
    forget gate", arXiv:1804.04849):

        s = x w_s + h u_s + b_s, n = tanh(...)
        h' = sigmoid(s) * h + (1 - sigmoid(s - beta)) * n

    Gates lie in the order s n.

    Attributes:
        beta: by how much less what is new is held back than the state.
        forget_bias: added to the initial bias of s, where the paper has the logarithm
            of random lengths (Tallec and Ollivier, 2018).

    >>> cell = JANETCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_h', 'w_x'])
    """

    beta: float = 1.0
    gates: ClassVar[int] = 2
    regularizers: ClassVar[frozenset[str]] = _OF_GRU

    def __post_init__(self):
        check_scalar(beta=self.beta)
        super().__post_init__()

    def _step(self, h, x_gates, w_h, drop=NO_DROP):
        s, n = jnp.split(x_gates + self._dot(drop.of_state(h), w_h), 2, axis=-1)
        h = jax.nn.sigmoid(s) * h + jax.nn.sigmoid(self.beta - s) * drop.of_update(
            jnp.tanh(n)
        )
        return h, h


class LayerNormLSTMCell(_LSTMLike):
    """The LSTM with layer normalisation (Ba, Kiros and Hinton, 2016).

    As in the supplementary material of arXiv:1607.06450:

        i, f, g, o = LN(x w_x) + LN(h w_h) + b
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(LN(c'))

    LN normalises all its arguments' features together, four gates where there are four,
    and scales them; its shift of the first two is `b`. Gates lie in the order i f g o.

    Attributes:
        norm_cell: normalise the memory cell where the output reads it.
        epsilon: added to the variance.
        forget_bias: added to the initial bias of the forget gate.

    >>> cell = LayerNormLSTMCell(features=8)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> sorted(variables["params"])
    ['b', 'b_c', 'scale_c', 'scale_h', 'scale_x', 'w_h', 'w_x']
    """

    norm_cell: bool = True
    epsilon: float = 1e-5

    def __post_init__(self):
        _check_epsilon(self.epsilon)
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        ones = nn.initializers.ones_init()
        self.scale_x = self._vector("scale_x", ones, 4 * self.features)
        self.scale_h = self._vector("scale_h", ones, 4 * self.features)
        if self.norm_cell:
            self.scale_c = self._vector("scale_c", ones)
            if self.use_bias:
                self.b_c = self._vector("b_c", nn.initializers.zeros_init())

    def _project(self, x):
        x_gates = super()._project(x)
        return layer_norm(x_gates, self.epsilon) * self._broadcast(self.scale_x, x.ndim)

    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        h_gates = layer_norm(self._dot(drop.of_state(state.h), w_h), self.epsilon)
        gates = x_gates + h_gates * self._broadcast(self.scale_h, x_gates.ndim)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * drop.of_update(
            jnp.tanh(g)
        )
        seen = c
        if self.norm_cell:
            seen = layer_norm(c, self.epsilon)
            seen = seen * self._broadcast(self.scale_c, c.ndim)
            if self.use_bias:
                seen = seen + self._broadcast(self.b_c, c.ndim)
        h = jax.nn.sigmoid(o) * jnp.tanh(seen)
        return LSTMState(h, c), h


class LayerNormGRUCell(Cell):
    """The GRU with layer normalisation (Ba, Kiros and Hinton, 2016).

    As in the supplementary material of arXiv:1607.06450, reset gate after the product:

        r, z = sigmoid(LN(x w_rz) + LN(h u_rz) + b_rz)
        n = tanh(LN(x w_n) + b_n + r * (LN(h u_n) + b_hn))
        h' = (1 - z) * n + z * h

    as in `GRUCell`: the paper's z is 1 - z here. LN normalises r and z together and n
    on its own, and scales; its shift is the bias. Gates lie in the order r z n.

    Attributes:
        epsilon: added to the variance.

    >>> cell = LayerNormGRUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> sorted(variables["params"])
    ['b', 'b_n', 'scale_h', 'scale_x', 'w_h', 'w_x']
    """

    epsilon: float = 1e-5
    gates: ClassVar[int] = 3
    regularizers: ClassVar[frozenset[str]] = _OF_GRU

    def __post_init__(self):
        _check_epsilon(self.epsilon)
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        ones = nn.initializers.ones_init()
        self.scale_x = self._vector("scale_x", ones, 3 * self.features)
        self.scale_h = self._vector("scale_h", ones, 3 * self.features)
        if self.use_bias:
            self.b_n = self._vector("b_n", self.bias_init)

    def _project(self, x):
        return self._normalised(super()._project(x), self.scale_x)

    def _step(self, h, x_gates, w_h, drop=NO_DROP):
        h_gates = self._normalised(self._dot(drop.of_state(h), w_h), self.scale_h)
        cut = [2 * self.features]
        x_rz, x_n = jnp.split(x_gates, cut, axis=-1)
        h_rz, h_n = jnp.split(h_gates, cut, axis=-1)
        if self.use_bias:
            h_n = h_n + self._broadcast(self.b_n, h_n.ndim)
        r, z = jnp.split(jax.nn.sigmoid(x_rz + h_rz), 2, axis=-1)
        n = jnp.tanh(x_n + r * h_n)
        h = (1 - z) * drop.of_update(n) + z * h
        return h, h

    def _normalised(self, gates, scale):
        parts = jnp.split(gates, [2 * self.features], axis=-1)
        parts = [layer_norm(part, self.epsilon) for part in parts]
        return jnp.concatenate(parts, axis=-1) * self._broadcast(scale, gates.ndim)


def layer_norm(x: Float[Array, "*b h"], epsilon: float) -> Float[Array, "*b h"]:
    """`x` with mean 0 and variance 1 over the last axis (Ba et al., 2016).

    >>> layer_norm(jnp.array([1.0, 3.0]), 0.0).tolist()
    [-1.0, 1.0]
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def _check_epsilon(epsilon: float) -> None:
    # With 0 a row of equal numbers, as padding is, has no derivative.
    check_positive(epsilon=epsilon)


class MultiplicativeLSTMCell(_LSTMLike):
    """The multiplicative LSTM (Krause, Lu, Murray and Renals, 2017).

    As in arXiv:1609.07959:

        m = (x w_m) * (h w_h)
        i, f, o = sigmoid(...), g = tanh(...) of x w_x + m w_mh + b
        c' = f * c + i * g, h' = o * tanh(c')

    Gates lie in the order i f g o m, and m has no bias.

    Attributes:
        forget_bias: added to the initial bias of the forget gate.

    >>> cell = MultiplicativeLSTMCell(features=8)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> {name: w.shape for name, w in sorted(variables["params"].items())}
    {'b': (32,), 'w_h': (8, 8), 'w_mh': (8, 32), 'w_x': (3, 40)}
    """

    gates: ClassVar[int] = 5
    recurrent_gates: ClassVar[int | None] = 1
    bias_gates: ClassVar[int | None] = 4

    def setup(self):
        """Creates the parameters."""
        super().setup()
        shape = (self.features, 4 * self.features)
        self.w_mh = self._matrix("w_mh", shape, self.recurrent_init)

    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        x_gates, x_m = jnp.split(x_gates, [4 * self.features], axis=-1)
        m = x_m * self._dot(drop.of_state(state.h), w_h)
        i, f, g, o = jnp.split(x_gates + self._dot(m, self.w_mh), 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * drop.of_update(
            jnp.tanh(g)
        )
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return LSTMState(h, c), h


class MogrifierLSTMCell(_LSTMLike):
    """The LSTM whose input and state scale each other before each step.

    As in Melis, Kocisky and Blunsom (2020, "Mogrifier LSTM", arXiv:1909.01792,
    equations 1 and 2):

        x[i] = 2 sigmoid(h[i-1] q[i]) * x[i-2]    for odd i up to `rounds`
        h[i] = 2 sigmoid(x[i-1] r[i]) * h[i-2]    for even i

    and the last of each go into an LSTM. No product with the inputs can be made for all
    steps at once. The parameters are `mogrify_1`, `mogrify_2` and so on, with `_left`
    and `_right` where they are two.

    Attributes:
        rounds: how many there are; none makes an LSTM of it.
        rank: q and r are products of two matrices through this number of features;
            None: they are whole.
        forget_bias: added to the initial bias of the forget gate.

    >>> cell = MogrifierLSTMCell(features=8, rounds=2, rank=1)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> {name: w.shape for name, w in variables["params"].items() if "1" in name}
    {'mogrify_1_left': (8, 1), 'mogrify_1_right': (1, 3)}
    """

    rounds: int = 5
    rank: int | None = None

    def __post_init__(self):
        check_min(0, rounds=self.rounds)
        if self.rank is not None:
            check_min(1, rank=self.rank)
        super().__post_init__()

    def _project(self, x):
        """The inputs as they are.

        Here the weights alone are made, whose shapes depend on the inputs.
        """
        size = x.shape[-1]
        self._matrix("w_x", (size, 4 * self.features), self.kernel_init)
        for k in range(1, self.rounds + 1):
            shape = (self.features, size) if k % 2 else (size, self.features)
            parts = {f"mogrify_{k}": shape}
            if self.rank is not None:
                parts = {
                    f"mogrify_{k}_left": (shape[0], self.rank),
                    f"mogrify_{k}_right": (self.rank, shape[1]),
                }
            for name, part in parts.items():
                self._matrix(name, part, self.kernel_init, (part[1],))
        return x

    def _check_gates(self, state, x_gates):
        size = self._weight("w_x").shape[0]
        if jnp.shape(x_gates)[-1] != size:
            raise ValueError(
                f"inputs have {jnp.shape(x_gates)[-1]} features, "
                f"but the weights were made for {size}"
            )
        self._check_rows(state, [*jnp.shape(x_gates)[:-1]])

    def _with_bias(self, x_gates):
        return x_gates

    def _step(self, state, x_gates, w_h, drop=NO_DROP):
        x, h = x_gates, drop.of_state(state.h)
        for k in range(1, self.rounds + 1):
            if k % 2:
                x = 2 * jax.nn.sigmoid(self._mogrify(h, k)) * x
            else:
                h = 2 * jax.nn.sigmoid(self._mogrify(x, k)) * h
        gates = self._dot(x, self._weight("w_x")) + self._dot(h, w_h)
        i, f, g, o = jnp.split(super()._with_bias(gates), 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * drop.of_update(
            jnp.tanh(g)
        )
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return LSTMState(h, c), h

    def _mogrify(self, a, k):
        names = [f"mogrify_{k}"]
        if self.rank is not None:
            names = [f"mogrify_{k}_left", f"mogrify_{k}_right"]
        for name in names:
            a = self._dot(a, self._weight(name))
        return a

    def _weight(self, name):
        return meta.unbox(self.get_variable("params", name))


class MGUCell(ForgetBias):
    """The minimal gated unit (Zhou, Wu, Zhang and Zhou, 2016).

    As in "Minimal gated unit for recurrent neural networks", arXiv:1603.09420:

        f = sigmoid(x w_f + h u_f + b_f)
        n = tanh(x w_n + (f * h) u_n + b_n)
        h' = (1 - f) * h + f * n

    Gates lie in the order f n.

    Attributes:
        forget_bias: added to the initial bias of f, which here opens the unit to what
            is new.

    >>> cell = MGUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_h', 'w_x'])
    """

    forget_bias: float = 0.0
    gates: ClassVar[int] = 2
    regularizers: ClassVar[frozenset[str]] = _OF_GRU

    def _step(self, h, x_gates, w_h, drop=NO_DROP):
        x_f, x_n = jnp.split(x_gates, 2, axis=-1)
        w_f, w_n = jnp.split(w_h, 2, axis=-1)
        seen = drop.of_state(h)
        f = jax.nn.sigmoid(x_f + self._dot(seen, w_f))
        n = jnp.tanh(x_n + self._dot(f * seen, w_n))
        h = (1 - f) * h + f * drop.of_update(n)
        return h, h


class UGRNNCell(ForgetBias):
    """The update gate network (Collins, Sohl-Dickstein and Sussillo, 2017).

    As in "Capacity and trainability in recurrent neural networks", arXiv:1611.09913:

        g = sigmoid(x w_g + h u_g + b_g), n = tanh(x w_n + h u_n + b_n)
        h' = g * h + (1 - g) * n

    Gates lie in the order g n.

    Attributes:
        forget_bias: added to the initial bias of g.

    >>> cell = UGRNNCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'w_h', 'w_x'])
    """

    gates: ClassVar[int] = 2
    regularizers: ClassVar[frozenset[str]] = _OF_GRU

    def _step(self, h, x_gates, w_h, drop=NO_DROP):
        g, n = jnp.split(x_gates + self._dot(drop.of_state(h), w_h), 2, axis=-1)
        g = jax.nn.sigmoid(g)
        h = g * h + (1 - g) * drop.of_update(jnp.tanh(n))
        return h, h


class LiGRUCell(Cell):
    """The light GRU (Ravanelli, Brakel, Omologo and Bengio, 2018).

    As in "Light gated recurrent units for speech recognition", arXiv:1803.10225:

        z = sigmoid(N(x w_z) + h u_z + b_z), n = relu(N(x w_n) + h u_n + b_n)
        h' = z * h + (1 - z) * n

    The paper's N is batch normalisation; here it is layer normalisation of each gate
    with a scale, so that a row does not depend on the others of its batch, and a step
    is the same in training and evaluation. Gates lie in the order z n.

    Attributes:
        epsilon: added to the variance.

    >>> cell = LiGRUCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> y.shape, sorted(variables["params"])
    ((2, 8), ['b', 'scale_x', 'w_h', 'w_x'])
    """

    epsilon: float = 1e-5
    gates: ClassVar[int] = 2
    regularizers: ClassVar[frozenset[str]] = _OF_GRU

    def __post_init__(self):
        _check_epsilon(self.epsilon)
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        super().setup()
        ones = nn.initializers.ones_init()
        self.scale_x = self._vector("scale_x", ones, 2 * self.features)

    def _project(self, x):
        parts = jnp.split(super()._project(x), 2, axis=-1)
        parts = [layer_norm(part, self.epsilon) for part in parts]
        scale = self._broadcast(self.scale_x, x.ndim)
        return jnp.concatenate(parts, axis=-1) * scale

    def _step(self, h, x_gates, w_h, drop=NO_DROP):
        z, n = jnp.split(x_gates + self._dot(drop.of_state(h), w_h), 2, axis=-1)
        z = jax.nn.sigmoid(z)
        h = z * h + (1 - z) * drop.of_update(jax.nn.relu(n))
        return h, h


class RHNCell(Cell):
    """The recurrent highway network (Zilly, Srivastava, Koutnik and Schmidhuber, 2017).

    As in arXiv:1607.03474, with several steps for each input and coupled gates:

        n = tanh(x w_n + s u_n[l] + b_n[l]), g = sigmoid(x w_g + s u_g[l] + b_g[l])
        s' = n * g + s * (1 - g)    for l = 1, ..., depth; x only where l = 1

    and h' is the last s'. Gates lie in the order n g; the columns of `w_h`, and `b`,
    have those of one l after those of the other.

    Attributes:
        depth: steps for each input.
        gate_bias: added to the initial biases of g; below zero the state passes at
            first.

    >>> cell = RHNCell(features=8, depth=3)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> {name: w.shape for name, w in sorted(variables["params"].items())}
    {'b': (48,), 'w_h': (8, 48), 'w_x': (3, 16)}
    """

    depth: int = 2
    gate_bias: float = -2.0
    gates: ClassVar[int] = 2
    regularizers: ClassVar[frozenset[str]] = _OF_GRU

    def __post_init__(self):
        check_min(1, depth=self.depth)
        check_scalar(gate_bias=self.gate_bias)
        super().__post_init__()

    @property
    def recurrent_gates(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many gates of all depths the state has a share of.

        >>> RHNCell(8, depth=3).recurrent_gates
        6
        """
        return 2 * self.depth

    def setup(self):
        """Creates the parameters."""
        self.w_h = self._matrix(
            "w_h",
            (self.features, self.recurrent_gates * self.features),
            self.recurrent_init,
        )
        if self.use_bias:
            shape = (self.recurrent_gates * self.features,)
            self.b = self.param("b", self._bias_init, shape, self.param_dtype)

    def _with_bias(self, x_gates):
        return x_gates  # Each depth has its own, in `_step`.

    def _step(self, h, x_gates, w_h, drop=NO_DROP):
        for k, w in enumerate(jnp.split(w_h, self.depth, axis=-1)):
            gates = self._dot(drop.of_state(h), w)
            if k == 0:
                gates = gates + x_gates
            if self.use_bias:
                b = jnp.split(self.b, self.depth)[k]
                gates = gates + self._broadcast(b, gates.ndim)
            n, g = jnp.split(gates, 2, axis=-1)
            g = jax.nn.sigmoid(g)
            h = drop.of_update(jnp.tanh(n)) * g + h * (1 - g)
        return h, h

    @nn.nowrap
    def _bias_init(self, key, shape, dtype):
        b = self.bias_init(key, shape, dtype)
        for gate in range(1, 2 * self.depth, 2):
            b = self._add_to_gate(b, gate, self.gate_bias)
        return b


class MinimalRNNCell(Cell):
    """The minimal RNN (Chen, 2017).

    As in "MinimalRNN: toward more interpretable and trainable recurrent neural
    networks", arXiv:1711.06788:

        v = tanh(x w_x + b_v)
        u = sigmoid(h w_h + v w_v + b)
        h' = u * h + (1 - u) * v

    >>> cell = MinimalRNNCell(features=8)
    >>> x, h = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
    >>> sorted(variables["params"])
    ['b', 'b_v', 'w_h', 'w_v', 'w_x']
    """

    gates: ClassVar[int] = 2  # u, and v itself
    recurrent_gates: ClassVar[int | None] = 1
    bias_gates: ClassVar[int | None] = 1
    regularizers: ClassVar[frozenset[str]] = frozenset(
        {"zoneout_h", "recurrent_dropout"}
    )

    def setup(self):
        """Creates the parameters."""
        super().setup()
        shape = (self.features, self.features)
        self.w_v = self._matrix("w_v", shape, self.kernel_init)
        if self.use_bias:
            self.b_v = self._vector("b_v", self.bias_init)

    def _project(self, x):
        v = self._input_product(x, gates=1)
        if self.use_bias:
            v = v + self._broadcast(self.b_v, v.ndim)
        v = jnp.tanh(v)
        return jnp.concatenate([self._dot(v, self.w_v), v], axis=-1)

    def _step(self, h, x_gates, w_h, drop=NO_DROP):
        u, v = jnp.split(x_gates, 2, axis=-1)
        u = jax.nn.sigmoid(u + self._dot(drop.of_state(h), w_h))
        h = u * h + (1 - u) * v
        return h, h


class SCRNCell(Cell):
    """The structurally constrained recurrent network.

    As in Mikolov, Joulin, Chopra, Mathieu and Ranzato (2014, "Learning longer memory in
    recurrent neural networks", arXiv:1412.7753), beside the state there are slow
    context features:

        s' = (1 - alpha) * (x w_s) + alpha * s
        h' = sigmoid(x w_x + s' w_sh + h w_h + b)

    The output is `h'` and `s'` side by side, as the paper's output layer reads both;
    the state is the same array.

    Attributes:
        context_features: how many of the `features`, the last ones, are the context; a
            quarter if None.
        alpha: how slow it is, a constant.

    Raises:
        ValueError: `context_features` is not below `features`; `alpha` is not from 0
            to 1.

    >>> cell = SCRNCell(features=8, context_features=2)
    >>> x, state = jnp.ones((2, 3)), cell.initial_state((2,))
    >>> (state, y), variables = cell.init_with_output(jax.random.key(0), state, x)
    >>> {name: w.shape for name, w in sorted(variables["params"].items())}
    {'b': (6,), 'w_h': (6, 6), 'w_sh': (2, 6), 'w_x': (3, 8)}
    """

    context_features: int | None = None
    alpha: float = 0.95
    gates: ClassVar[int] = 2
    bias_gates: ClassVar[int | None] = 1
    regularizers: ClassVar[frozenset[str]] = frozenset({"zoneout_h"})

    def __post_init__(self):
        check_probability(alpha=self.alpha)
        if self.context_features is not None:
            check_min(1, context_features=self.context_features)
        super().__post_init__()
        if self._context >= self.features:
            raise ValueError(
                f"context_features must be below features ({self.features}), "
                f"got {self._context}"
            )

    def setup(self):
        """Creates the parameters."""
        fast, context = self._widths
        init = self.recurrent_init
        self.w_h = self._matrix("w_h", (fast, fast), init, (fast,))
        self.w_sh = self._matrix("w_sh", (context, fast), self.kernel_init, (fast,))
        if self.use_bias:
            self.b = self.param("b", self._bias_init, (fast,), self.param_dtype)

    @property
    def _context(self) -> int:
        return self.context_features or max(1, self.features // 4)

    @property
    def _widths(self):
        return (self.features - self._context, self._context)

    def _step(self, state, x_gates, w_h):
        cut = [self._widths[0]]
        h, s = jnp.split(state, cut, axis=-1)
        x_h, x_s = jnp.split(x_gates, cut, axis=-1)
        s = (1 - self.alpha) * x_s + self.alpha * s
        h = jax.nn.sigmoid(x_h + self._dot(s, self.w_sh) + self._dot(h, w_h))
        state = jnp.concatenate([h, s], axis=-1)
        return state, state
