"""Combine layers: `Bidirectional` in opposite directions, `Stack` in sequence.

They take anything with the three methods of a layer (`layers` lists them) and have the
same three methods themselves, so that they nest.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import linen as nn

from jaxrnn._validation import (
    check_min,
    check_probability,
    linen_hint,
    warn_once,
)
from jaxrnn.calls import LayerModule, call_layer, layer_call, needs_variables
from jaxrnn.dropout import drop
from jaxrnn.types import Dtype, State

Merge = Literal["concat", "sum", "mean", "mul", "stack"]
Skip = Literal["residual", "dense"]


class Bidirectional(LayerModule):
    """Two layers over the same inputs, the second one reading them backwards.

    Over `Stack`s, or layers with `num_layers`, the directions only meet at the top
    (Peters et al., 2018, ELMo); a `Stack` of `Bidirectional`s lets them meet after
    every layer, as PyTorch does and the argument `bidirectional` of `LSTM`.

    Attributes:
        forward: reads from the first step to the last.
        backward: reads from the last step to the first.
        merge: how the outputs of a step are joined: side by side (`"concat"`), by
            `"sum"`, `"mean"` or `"mul"` (their product), or kept apart on an axis of
            their own (`"stack"`, `[*b, t, 2, h]`).

    >>> import jax
    >>> from jaxrnn import GRU
    >>> layer = Bidirectional(GRU(features=8), GRU(features=8), merge="sum")
    >>> x = jnp.ones((2, 5, 3))
    >>> (y, (forward, backward)), variables = layer.init_with_output(
    ...     jax.random.key(0), x
    ... )
    >>> y.shape, forward.shape, backward.shape
    ((2, 5, 8), (2, 8), (2, 8))
    """

    forward: nn.Module
    backward: nn.Module
    merge: Merge = "concat"

    def __post_init__(self):
        if self.merge not in _MERGES:
            raise ValueError(f"merge must be one of {[*_MERGES]}, got {self.merge!r}")
        require_layer("forward", self.forward)
        require_layer("backward", self.backward)
        super().__post_init__()

    @layer_call
    def __call__(
        self,
        x,
        lengths=None,
        segment_ids=None,
        *,
        state=None,
        reverse: bool = False,
        train: bool = False,
    ):
        """Runs both layers; arguments as for `Recurrent.__call__`.

        With `reverse` the two layers swap directions.
        """
        forward, backward = _split(state, (self.forward, self.backward))
        ragged = (lengths, segment_ids)
        ahead, forward = call_layer(
            self.forward, x, *ragged, state=forward, reverse=reverse, train=train
        )
        behind, backward = call_layer(
            self.backward, x, *ragged, state=backward, reverse=not reverse, train=train
        )
        if self.merge != "concat" and ahead.shape != behind.shape:
            raise ValueError(
                f"merge={self.merge!r} needs outputs of one shape, the directions "
                f"give {ahead.shape} and {behind.shape}"
            )
        return _MERGES[self.merge](ahead, behind), forward + backward

    def step(self, x, state, *, projected: bool = False):
        """Raises a `ValueError`: the backward layer starts from the last step.

        >>> from jaxrnn import GRU
        >>> layer = Bidirectional(GRU(features=2), GRU(features=2))
        >>> layer.step(jnp.ones((1, 3)), ())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: a bidirectional layer needs the whole sequence, ...
        """
        raise ValueError(
            "a bidirectional layer needs the whole sequence, it has no single step"
        )

    def initial_state(self, batch_shape: tuple[int, ...]) -> State:
        """The forward layer's state, then the backward layer's.

        >>> from jaxrnn import GRU
        >>> layer = Bidirectional(GRU(features=2), GRU(features=1))
        >>> [h.tolist() for h in layer.initial_state((1,))]
        [[[0.0, 0.0]], [[0.0]]]
        """
        return self.forward.initial_state(batch_shape) + self.backward.initial_state(
            batch_shape
        )

    @property
    def num_states(self) -> int:
        """How many entries of a state are this layer's: one for each cell.

        >>> from jaxrnn import GRU
        >>> Bidirectional(GRU(2), GRU(2, num_layers=3)).num_states
        4
        """
        return _num_states(self.forward) + _num_states(self.backward)

    @property
    def supports_step(self) -> bool:
        """Whether the layer has `step`: not if it reads in reverse.

        >>> from jaxrnn import GRU
        >>> Bidirectional(GRU(2), GRU(2)).supports_step
        False
        """
        return False

    @property
    def resolved_backends(self) -> tuple[str, ...]:
        """Which recurrence runs each cell, in the order of the state.

        >>> from jaxrnn import GRU, Recurrent
        >>> layer = Bidirectional(GRU(8, backend="fused"), Recurrent(nn.GRUCell(8)))
        >>> layer.resolved_backends
        ('fused', 'scan')
        """
        return _backends(self.forward) + _backends(self.backward)


_MERGES = {
    "concat": lambda ahead, behind: jnp.concatenate([ahead, behind], axis=-1),
    "sum": lambda ahead, behind: ahead + behind,
    "mean": lambda ahead, behind: (ahead + behind) / 2,
    "mul": lambda ahead, behind: ahead * behind,
    "stack": lambda ahead, behind: jnp.stack([ahead, behind], axis=-2),
}


class Stack(LayerModule):
    """Layers on top of each other: the outputs of one are the inputs of the next.

    Attributes:
        layers: the first one reads the inputs.
        dropout: probability of dropping a feature between two layers, in training;
            never after the last (rng stream `"dropout"`).
        locked_dropout: drop the same features at all steps of a sequence, instead of
            others at each; sequences that share a row each have their own draw (Gal and
            Ghahramani, 2016, "A theoretically grounded application of dropout in
            recurrent neural networks"; called locked by Merity, Keskar and Socher,
            2018).
        input_dropout: probability of dropping a feature of the inputs.
        skip: with `"residual"` the outputs of each layer but the first are added to
            what it read (He et al., 2016); with `"dense"` a layer reads the inputs and
            the outputs of all layers below it side by side (Huang et al., 2017).
        layer_norm: normalise what is passed from one layer to the next, before dropout
            (Ba et al., 2016), with the parameters `norm_1` and so on.
        param_dtype: of these.
        shared_features: how many of the inputs' features, the last ones, every layer
            reads behind what it reads from the layer below, such as the lengths of time
            steps (`cells.CfCCell`); no dropout and no norm changes them.

    Raises:
        ValueError: a probability is out of range; `skip` is not known; layers have
            different numbers of outputs where they are to be added.

    >>> import jax
    >>> from jaxrnn import GRU, LSTM
    >>> layer = Stack([LSTM(features=8), GRU(features=4)])
    >>> x = jnp.ones((2, 5, 3))
    >>> (y, state), variables = layer.init_with_output(jax.random.key(0), x)
    >>> y.shape, state[0].c.shape, state[1].shape
    ((2, 5, 4), (2, 8), (2, 4))
    """

    layers: Sequence[nn.Module]
    dropout: float = 0.0
    locked_dropout: bool = False
    _: dataclasses.KW_ONLY
    input_dropout: float = 0.0
    skip: Skip | None = None
    layer_norm: bool = False
    param_dtype: Dtype = jnp.float32
    shared_features: int = 0

    def __post_init__(self):
        if isinstance(self.layers, nn.Module):
            raise TypeError("layers must be a list of layers: Stack([first, second])")
        check_min(0, shared_features=self.shared_features)
        check_probability(dropout=self.dropout)
        check_probability(input_dropout=self.input_dropout)
        if self.skip is not None and self.skip not in get_args(Skip):
            raise ValueError(
                f"skip must be one of {[*get_args(Skip)]} or None, got {self.skip!r}"
            )
        if not self.layers:
            raise ValueError("a stack needs at least one layer, got none")
        check_dropout_between(len(self.layers), self.dropout)
        for layer in self.layers:
            require_layer("each of layers", layer)
        for below, layer in itertools.pairwise(self.layers):
            apart = isinstance(below, Bidirectional) and below.merge == "stack"
            if apart and isinstance(layer, LayerModule):
                raise ValueError(
                    'merge="stack" keeps the directions on an axis of their own, which '
                    f"{type(layer).__name__} would read as time: only the last layer "
                    "may have it"
                )
        object.__setattr__(self, "layers", tuple(self.layers))  # A module is hashable.
        super().__post_init__()

    def setup(self):
        """Creates the submodules."""
        time = -1 - _num_feature_axes(self)
        axes = (time,) if self.locked_dropout else ()
        self.drop = nn.Dropout(self.dropout, broadcast_dims=axes)
        self.drop_inputs = nn.Dropout(self.input_dropout, broadcast_dims=axes)
        if self.layer_norm:
            self.norms = [
                nn.LayerNorm(param_dtype=self.param_dtype, name=f"norm_{k}")
                for k in range(1, len(self.layers))
            ]

    @layer_call
    def __call__(
        self,
        x,
        lengths=None,
        segment_ids=None,
        *,
        state=None,
        reverse: bool = False,
        train: bool = False,
    ):
        """Runs the layers in order; arguments as for `Recurrent.__call__`."""
        x = jnp.asarray(x)
        after: State = ()
        parts = iter(_split(state, self.layers))

        def run(layer, x):
            nonlocal after
            x, layer_state = call_layer(
                layer,
                x,
                lengths,
                segment_ids,
                state=next(parts),
                reverse=reverse,
                train=train,
            )
            after += layer_state
            return x

        if self.input_dropout:
            x, shared = self._split_features(x)
            x = drop(self, self.drop_inputs, x, segment_ids, train=train)
            x = jnp.concatenate([x, shared], axis=-1)

        def drop_between(x):
            return drop(self, self.drop, x, segment_ids, train=train)

        return self._run(x, run, drop_between), after

    @needs_variables
    def project(self, x):
        """Like `Recurrent.project`, of the first layer.

        Raises:
            ValueError: a layer has no `step`, which projected inputs are for; with
                `skip="dense"` other layers read the inputs, too.
        """
        if not self.supports_step:
            raise ValueError(
                "a bidirectional layer has no step, which projected inputs are for"
            )
        if self.skip == "dense" and len(self.layers) > 1:
            raise ValueError('with skip="dense" all layers read the inputs themselves')
        return self.layers[0].project(x)

    @needs_variables
    def step(self, x, state, *, projected: bool = False):
        """Like `Recurrent.step`, for all layers in order."""
        after: State = ()
        parts = iter(_split(state, self.layers))

        def run(layer, x):
            nonlocal after
            first = projected and not after
            options = {"projected": True} if first else {}
            x, layer_state = layer.step(x, next(parts), **options)
            after += layer_state
            return x

        return self._run(x, run, lambda x: x), after

    @nn.nowrap
    def _run(self, x, run, drop):
        """The outputs of the last layer, with `run(layer, x)` for each."""
        inputs, shared = self._split_features(x)
        read = [inputs]
        for k, layer in enumerate(self.layers):
            if k == 0:
                x = run(layer, x)
                continue
            below = x
            if self.layer_norm:
                x = self.norms[k - 1](x).astype(x.dtype)
            x = drop(x)
            if self.skip == "dense":
                read.append(x)
                x = jnp.concatenate(read, axis=-1)
            if self.shared_features:
                x = jnp.concatenate([x, shared.astype(x.dtype)], axis=-1)
            x = run(layer, x)
            if self.skip == "residual":
                if x.shape != below.shape:
                    raise ValueError(
                        'skip="residual" adds outputs of one shape, layers '
                        f"{k - 1} and {k} give {below.shape} and {x.shape}"
                    )
                x = below + x
        return x

    @nn.nowrap
    def _split_features(self, x):
        """What the first layer alone reads, and what every layer does."""
        return jnp.split(x, [x.shape[-1] - self.shared_features], axis=-1)

    def initial_state(self, batch_shape: tuple[int, ...]) -> State:
        """The states of the layers, one after the other.

        >>> from jaxrnn import GRU
        >>> layer = Stack([GRU(features=2, num_layers=2), GRU(features=1)])
        >>> [h.tolist() for h in layer.initial_state((1,))]
        [[[0.0, 0.0]], [[0.0, 0.0]], [[0.0]]]
        """
        return sum((layer.initial_state(batch_shape) for layer in self.layers), ())

    @property
    def num_states(self) -> int:
        """How many entries of a state are this layer's: one for each cell.

        >>> from jaxrnn import GRU, LSTM
        >>> Stack([GRU(2, num_layers=2), LSTM(2)]).num_states
        3
        """
        return sum(map(_num_states, self.layers))

    @property
    def supports_step(self) -> bool:
        """Whether the layer has `step`: not if it reads in reverse.

        >>> from jaxrnn import GRU
        >>> Stack([GRU(2), GRU(2, bidirectional=True)]).supports_step
        False
        """
        return all(map(supports_step, self.layers))

    @property
    def resolved_backends(self) -> tuple[str, ...]:
        """Which recurrence runs each cell, in the order of the state.

        >>> from jaxrnn import GRU, Recurrent
        >>> layers = [GRU(8, backend="fused"), Recurrent(nn.GRUCell(8))]
        >>> Stack(layers).resolved_backends
        ('fused', 'scan')
        """
        return sum(map(_backends, self.layers), ())


def check_dropout_between(layers: int, dropout: float) -> None:
    """Warns once, as PyTorch does, if there is no place for dropout between layers.

    >>> check_dropout_between(2, 0.5)
    """
    if dropout and layers == 1:
        warn_once(
            f"dropout={dropout} acts between layers, of which there is but one: it "
            "drops nothing. flax.linen.Dropout acts on the outputs of a layer"
        )


def require_layer(name: str, layer: Any) -> None:
    """Checks that `layer` has the methods of a layer, `step` and `initial_state`.

    Raises:
        TypeError: it is not a layer; with what to do of a cell.

    >>> from jaxrnn import Recurrent
    >>> require_layer("encoder", Stack([Recurrent(nn.GRUCell(features=8))]))
    """
    if isinstance(layer, nn.RNNCellBase):
        raise TypeError(
            f"{name} must be a layer, got a cell: make one of it, "
            f"Recurrent({type(layer).__name__}(...))"
        )
    if not isinstance(layer, nn.Module):
        raise TypeError(
            f"{name} must be a layer of Flax Linen, got {layer!r:.80}"
            f"{linen_hint(layer)}"
        )
    for method in ("step", "initial_state"):
        if not hasattr(layer, method):
            raise TypeError(
                f"{name} must be a layer, got {type(layer).__name__}, "
                f"which has no method {method!r}"
            )


def supports_step(layer: Any) -> bool:
    """Whether a layer has `step`; a user-defined layer that does not say so has it.

    >>> from jaxrnn import LSTM
    >>> supports_step(LSTM(2)), supports_step(LSTM(2, bidirectional=True))
    (True, False)
    """
    return getattr(layer, "supports_step", True)


_OF_LSTM = "; that of an LSTM is LSTMState(h, c) for each layer and direction"


def _split(state: State | None, layers: Sequence[Any]) -> list[State | None]:
    """The part of `state` that belongs to each layer; None is the zero state of all."""
    if state is None:
        return [None] * len(layers)
    counts = [_num_states(layer) for layer in layers]
    if not isinstance(state, tuple) or hasattr(state, "_fields"):
        raise ValueError(
            f"the state must be a tuple with an entry for each of {sum(counts)} cells, "
            f"as initial_state returns it, got {type(state).__name__}{_OF_LSTM}"
        )
    if len(state) != sum(counts):
        raise ValueError(
            f"the state must have an entry for each of {sum(counts)} cells, as "
            f"initial_state returns it, got {len(state)} entries{_OF_LSTM}"
        )
    parts, rest = [], tuple(state)
    for count in counts:
        parts.append(rest[:count])
        rest = rest[count:]
    return parts


def _num_states(layer: Any) -> int:
    """That of a layer, or of a user-defined layer the length of its initial state."""
    if hasattr(layer, "num_states"):
        return layer.num_states
    try:
        return len(layer.initial_state((1,)))
    except Exception as error:  # of several kinds: it is somebody's
        raise ValueError(
            f"which entries of the state are those of {type(layer).__name__}, neither "
            f"initial_state((1,)) says ({error}) nor a property num_states"
        ) from error


def _num_feature_axes(layer: Any) -> int:
    """How many axes a step's features have; those of a user-defined layer have one."""
    if isinstance(layer, Stack):
        return _num_feature_axes(layer.layers[0])
    if isinstance(layer, Bidirectional):
        return _num_feature_axes(layer.forward)
    if hasattr(layer, "cell_type"):
        return layer._cell(parent=None).num_feature_axes
    return layer.cell.num_feature_axes if hasattr(layer, "cell") else 1


def _backends(layer: Any) -> tuple[str, ...]:
    """Those of a layer; of a user-defined layer they are unknown."""
    unknown = ("unknown",) * _num_states(layer)
    return getattr(layer, "resolved_backends", unknown)
