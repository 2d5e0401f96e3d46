"""One cell run over time: where a padded batch meets the recurrence.

`Recurrent` is the only place that knows the outer layout (any number of batch axes,
batch before time) and the inner one (one batch axis, time first), and the only one that
turns lengths or segment ids into what a recurrence needs.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxrnn import cells, functional, segments
from jaxrnn._jax_compat import has_sharding_in_type
from jaxrnn._validation import check_min, check_probability, check_shape
from jaxrnn.calls import LayerModule, layer_call, needs_variables
from jaxrnn.dropout import dropout_mask, sequence_mask
from jaxrnn.equations import NO_DROP, Drop
from jaxrnn.functional import BACKENDS, Backend, resolve_backend
from jaxrnn.fused import CellName, Masks
from jaxrnn.remat import over_chunks
from jaxrnn.scan import scan
from jaxrnn.types import Array, CellState, Float, Int, LSTMState, State

REGULARIZERS = ("zoneout_h", "zoneout_c", "recurrent_dropout", "update_dropout")


class Recurrent(LayerModule):
    """Runs one cell of this library, or any `flax.linen.RNNCellBase`, over time.

    For cells of this library the inputs of all steps are projected in one product.
    Other cells, and ours if a subclass or `nn.remat` overrides `__call__`, are called
    step by step as `cell(carry, x) -> (carry, output)`; the first axes of every leaf of
    the carry must be the batch, and a sequence starts from `initialize_carry`.

    Attributes:
        cell: what is run at each step.
        backend: `"auto"` is the fastest there is: for the LSTM, the GRU and the RNN of
            this library one of `jaxrnn.functional`, for other cells all steps at once
            where they can be, and `flax.linen.scan` for the rest. `"scan"` runs every
            cell; `"native"` and `"fused"` only those three.
        remat_chunk: the backward pass keeps the state after that many steps only, and
            computes what lies between again: for sequences too long for the memory.
            About the square root of their length needs the least. None keeps all.
        unroll: steps in an iteration of the compiled loop, as in `jax.lax.scan`. Larger
            values compile more slowly, and can be faster where a step is little work
            for a GPU or TPU. It changes the loops of `"fused"` and `"scan"`, and with
            `remat_chunk` those inside a chunk; `"native"` and `"parallel"` have no loop
            of JAX's.
        zoneout_h: probability that a unit of the output stays as it was before the
            step, other units at each step; at evaluation each is the mean (Krueger et
            al., 2017, "Zoneout", arXiv:1606.01305).
        zoneout_c: the same for the memory cell.
        recurrent_dropout: probability that a feature of the state is zero in the step's
            products with weights; the same features at all steps of a sequence, also
            where several share a row (Gal and Ghahramani, 2016, arXiv:1512.05287).
        update_dropout: probability that a feature of what is new is not added to the
            memory, others at each step (Semeniuta, Severyn and Barth, 2016, "Recurrent
            dropout without memory loss", arXiv:1603.05118).
        learned_initial_state: sequences start from a learned state, initialized to
            zero, instead of zeros. `initial_state` then needs the variables:
            `layer.apply(variables, batch_shape, method="initial_state")`.

    Zoneout and dropout draw from the rng stream `"dropout"`. With them, and with a
    learned initial state, `"auto"` is `"scan"`, and `"native"` and `"fused"` are
    refused. The attribute `regularizers` of a cell's class lists which of the four it
    supports.

    >>> layer = Recurrent(nn.OptimizedLSTMCell(features=8))
    >>> x = jnp.ones((2, 5, 3))
    >>> (y, (carry,)), variables = layer.init_with_output(
    ...     jax.random.key(0), x, lengths=jnp.array([5, 2])
    ... )
    >>> y.shape, bool((y[1, 2:] == 0).all())
    ((2, 5, 8), True)
    """

    cell: nn.RNNCellBase
    backend: Backend = "auto"
    remat_chunk: int | None = None
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    recurrent_dropout: float = 0.0
    update_dropout: float = 0.0
    learned_initial_state: bool = False
    unroll: int = 1

    def __post_init__(self):
        if not isinstance(self.cell, nn.RNNCellBase):
            raise TypeError(
                f"cell must be a flax.linen.RNNCellBase, got {self.cell!r:.200}"
            )
        if self.remat_chunk is not None:
            check_min(1, remat_chunk=self.remat_chunk)
        check_min(1, unroll=self.unroll)
        if self.backend not in BACKENDS:
            raise ValueError(
                f"backend must be one of {[*BACKENDS]}, got {self.backend!r}"
            )
        for name in REGULARIZERS:
            rate = check_probability(**{name: getattr(self, name)})
            known = getattr(self.cell, "regularizers", frozenset())
            if rate and name not in known:
                raise ValueError(
                    f"{name} has no meaning for {type(self.cell).__name__}, which has "
                    f"{sorted(known) or 'none of the regularizers'}"
                )
            if rate and not self._projects_ahead:
                raise ValueError(
                    f"{name} is for the cells of this library, and "
                    f"{type(self.cell).__name__} is called in a way of its own"
                )
        if self.learned_initial_state and not isinstance(self.cell, cells.Cell):
            raise ValueError(
                "learned_initial_state is for the cells of this library, got "
                f"{type(self.cell).__name__}"
            )
        if self.backend in ("native", "fused") and self._cell_name is None:
            names = (*REGULARIZERS, "learned_initial_state")
            used = [name for name in names if getattr(self, name)]
            raise ValueError(
                f"backend={self.backend!r} runs LSTMCell, GRUCell and RNNCell of this "
                "library, without regularizers and learned initial state, got "
                f"{' with '.join([type(self.cell).__name__, *used])}: leave it 'auto', "
                "or use 'scan'"
            )
        super().__post_init__()

    def setup(self):
        """Creates the parameters of a learned initial state, if there is one."""
        if self.learned_initial_state:
            (state,) = self._states_of_zeros(())
            names = getattr(state, "_fields", ("h",))
            leaves, tree = jax.tree.flatten(state)
            if any(map(jnp.iscomplexobj, leaves)):
                raise ValueError(
                    f"the state of {type(self.cell).__name__} is complex: it cannot be "
                    "learned"
                )
            self.learned = jax.tree.unflatten(
                tree,
                [
                    self.param(
                        name, nn.initializers.zeros, leaf.shape, self.cell.param_dtype
                    )
                    for name, leaf in zip(names, leaves, strict=True)
                ],
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
        """Outputs for every step, and the state after the last step read.

        At padding the outputs are zero, and the state stays as it is.

        Args:
            x: the inputs; what padding holds is not read.
            lengths: steps of each row that hold data, padding behind them.
            segment_ids: 0 at padding, 1, 2, ... for the sequences sharing a row, in
                this order. Padding may stand inside a sequence, which goes on after it.
            state: the state that the first sequence of each row starts with, in either
                direction; other sequences start from zeros, and this one if None. To
                go on with a state, the first sequence must be the one it was left at:
                zero the rows in which a new one begins.
            reverse: read every sequence from its last step to its first.
            train: drop out and zone out what the layer's probabilities say.

        Raises:
            TypeError: if lengths or segment ids are something else, such as a state
                given by position, as `flax.linen.Sequential` does.
            ValueError: if a shape, dtype or value does not fit, with the numbers.
                Under `jax.jit` values are not known: `segments.resolve` says what
                they then mean.

        >>> layer = Recurrent(cells.GRUCell(features=2))
        >>> x, ids = jnp.ones((1, 3, 4)), jnp.array([[1, 1, 2]])
        >>> (y, _), _ = layer.init_with_output(jax.random.key(0), x, segment_ids=ids)
        >>> [bool(jnp.allclose(y[0, t], y[0, 0])) for t in (1, 2)]  # 2 starts again
        [False, True]
        """
        x = jnp.asarray(x)
        feature_axes = self.cell.num_feature_axes
        if x.ndim <= feature_axes:
            raise ValueError(
                f"inputs need a time axis and {feature_axes} feature axes, "
                f"got shape {x.shape}"
            )
        *batch, time = x.shape[:-feature_axes]
        fresh_state = self._fresh_state(tuple(batch), x.shape[-feature_axes:])
        cell_state = _with_rows_of(x, _only_cell_state(state, fresh_state), len(batch))
        ids = segments.resolve((*batch, time), lengths, segment_ids)

        masks = Masks(valid=None if ids is None else ids > 0)
        if segment_ids is not None and ids is not None:
            masks = masks._replace(
                starts=segments.starts(ids, reverse=reverse),
                first=None if state is None else segments.first(ids),
            )
        if self._cell_name is not None and self.remat_chunk is None:
            outputs, cell_state = self._recurrence(
                self.cell, (cell_state, None), x, masks, reverse
            )
            return outputs, (cell_state,)

        # One axis of rows, after that of time.
        x, cell_state, ids, masks = jax.tree.map(
            lambda leaf: leaf.reshape(math.prod(batch), *leaf.shape[len(batch) :]),
            (x, cell_state, ids, masks),
        )
        x, masks = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), (x, masks))
        if masks.valid is not None:
            # Not only for the outputs' sake: 0 * NaN would reach the gradients.
            x = jnp.where(jnp.expand_dims(masks.valid, range(2, x.ndim)), x, 0)
        inputs: PyTree = x
        if train and self.recurrent_dropout:
            shape = (math.prod(batch), time, self.cell.output_features)
            mask = sequence_mask(
                self.make_rng("dropout"),
                self.recurrent_dropout,
                shape,
                None if segment_ids is None else ids,
                self.cell.state_dtype,
            )
            inputs = (x, mask.swapaxes(0, 1))
        # Flax draws other random numbers under its jit: not for the first parameters.
        run = self._scan if self.is_initializing() else self._jitted_scan
        outputs, cell_state = run(
            cell_state, inputs, masks, reverse=bool(reverse), train=bool(train)
        )
        outputs, cell_state = jax.tree.map(
            lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]),
            (outputs.swapaxes(0, 1), cell_state),
        )
        return outputs, (cell_state,)

    @needs_variables
    def project(self, x: Float[Array, "*b d"]) -> Float[Array, "*b g"]:
        """The inputs' share of the gates, for `step` with `projected`.

        For cells from outside this library, returns `x` unchanged.

        >>> layer = Recurrent(cells.RNNCell(2, kernel_init=nn.initializers.ones))
        >>> x = jnp.array([[1.0, 0.5, 0.25]])
        >>> layer.init_with_output(jax.random.key(0), x, method="project")[0]
        Array([[1.75, 1.75]], dtype=float32)
        """
        return self.cell.project(x) if self._projects_ahead else x

    @needs_variables
    def step(
        self, x: Float[Array, "*b d"], state: State, *, projected: bool = False
    ) -> tuple[Float[Array, "*b h"], State]:
        """The output for one time step, and the state after it.

        With `projected`, `x` is what `project` made of the inputs.

        >>> layer = Recurrent(cells.GRUCell(features=8))
        >>> x = jnp.ones((2, 5, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, state = layer.apply(
        ...     variables, x[:, 0], layer.initial_state((2,)), method="step"
        ... )
        >>> y.shape
        (2, 8)
        """
        x = jnp.asarray(x)
        feature_axes = self.cell.num_feature_axes
        if x.ndim < feature_axes:
            raise ValueError(
                f"inputs need {feature_axes} feature axes, got shape {x.shape}"
            )
        batch, features = x.shape[:-feature_axes], x.shape[-feature_axes:]
        cell_state = _only_cell_state(state, self._fresh_state(batch, features))
        if self._projects_ahead:
            x_gates = x if projected else self.cell.project(x)
            cell_state, output = self._recur(self.cell, cell_state, (x_gates, None))
        else:
            cell_state, output = self.cell(cell_state, x)
        return output, (cell_state,)

    def initial_state(self, batch_shape: tuple[int, ...]) -> State:
        """The state before anything was read.

        Raises:
            ValueError: if the cell needs to know more of its inputs than their number
                of features, so that its state has to come from the caller; if the state
                is learned and there are no variables.

        >>> Recurrent(cells.GRUCell(features=3)).initial_state((1,))[0].tolist()
        [[0.0, 0.0, 0.0]]
        """
        batch_shape = check_shape(batch_shape=batch_shape)
        self._states_of_zeros(batch_shape)
        return (self._fresh_state(batch_shape, (1,)),)

    @nn.nowrap
    def _states_of_zeros(self, batch_shape: tuple[int, ...]) -> State:
        if self.cell.num_feature_axes != 1:
            raise ValueError(
                f"the state of {type(self.cell).__name__} depends on the shape of its "
                "inputs: make it with the cell's own initialize_carry"
            )
        key = jax.random.key(0)
        return (self.cell.initialize_carry(key, (*batch_shape, 1)),)

    @nn.nowrap
    def _recurrence(self, cell: Any, states, x, masks: Masks, reverse: bool):
        return functional.recurrence(
            self._cell_name,  # pyright: ignore[reportArgumentType]
            cell.weights(x),
            states,
            x,
            masks,
            reverse=reverse,
            dtype=cell.compute_dtype,
            backend=self.backend,
            unroll=self.unroll,
        )

    def _scan(self, state, inputs, masks: Masks, reverse: bool, train: bool):
        """Of steps or of chunks; time-major."""
        run = functools.partial(self._over_time, train=train)
        if self.remat_chunk is not None:
            run = functools.partial(over_chunks, run, size=self.remat_chunk)
        return run(self.cell, state, inputs, reverse=reverse, **masks._asdict())

    # A loop in JAX is traced anew at each call, and outside of `jit` compiled anew.
    _jitted_scan = nn.jit(_scan, static_argnames=("reverse", "train"))

    @nn.nowrap
    def _over_time(self, cell: Any, state, x, *, train: bool, **options):
        x, mask = x if isinstance(x, tuple) else (x, None)
        if self.resolved_backends == ("parallel",):
            return cell.over_time(state, cell.project(x), **options)
        if self._cell_name is not None:
            masks = Masks(*(options[name] for name in Masks._fields))
            x, masks = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), (x, masks))
            states = (state, options.get("first_state"))
            outputs, state = self._recurrence(
                cell, states, x, masks, options["reverse"]
            )
            return outputs.swapaxes(0, 1), state
        if self._projects_ahead:
            step = functools.partial(self._recur, train=train)
            inputs: PyTree = (cell.project(x), mask)
        else:
            step, inputs = type(cell).__call__, x
        rows, features = x.shape[1:2], x.shape[-self.cell.num_feature_axes :]
        fresh_state = self._fresh_state(rows, features)
        fresh_state = _with_rows_of(x.swapaxes(0, 1), fresh_state, 1)
        options |= {"fresh_state": fresh_state, "unroll": self.unroll}
        return scan(step, cell, state, inputs, **options)

    @nn.nowrap
    def _recur(self, cell: Any, state, inputs, train: bool = False):
        """Like `Cell.recur`, with the regularizers applied."""
        x_gates, mask = inputs
        drop = None if mask is None else Drop(state=mask)
        if train and self.update_dropout:
            key, shape = cell.make_rng("dropout"), (*x_gates.shape[:-1], cell.features)
            update = dropout_mask(key, self.update_dropout, shape, cell.state_dtype)
            drop = (drop or NO_DROP)._replace(update=update)
        after, output = cell.recur(state, x_gates, *([] if drop is None else [drop]))
        if not (self.zoneout_h or self.zoneout_c):
            return after, output

        def zone(rate, before, after):
            if not train:
                return rate * before + (1 - rate) * after
            stays = jax.random.bernoulli(cell.make_rng("dropout"), rate, after.shape)
            return jnp.where(stays, before, after)

        if not isinstance(after, LSTMState):
            after = zone(self.zoneout_h, state, after)
            return after, after.astype(output.dtype)
        h = zone(self.zoneout_h, state.h, after.h)
        c = zone(self.zoneout_c, state.c, after.c)
        return LSTMState(h, c), h.astype(output.dtype)

    @property
    def num_states(self) -> int:
        """How many entries of a state are this layer's: one for each cell.

        >>> Recurrent(cells.GRUCell(8)).num_states
        1
        """
        return 1

    @property
    def supports_step(self) -> bool:
        """Whether the layer has `step`: not if it reads in reverse.

        >>> Recurrent(cells.GRUCell(8)).supports_step
        True
        """
        return True

    @property
    def resolved_backends(self) -> tuple[str, ...]:
        """What runs each cell.

        It is `"native"`, `"fused"` or `"scan"` of `jaxrnn.functional`, `"parallel"`
        (all steps at once), or `"scan"` of `flax.linen`.

        >>> Recurrent(cells.GRUCell(8, dtype=jnp.bfloat16)).resolved_backends
        ('fused',)
        >>> Recurrent(nn.GRUCell(8)).resolved_backends
        ('scan',)
        """
        if self._cell_name is not None:
            return (resolve_backend(self.backend, self.cell.compute_dtype),)
        parallel = self.backend == "auto" and cells.runs_in_parallel(self.cell)
        if parallel and not self._is_regularized:
            return ("parallel",)
        return ("scan",)

    @property
    def _is_regularized(self) -> bool:
        """Whether only the reference runs it, since steps are not the cell's alone."""
        regularized = any(getattr(self, name) for name in REGULARIZERS)
        return regularized or self.learned_initial_state

    @property
    def _cell_name(self) -> CellName | None:
        """The name of the recurrence in `jaxrnn.functional`, if it is one of those.

        A subclass may have changed anything: it has none.
        """
        kind = type(self.cell)
        if self._is_regularized:
            return None
        if kind is cells.RNNCell:
            return "rnn-tanh" if self.cell.activation == "tanh" else "rnn-relu"
        names: dict[Any, CellName] = {cells.LSTMCell: "lstm", cells.GRUCell: "gru"}
        return names.get(kind)

    @property
    def _projects_ahead(self) -> bool:
        """Whether the cell is ours, and nobody wrapped or overrode what it does."""
        return (
            isinstance(self.cell, cells.Cell)
            and type(self.cell).__call__ is cells.Cell.__call__
        )

    @nn.nowrap
    def _fresh_state(
        self, batch_shape: tuple[int, ...], features: tuple[int, ...]
    ) -> CellState:
        key = jax.random.key(0)  # The protocol wants one; a fresh state is no secret.
        zeros = self.cell.initialize_carry(key, (*batch_shape, *features))
        if not self.learned_initial_state:
            return zeros
        if self.scope is None:
            raise ValueError(
                "the initial state is learned: give the variables, layer.apply("
                'variables, batch_shape, method="initial_state")'
            )
        return jax.tree.map(
            lambda learned, leaf: jnp.broadcast_to(
                learned.astype(leaf.dtype), leaf.shape
            ),
            self.learned,
            zeros,
        )


def _with_rows_of(x: Array, state: CellState, axes: int) -> CellState:
    """The state on the devices that have its rows of `x`, by JAX's types.

    A loop must return what it takes, and there outputs are where the inputs are.
    """
    if not has_sharding_in_type(x):
        return state
    nothing = jnp.zeros_like(x.sum(axis=range(axes, x.ndim)))
    return jax.tree.map(
        lambda leaf: (
            leaf + jnp.expand_dims(nothing, range(axes, leaf.ndim)).astype(leaf.dtype)
        ),
        state,
    )


def _only_cell_state(state: State | None, expected: CellState) -> CellState:
    """The only entry of `state`, in the dtypes of `expected`; `expected` for None."""
    if state is None:
        return expected
    if not isinstance(state, tuple) or len(state) != 1 or hasattr(state, "_fields"):
        raise ValueError(
            "the state must be a tuple with one entry for each cell, here one, "
            f"got {jax.tree.map(jnp.shape, state)}"
        )
    (cell_state,) = state
    spelled, wanted = (jax.tree.map(jnp.shape, s) for s in (cell_state, expected))
    of_kind = jax.tree.structure(cell_state) == jax.tree.structure(expected)
    if not of_kind or spelled != wanted:
        pair = not of_kind and isinstance(wanted, LSTMState)
        hint = ": make it LSTMState(h, c)" if pair else ""
        raise ValueError(f"the state of the cell is {spelled}, expected {wanted}{hint}")
    return jax.tree.map(
        lambda leaf, like: jnp.asarray(leaf).astype(like.dtype), cell_state, expected
    )
