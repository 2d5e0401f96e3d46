"""What every recurrent cell of the library has: weights, init and dtypes.

A cell knows about one step. Time, padding and direction are the business of `scan`.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.typing import Initializer

from jaxrnn._validation import check_min, check_scalar, check_shape
from jaxrnn.calls import check_fields
from jaxrnn.equations import Drop
from jaxrnn.products import product
from jaxrnn.types import Array, CellState, Dtype, Float, accumulation_dtype


class Cell(nn.RNNCellBase):
    """A recurrent cell with its weights: what all cells of the library share.

    One of your own defines `gates` and `_step`.

    A cell is used in two ways. `project` all inputs at once, then `recur` step by step:
    what this library's layers do. Or `cell(state, x)`, one step from raw inputs: the
    protocol of `flax.linen.RNN`, where it works as well.

    Attributes:
        features: size of the state, and of the output unless it is projected.
        use_bias: add biases.
        kernel_init: makes the weights of the inputs, one matrix `[d, h]` for each gate.
        recurrent_init: makes those of the state, one matrix `[h, h]` for each gate.
        bias_init: makes the biases.
        dtype: of products and outputs; `param_dtype` if None. States are kept in it
            too, but never in less than float32.
        param_dtype: of the parameters.
        torch_init: draw all parameters as PyTorch's RNN, LSTM and GRU do, instead
            of by the three above: from -1/sqrt(features) to 1/sqrt(features), and a
            bias that is the sum of two of PyTorch's as their sum.

    >>> class Elman(Cell):
    ...     gates = 1
    ...
    ...     def _step(self, h, x_gates, w_h):
    ...         h = jnp.tanh(x_gates + h @ w_h)
    ...         return h, h
    >>> from jaxrnn import Layer
    >>> layer = Layer(Elman, features=8, num_layers=2, bidirectional=True)
    >>> y, _ = layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0]
    >>> y.shape
    (2, 5, 16)
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_init: Initializer = nn.initializers.orthogonal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    torch_init: bool = False

    gates: ClassVar[int]
    # Of how many gates the state has a share (none: there is no w_h), and how many, the
    # first ones, have a bias; all of them if None.
    recurrent_gates: ClassVar[int | None] = None
    bias_gates: ClassVar[int | None] = None
    # Which arguments of `Recurrent` have a meaning for the cell: "zoneout_h" where the
    # output is the state, or its `h`, "zoneout_c" with a memory cell, and those that
    # `_step` takes as `drop`, "recurrent_dropout" and "update_dropout".
    regularizers: ClassVar[frozenset[str]] = frozenset()
    # Whether PyTorch has the cell: `torch_init` is for those.
    has_torch_init: ClassVar[bool] = False

    def __new__(cls, *args: Any, **options: Any):
        """Checks the arguments, and makes an object for `__init__` to fill."""
        check_fields(cls, args, options)
        return super().__new__(cls)

    def __post_init__(self):
        check_min(1, features=self.features)
        if not isinstance(self.use_bias, bool):
            hint = "give all but the number of features by name"
            if isinstance(self.use_bias, int):
                hint = (
                    "the number of features going in is not an argument, the first "
                    "inputs decide"
                )
            raise TypeError(
                f"use_bias must be True or False, got {self.use_bias!r}: {hint}"
            )
        for name in ("dtype", "param_dtype"):
            dtype = getattr(self, name)
            if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"{name} must be a floating point type, got {dtype}")
        if self.torch_init and not self.has_torch_init:
            raise ValueError(f"torch_init=True is not for a {type(self).__name__}")
        super().__post_init__()

    def setup(self):
        """Creates the parameters."""
        if self.recurrent_gates != 0:
            number = self.recurrent_gates or self.gates
            shape = (self.output_features, number * self.features)
            init = self._or_torch(self.recurrent_init)
            self.w_h = self._matrix("w_h", shape, init)
        if self.use_bias and self.bias_gates != 0:
            shape = (sum(self._widths[: self.bias_gates]),)
            self.b = self.param("b", self._bias_init, shape, self.param_dtype)

    @nn.compact  # The inputs alone decide the shape of w_x.
    def project(self, x: Float[Array, "*b d"]) -> Float[Array, "*b g"]:
        """`x @ w_x`, the share of the inputs in every gate, without the bias.

        Raises:
            ValueError: if `x` is not floating point, or its number of features is not
                the one that the weights were made for; without a `dtype` also if it is
                wider than the parameters.

        >>> from jaxrnn import RNNCell
        >>> cell = RNNCell(features=2, kernel_init=nn.initializers.ones)
        >>> x = jnp.array([[1.0, 0.5, 0.25]])
        >>> cell.init_with_output(jax.random.key(0), x, method="project")[0]
        Array([[1.75, 1.75]], dtype=float32)
        """
        self._check_inputs(x)
        return self._project(x.astype(self.state_dtype))

    def weights(self, x: Float[Array, "*b d"]) -> dict[str, Array]:
        """The parameters that `jaxrnn.functional` takes, for inputs like `x`.

        By their names, of an `RNNCell`, `LSTMCell` or `GRUCell`; other cells have more.

        Raises:
            ValueError: as `project`.

        >>> from jaxrnn import RNNCell
        >>> weights, _ = RNNCell(features=2).init_with_output(
        ...     jax.random.key(0), jnp.ones((1, 3)), method="weights"
        ... )
        >>> {name: weight.shape for name, weight in sorted(weights.items())}
        {'b': (2,), 'w_h': (2, 2), 'w_x': (3, 2)}
        """
        self._check_inputs(x)
        if not self.has_variable("params", "w_x"):
            self.project(x)  # makes it, or says that it is missing
        names = ("w_x", "w_h", "b", "b_n", "w_p")
        found = {name: meta.unbox(self.get_variable("params", name)) for name in names}
        return {name: weight for name, weight in found.items() if weight is not None}

    def recur(
        self,
        state: CellState,
        x_gates: Float[Array, "*b g"],
        drop: Drop | None = None,
    ) -> tuple[CellState, Float[Array, "*b h"]]:
        """The next state and the output, from what `project` gives; the bias is added.

        `drop` is for cells with one of those `regularizers`.

        Raises:
            ValueError: `x_gates` is not what `project` gives, or its number of rows is
                not that of the state.

        >>> from jaxrnn import RNNCell
        >>> cell = RNNCell(2, activation="relu", recurrent_init=nn.initializers.ones)
        >>> h, x_gates = jnp.array([[3.0, 1.0]]), jnp.array([[0.5, -9.0]])
        >>> cell.init_with_output(jax.random.key(0), h, x_gates, method="recur")[0][1]
        Array([[4.5, 0. ]], dtype=float32)
        """
        self._check_gates(state, x_gates)
        w_h: Any = None
        if self.recurrent_gates != 0:
            w_h = self.w_h.astype(self.compute_dtype)
        options = {} if drop is None else {"drop": drop}
        state, output = self._step(state, self._with_bias(x_gates), w_h, **options)
        return state, output.astype(self.compute_dtype)

    def __call__(
        self, state: CellState, x: Float[Array, "*b d"]
    ) -> tuple[CellState, Float[Array, "*b h"]]:
        """One step from raw inputs: the next state, and the output.

        Raises:
            TypeError: `state` is none of the cell's, as `initial_state` makes them.
            ValueError: its shape does not fit the inputs; or as `project`.

        >>> from jaxrnn import RNNCell
        >>> cell = RNNCell(2, activation="relu", kernel_init=nn.initializers.ones)
        >>> h, x = cell.initial_state((1,)), jnp.array([[1.0, 0.5, 0.25]])
        >>> (h, y), variables = cell.init_with_output(jax.random.key(0), h, x)
        >>> y
        Array([[1.75, 1.75]], dtype=float32)
        """
        self._check_call(state, x)
        return self.recur(state, self.project(x))

    @nn.nowrap
    def _check_call(self, state: CellState, x: Any) -> None:
        called = f"a cell is called as cell(state, x), got {_spelled((state, x))}"
        if not hasattr(x, "shape"):
            raise TypeError(f"x must be an array: {called}")
        self._check_inputs(x)
        key = jax.random.key(0)  # The protocol wants one.
        expected = jax.eval_shape(lambda: self.initialize_carry(key, jnp.shape(x)))
        if jax.tree.structure(state) != jax.tree.structure(expected):
            kind = type(expected).__name__
            kind = f"of type {kind}" if isinstance(expected, tuple) else "one array"
            raise TypeError(
                f"the state of {type(self).__name__} must be {kind}, as initial_state "
                f"returns it: {called}"
            )
        if jax.tree.map(jnp.shape, state) != jax.tree.map(jnp.shape, expected):
            raise ValueError(
                f"the state must have shape {_spelled(expected)} for inputs of shape "
                f"{x.shape}: {called}"
            )

    @nn.nowrap
    def initial_state(self, batch_shape: tuple[int, ...]) -> CellState:
        """The state before anything was read.

        >>> from jaxrnn import GRUCell
        >>> GRUCell(features=2).initial_state((1,))
        Array([[0., 0.]], dtype=float32)
        """
        batch_shape = check_shape(batch_shape=batch_shape)
        return jnp.zeros((*batch_shape, self.features), self.state_dtype)

    @nn.nowrap
    def initialize_carry(self, rng, input_shape: tuple[int, ...]) -> CellState:
        """The same as `initial_state`, under the name that `flax.linen.RNN` uses."""
        return self.initial_state(input_shape[: -self.num_feature_axes])

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input, the last ones, are features.

        >>> from jaxrnn import GRUCell
        >>> GRUCell(features=2).num_feature_axes
        1
        """
        return 1

    @property
    def output_features(self) -> int:
        """The features of an output.

        >>> from jaxrnn import GRUCell, LSTMCell
        >>> GRUCell(features=8).output_features
        8
        >>> LSTMCell(features=8, proj_size=2).output_features
        2
        """
        return self.features

    @property
    def time_features(self) -> int:
        """How many of the inputs' features, the last ones, are lengths of time steps.

        They have no weights.

        >>> from jaxrnn.cells import CfCCell, GRUCell
        >>> GRUCell(8).time_features, CfCCell(8, time_feature=True).time_features
        (0, 1)
        """
        return 0

    @property
    def compute_dtype(self) -> Dtype:
        """The dtype of products and outputs.

        >>> from jaxrnn import GRUCell
        >>> GRUCell(features=2, dtype=jnp.bfloat16).compute_dtype.__name__
        'bfloat16'
        """
        return self.param_dtype if self.dtype is None else self.dtype

    @property
    def state_dtype(self) -> Dtype:
        """The dtype of states, never less than float32.

        >>> from jaxrnn import GRUCell
        >>> GRUCell(features=2, dtype=jnp.bfloat16).state_dtype.__name__
        'float32'
        """
        return accumulation_dtype(self.compute_dtype)

    @nn.nowrap
    def _step(
        self, state: Any, x_gates: Float[Array, "*b g"], w_h: Float[Array, "h g"]
    ) -> tuple[Any, Float[Array, "*b h"]]:
        """The next state, and the output in its dtype; the bias is in `x_gates`."""
        raise TypeError(f"{type(self).__name__} does not define a step")

    @nn.nowrap
    def _project(self, x: Float[Array, "*b d"]) -> Float[Array, "*b g"]:
        """What `project` returns, of inputs in the dtype of the state."""
        return self._input_product(x)

    @property
    def _widths(self) -> tuple[int, ...]:
        """The features of each gate in `x_gates`."""
        return (self.features,) * self.gates

    @nn.nowrap
    def _input_product(
        self, x: Float[Array, "*b d"], name: str = "w_x", gates: int | None = None
    ) -> Float[Array, "*b g"]:
        """`x` times a weight with columns for the first `gates` gates; in `project`."""
        widths = self._widths[:gates]
        shape = (x.shape[-1], sum(widths))
        init = self._or_torch(self.kernel_init)
        w_x = self._matrix(name, shape, init, widths)
        return product(x, w_x, self.compute_dtype)

    @nn.nowrap
    def _dot(
        self, a: Float[Array, "*b h"], w: Float[Array, "h g"]
    ) -> Float[Array, "*b g"]:
        """Their product, with factors in the dtype that the cell computes in."""
        return product(a, w.astype(self.compute_dtype), self.compute_dtype)

    @nn.nowrap
    def _matrix(
        self,
        name: str,
        shape: tuple[int, ...],
        init: Initializer,
        widths: tuple[int, ...] | None = None,
    ) -> Float[Array, "h g"]:
        """A parameter with columns for gates of these widths, `features` each if None.

        `init` makes each gate on its own: the whole is no matrix of its own.
        """
        if widths is None:
            widths = (self.features,) * (shape[-1] // self.features)

        def each_gate(key, shape, dtype):
            keys = jax.random.split(key, len(widths))
            shapes = [(*shape[:-1], width) for width in widths]
            gates = [
                narrowed(init)(k, s, dtype) for k, s in zip(keys, shapes, strict=True)
            ]
            # They may be in a box with metadata, as of `nn.with_partitioning`.
            found = [jnp.shape(meta.unbox(gate)) for gate in gates]
            for gate, expected in zip(found, shapes, strict=True):
                if gate != expected:
                    raise ValueError(
                        f"an initializer must return one gate's matrix, {expected}, "
                        f"got {gate}"
                    )
            return jax.tree.map(lambda *gate: jnp.concatenate(gate, axis=-1), *gates)

        return self.param(name, each_gate, shape, self.param_dtype)

    @nn.nowrap
    def _add_to_gate(self, b: Any, gate: int, value: float) -> Any:
        """The biases, which may be in a box, with `value` added to those of a gate."""
        part = slice(gate * self.features, (gate + 1) * self.features)

        def added(b: Array) -> Array:
            b = jnp.asarray(b)
            return b.at[part].add(jnp.asarray(value, b.dtype))

        return jax.tree.map(added, b)

    @nn.nowrap
    def _vector(
        self, name: str, init: Initializer, size: int | None = None
    ) -> Float[Array, "h"]:
        """A parameter with `size` numbers, `features` if None."""
        shape = (self.features if size is None else size,)
        return self.param(name, narrowed(init), shape, self.param_dtype)

    @nn.nowrap
    def _or_torch(self, init: Initializer) -> Initializer:
        """`init`, or that of PyTorch."""
        if not self.torch_init:
            return init
        bound = self.features**-0.5

        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return uniform

    @nn.nowrap
    def _bias_init(self, key, shape, dtype):
        if not self.torch_init:
            return self.bias_init(key, shape, dtype)
        # PyTorch has a bias of the inputs and one of the state.
        uniform = narrowed(self._or_torch(self.bias_init))
        of_inputs, of_state = (uniform(k, shape, dtype) for k in jax.random.split(key))
        return of_inputs + of_state

    @nn.nowrap
    def _with_bias(self, x_gates: Float[Array, "*b g"]) -> Float[Array, "*b g"]:
        if not self.use_bias or self.bias_gates == 0:
            return x_gates
        b = self.b
        if b.shape[0] < x_gates.shape[-1]:
            b = jnp.pad(b, (0, x_gates.shape[-1] - b.shape[0]))
        return x_gates + self._broadcast(b, x_gates.ndim)

    @nn.nowrap
    def _broadcast(self, vector: Float[Array, "g"], ndim: int) -> Array:
        """The vector in the dtype of the state, with `ndim` axes."""
        return jnp.expand_dims(vector.astype(self.state_dtype), range(ndim - 1))

    @nn.nowrap
    def _check_gates(self, state: CellState, x_gates: Float[Array, "*b g"]) -> None:
        *rows, width = jnp.shape(x_gates)
        if width != sum(self._widths):
            raise ValueError(
                f"the inputs' share of the gates has {sum(self._widths)} "
                f"features, as project makes them, got {width}"
            )
        self._check_rows(state, rows)

    @nn.nowrap
    def _check_rows(self, state: CellState, rows: list[int]) -> None:
        for leaf in jax.tree.leaves(state):
            if [*leaf.shape[:-1]] != rows:
                raise ValueError(
                    f"the state has shape {leaf.shape}, but the batch of inputs {rows}"
                )

    @nn.nowrap
    def _check_inputs(self, x: Array) -> None:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"inputs must be floating point, got {x.dtype}")
        wider = jnp.finfo(x.dtype).bits > jnp.finfo(self.compute_dtype).bits
        if wider and self.dtype is None:
            raise ValueError(
                f"inputs are {x.dtype}, but the cell computes in "
                f"{jnp.dtype(self.compute_dtype)}: cast them, or set dtype"
            )
        names = [n for n in ("w_in", "w_x") if self.has_variable("params", n)]
        if names:
            weights = meta.unbox(self.get_variable("params", names[0]))
            made_for = weights.shape[-2] + self.time_features
            if x.shape[-1] != made_for:
                raise ValueError(
                    f"inputs have {x.shape[-1]} features, "
                    f"but the weights were made for {made_for}"
                )


class ForgetBias(Cell):
    """A cell with `forget_bias`, added to the initial bias of one of its gates."""

    forget_bias: float = 1.0
    # Which of the gates it is.
    forget_gate: ClassVar[int] = 0

    def __post_init__(self):
        check_scalar(forget_bias=self.forget_bias)
        super().__post_init__()

    @nn.nowrap
    def _bias_init(self, key, shape, dtype):
        b = super()._bias_init(key, shape, dtype)
        if self.torch_init:  # PyTorch adds nothing.
            return b
        return self._add_to_gate(b, self.forget_gate, self.forget_bias)


def _spelled(tree: Any) -> str:
    """The shapes of arrays, and the types of what has none."""

    def leaf(value: Any) -> Any:
        return getattr(value, "shape", type(value).__name__)

    return str(jax.tree.map(leaf, tree))


def narrowed(init: Initializer) -> Initializer:
    """`init` for any dtype: not all of them know the half-precision types.

    >>> init = narrowed(nn.initializers.orthogonal())
    >>> init(jax.random.key(0), (2, 2), jnp.bfloat16).dtype.name
    'bfloat16'
    """

    def in_half_precision_too(key, shape, dtype):
        made = init(key, shape, accumulation_dtype(dtype))
        return jax.tree.map(lambda weights: weights.astype(dtype), made)

    return in_half_precision_too
