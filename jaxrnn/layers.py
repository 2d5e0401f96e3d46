"""The recurrent layers: `Layer` of any cell, and `RNN`, `LSTM` and `GRU`.

`RNN`, `LSTM` and `GRU` match PyTorch's layers and take almost the same arguments.

Every layer of the library has the same three methods, so that each can stand where
another does:

    outputs, state = layer(x, lengths, segment_ids, state=..., train=...)
    output, state = layer.step(x, state)          the same, one time step at a time
    state = layer.initial_state(batch_shape)

The state is given by name alone: `flax.linen.Sequential` unpacks what a layer returns
and would start the next one from the state of the last. `Stack` is what to use there.

`x` is `[*b, t, d]` with any number of batch axes, none included, and may be padded; the
state is a flat tuple with one entry per cell, in PyTorch's order. The files `scan` and
`segments` define what happens at padding and where sequences share a row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from flax.typing import Initializer
from jax.typing import ArrayLike

from jaxrnn import cells
from jaxrnn._validation import check_min, check_probability, check_shape
from jaxrnn.calls import LayerModule, layer_call, needs_variables
from jaxrnn.combinators import Bidirectional, Skip, Stack, check_dropout_between
from jaxrnn.equations import Activation
from jaxrnn.recurrent import REGULARIZERS, Backend, Recurrent
from jaxrnn.types import Array, Dtype, Float, Int, State


class Layer(LayerModule):
    """`num_layers` layers of one kind of cell, in one or both directions.

    Parameters and state entries are ordered and named as in PyTorch: `l0`,
    `l0_reverse`, `l1`, and so on.

    All arguments but the first are keyword-only, so that PyTorch's
    `(input_size, hidden_size)` raises an error instead of being misread.

    >>> import jax
    >>> layer = Layer(cells.MGUCell, features=8, num_layers=2, bidirectional=True)
    >>> x = jnp.ones((2, 5, 3))
    >>> (y, state), variables = layer.init_with_output(jax.random.key(0), x)
    >>> y.shape, len(state), sorted(variables["params"])
    ((2, 5, 16), 4, ['l0', 'l0_reverse', 'l1', 'l1_reverse'])
    >>> options = {"rounds": 4}
    >>> layer = Layer(cells.MogrifierLSTMCell, features=8, cell_options=options)
    >>> layer.resolved_backends
    ('scan',)

    Attributes:
        cell_type: a class of `jaxrnn.cells`, or a subclass of `cells.Cell`.
        features: outputs of each direction of each layer.
        num_layers: how many are on top of each other.
        bidirectional: read in both directions; their outputs stand side by side.
        dropout: probability of dropping a feature between two layers, in training.
        locked_dropout: drop the same features at all steps of a sequence (Gal and
            Ghahramani, 2016), instead of others at each.
        input_dropout: probability of dropping a feature of the first layer's inputs.
        zoneout_h, zoneout_c, recurrent_dropout, update_dropout: of the cells, as
            `Recurrent` says.
        learned_initial_state: as `Recurrent` says; the parameters of layer 0 are
            `l0_initial`.
        skip, layer_norm: between layers, as `Stack` says.
        use_bias: add biases.
        kernel_init: makes the weights of the inputs, one matrix `[d, h]` for each gate.
        recurrent_init: makes those of the state, one matrix `[h, h]` for each gate.
        bias_init: makes the biases.
        dtype: of products and outputs; `param_dtype` if None. The state is kept in it
            too, but never in less than float32.
        param_dtype: of the parameters.
        torch_init: draw all parameters as PyTorch does, instead of by the three
            above and `forget_bias`.
        backend: `"native"`, `"fused"` or `"scan"`, of `jaxrnn.functional`, or `"auto"`
            for the fastest there is.
        remat_chunk: steps between the states that the backward pass keeps, which
            computes the others again; None keeps all it needs. For long sequences.
        unroll: steps in an iteration of the compiled loop, as `Recurrent` says.
        cell_options: what else the cells are made with, by name.

    Raises:
        TypeError: `cell_type` is no such class, `cell_options` names an option that the
            cell does not have, or what should be a number is not one.
        ValueError: a number is out of range.
    """

    cell_type: type[cells.Cell]
    _: dataclasses.KW_ONLY
    features: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    locked_dropout: bool = False
    input_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    recurrent_dropout: float = 0.0
    update_dropout: float = 0.0
    learned_initial_state: bool = False
    skip: Skip | None = None
    layer_norm: bool = False
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_init: Initializer = nn.initializers.orthogonal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    torch_init: bool = False
    backend: Backend = "auto"
    remat_chunk: int | None = None
    unroll: int = 1
    cell_options: Mapping[str, Any] = FrozenDict()

    def __post_init__(self):
        if not isinstance(self.cell_type, type) or not issubclass(
            self.cell_type, cells.Cell
        ):
            raise TypeError(
                "cell_type must be a class of jaxrnn.cells, "
                f"got {self.cell_type!r:.200}: wrap any other Flax cell in "
                "Recurrent(cell)"
            )
        # A module is hashable.
        object.__setattr__(self, "cell_options", FrozenDict(self.cell_options))
        known = {field.name for field in dataclasses.fields(self.cell_type)}
        unknown = sorted(set(self.cell_options) - (known - _OF_EVERY_CELL))
        if unknown:
            raise TypeError(
                f"{self.cell_type.__name__} has no option {unknown[0]!r}, it has "
                f"{sorted(known - _OF_EVERY_CELL)}"
            )
        # The cell and `Recurrent` check what they are made with.
        self._recurrent(self._cell(parent=None), parent=None)
        check_min(1, num_layers=self.num_layers)
        check_probability(dropout=self.dropout)
        check_dropout_between(self.num_layers, self.dropout)
        super().__post_init__()

    def setup(self):
        """Creates the submodules."""
        self.stack = Stack(
            [self._layer(f"l{k}") for k in range(self.num_layers)],
            self.dropout,
            self.locked_dropout,
            input_dropout=self.input_dropout,
            skip=self.skip,
            layer_norm=self.layer_norm,
            param_dtype=self.param_dtype,
            shared_features=self._cell(parent=None).time_features,
        )

    @layer_call
    def __call__(
        self,
        x: Float[Array, "*b t d"],
        lengths: Int[ArrayLike, "*b"] | None = None,
        segment_ids: Int[ArrayLike, "*b t"] | None = None,
        *,
        state: State | None = None,
        reverse: bool = False,
        train: bool = False,
    ) -> tuple[Float[Array, "*b t h"], State]:
        """Runs the layers; arguments as for `Recurrent.__call__`.

        `train` turns dropout on (rng stream `"dropout"`).

        With `bidirectional`, the outputs of both directions stand side by side.
        """
        return self.stack(
            x,
            lengths,
            segment_ids,
            state=state,
            reverse=reverse,
            train=train,
        )

    @needs_variables
    def project(self, x: Float[Array, "*b d"]) -> Float[Array, "*b g"]:
        """Like `Recurrent.project`, of the first layer; not with `bidirectional`."""
        return self.stack.project(x)

    @needs_variables
    def step(
        self, x: Float[Array, "*b d"], state: State, *, projected: bool = False
    ) -> tuple[Float[Array, "*b h"], State]:
        """Like `Recurrent.step`: without dropout, and not with `bidirectional`."""
        return self.stack.step(x, state, projected=projected)

    def initial_state(self, batch_shape: tuple[int, ...]) -> State:
        """The state before anything was read.

        >>> layer = GRU(features=2, bidirectional=True)
        >>> [h.tolist() for h in layer.initial_state((1,))]
        [[[0.0, 0.0]], [[0.0, 0.0]]]
        """
        batch_shape = check_shape(batch_shape=batch_shape)
        if self.learned_initial_state:
            if self.scope is not None:
                return self.stack.initial_state(batch_shape)
            return self._recurrent(self._cell(parent=None), parent=None).initial_state(
                batch_shape
            )  # which says what is missing
        cell = self._cell(parent=None)
        # Arrays of their own: a step that is jitted may be given them to reuse.
        return tuple(cell.initial_state(batch_shape) for _ in range(self.num_states))

    @property
    def num_states(self) -> int:
        """How many entries of a state are this layer's: one for each cell.

        >>> GRU(features=2, num_layers=3, bidirectional=True).num_states
        6
        """
        return self.num_layers * (2 if self.bidirectional else 1)

    @property
    def supports_step(self) -> bool:
        """Whether the layer has `step`: not if it reads in reverse.

        >>> GRU(features=2, bidirectional=True).supports_step
        False
        """
        return not self.bidirectional

    @property
    def resolved_backends(self) -> tuple[str, ...]:
        """Which recurrence runs each cell, in the order of the state.

        >>> LSTM(features=8, num_layers=2, backend="fused").resolved_backends
        ('fused', 'fused')
        """
        one = self._recurrent(self._cell(parent=None), parent=None)
        return one.resolved_backends * self.num_states

    @nn.nowrap
    def _layer(self, name: str) -> nn.Module:
        forward = self._named(name)
        if not self.bidirectional:
            return forward
        return Bidirectional(forward, self._named(f"{name}_reverse"))

    @nn.nowrap
    def _named(self, name: str) -> Recurrent:
        # A module without parameters needs no name.
        place = {"name": f"{name}_initial"} if self.learned_initial_state else {}
        return self._recurrent(self._cell(name=name), **place)

    @nn.nowrap
    def _recurrent(self, cell: cells.Cell, **place: Any) -> Recurrent:
        return Recurrent(
            cell,
            self.backend,
            self.remat_chunk,
            **{name: getattr(self, name) for name in REGULARIZERS},
            learned_initial_state=self.learned_initial_state,
            unroll=self.unroll,
            **place,
        )

    @nn.nowrap
    def _cell(self, **place: Any) -> cells.Cell:
        return self.cell_type(
            features=self.features,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            recurrent_init=self.recurrent_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            torch_init=self.torch_init,
            **self._cell_options(),
            **place,
        )

    @nn.nowrap
    def _cell_options(self) -> Mapping[str, Any]:
        return self.cell_options


# Given by arguments of the layer, or by Flax.
_OF_EVERY_CELL = {field.name for field in dataclasses.fields(cells.Cell)}


class RNN(Layer):
    """`torch.nn.RNN`: the simple recurrent network (Elman, 1990).

    Attributes:
        activation: `"tanh"` or `"relu"`.

    >>> import jax
    >>> layer = RNN(features=8, num_layers=2, activation="relu")
    >>> x = jnp.ones((2, 5, 3))
    >>> (y, state), variables = layer.init_with_output(jax.random.key(0), x)
    >>> y.shape, len(state), sorted(variables["params"])
    ((2, 5, 8), 2, ['l0', 'l1'])
    """

    cell_type: type[cells.Cell] = dataclasses.field(default=cells.RNNCell, init=False)
    cell_options: Mapping[str, Any] = dataclasses.field(
        default=FrozenDict(), init=False
    )
    features: int = dataclasses.field(kw_only=False)
    _: dataclasses.KW_ONLY
    activation: Activation = "tanh"

    @nn.nowrap
    def _cell_options(self):
        return {"activation": self.activation}


class LSTM(Layer):
    """`torch.nn.LSTM`: long short-term memory (Hochreiter and Schmidhuber, 1997).

    Attributes:
        proj_size: features that the outputs are projected to; 0 for no projection.
        forget_bias: added to the forget gate's initial bias; PyTorch has none, 1 is the
            advice of Jozefowicz et al. (2015).

    >>> import jax
    >>> layer = LSTM(features=8, bidirectional=True)
    >>> x = jnp.ones((2, 5, 3))
    >>> (y, (forward, backward)), variables = layer.init_with_output(
    ...     jax.random.key(0), x, lengths=jnp.array([5, 0])
    ... )
    >>> y.shape, backward.c.shape, sorted(variables["params"])
    ((2, 5, 16), (2, 8), ['l0', 'l0_reverse'])
    """

    cell_type: type[cells.Cell] = dataclasses.field(default=cells.LSTMCell, init=False)
    cell_options: Mapping[str, Any] = dataclasses.field(
        default=FrozenDict(), init=False
    )
    features: int = dataclasses.field(kw_only=False)
    _: dataclasses.KW_ONLY
    proj_size: int = 0
    forget_bias: float = 1.0

    @nn.nowrap
    def _cell_options(self):
        return {"proj_size": self.proj_size, "forget_bias": self.forget_bias}


class GRU(Layer):
    """`torch.nn.GRU`: the gated recurrent unit (Cho et al., 2014).

    The reset gate is applied after the product.

    >>> import jax
    >>> layer = GRU(features=8)
    >>> x = jnp.ones((5, 3))
    >>> (y, state), variables = layer.init_with_output(jax.random.key(0), x)
    >>> y.shape, state[0].shape
    ((5, 8), (8,))
    """

    cell_type: type[cells.Cell] = dataclasses.field(default=cells.GRUCell, init=False)
    cell_options: Mapping[str, Any] = dataclasses.field(
        default=FrozenDict(), init=False
    )
    features: int = dataclasses.field(kw_only=False)
    _: dataclasses.KW_ONLY  # of the fields that Flax adds
