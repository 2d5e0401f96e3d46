"""The layers and models as Flax NNX modules.

    layer = LSTM(32, 64, bidirectional=True, rngs=nnx.Rngs(0))
    outputs, state = layer(x, lengths)

Each is the Linen module of the same name, its `definition`, with parameters of its own:
`nnx.Param`s that are created at once and have Linen's names. A call applies the
definition to them, so that arguments, numbers, errors and what is compiled are those of
the Linen module. `from_linen` and `to_linen` convert modules with their parameters.

As in `flax.nnx.Dropout`, dropout is active by default: `train()` and `eval()` set the
attribute `deterministic`, and keys come from the stream `"dropout"` of the `rngs` given
at creation. In nested modules the outermost one decides, and its stream is used; if it
has none, that of the first submodule that has one. A module without any randomness
keeps no stream.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.core import meta
from flax.errors import InvalidRngError
from jax.typing import ArrayLike

from jaxrnn import cells, combinators, layers, models, recurrent
from jaxrnn._nnx_options import (
    GRUOptions,
    LanguageModelOptions,
    LayerOptions,
    LSTMOptions,
    RecurrentOptions,
    RNNOptions,
    SequenceClassifierOptions,
    StackOptions,
)
from jaxrnn._validation import check_min, shape_faults
from jaxrnn.calls import (
    CALLED_ELSEWHERE,
    FIELDS_ELSEWHERE,
    Arguments,
    Returned,
    check_names,
)
from jaxrnn.combinators import Merge
from jaxrnn.recurrent import REGULARIZERS
from jaxrnn.types import Array, Float, Int, State

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "LanguageModel",
    "Layer",
    "Recurrent",
    "SequenceClassifier",
    "Stack",
    "from_linen",
    "to_linen",
]


class _Module(nnx.Module):
    """A Linen module, `definition`, with its parameters.

    Attributes:
        in_features: features of the inputs; None if only its parameters are known.
        deterministic: whether dropout and zoneout are off; see `train` and `eval`.
        rngs: the stream of keys for them; None if nothing is random, or none was given.
    """

    _linen: ClassVar[Any]  # the class of `definition`

    def __new__(cls, *args: Any, **options: Any):
        """Checks the arguments, and makes an object for `__init__` to fill."""
        signature = inspect.signature(cls.__init__)
        if "options" in signature.parameters:
            fields = [field.name for field in dataclasses.fields(cls._linen)]
            known = [*signature.parameters, *fields]
            check_names(cls.__name__, options, known, _FIELDS_ELSEWHERE)
        try:
            signature.bind(None, *args, **options)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}") from None
        return super().__new__(cls)

    def __init__(
        self,
        definition: nn.Module,
        in_features: int | None,
        children: Mapping[str, "_Module"],
        params: Mapping[str, Any],
        rngs: nnx.Rngs | None,
    ):
        self._definition = definition
        self.in_features = in_features
        self.deterministic = False
        stream = None
        if rngs is not None and _is_random(definition):
            stream = rngs["dropout"].fork()
        self.rngs = nnx.data(stream)
        for name, child in children.items():
            setattr(self, name, child)
        for name, value in params.items():
            if name not in children:
                setattr(self, name, _variables(value))

    @property
    def definition(self) -> Any:
        """The Linen module, with those of the modules that are inside now."""
        children = _children(self._definition)
        if not children:
            return self._definition
        # In Linen two fields with one object share its parameters. Modules here may
        # have one definition and parameters of their own, as those of `nnx.clone` do.
        found = {
            name: _definition(name, getattr(self, name)).copy(parent=None)
            for name in children
        }
        fields: dict[str, Any] = {**found}
        if isinstance(self._definition, combinators.Stack):
            fields = {"layers": tuple(found.values())}
        return self._definition.clone(**fields)

    @property
    def params(self) -> dict[str, Any]:
        """The arrays of the parameters, as nested as Linen's."""
        return {
            name: _arrays(value)
            for name, value in vars(self).items()
            if isinstance(value, (_Module, *_PARAMETERS))
        }

    def _apply(self, *args: Any, method: str | None = None, **options: Any) -> Any:
        return self.definition.apply(
            {"params": self.params}, *args, method=method, **options
        )

    def _call(
        self,
        *args: Any,
        deterministic: bool | None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None,
        **options: Any,
    ) -> Any:
        if deterministic is None:
            deterministic = self.deterministic
        if deterministic:
            return self._apply(*args, **options)
        stream = self._stream() if rngs is None else rngs
        if isinstance(stream, nnx.Rngs):
            stream = stream["dropout"]
        if isinstance(stream, nnx.RngStream):
            stream = stream()
        keys = {} if stream is None else {"dropout": stream}
        if stream is not None and _has_noise(self.definition):
            keys["noise"] = jax.random.fold_in(stream, 1)
        try:
            return self._apply(*args, train=True, rngs=keys, **options)
        except InvalidRngError as error:
            raise ValueError(
                f"{type(self).__name__} drops out in training and has no keys for it: "
                "give rngs when it is created or called; or call eval(), or it with "
                "deterministic=True"
            ) from error

    def _stream(self) -> nnx.RngStream | None:
        """Its own keys, or those of the first module inside that has some."""
        if self.rngs is not None:
            return self.rngs
        inside = (getattr(self, name)._stream() for name in _children(self._definition))
        return next((stream for stream in inside if stream is not None), None)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Like `flax.nnx.Dropout.set_view`, which `flax.nnx.view` calls."""
        if deterministic is not None:
            self.deterministic = deterministic


# What other libraries call an argument, where it is not what Linen's layers say.
_FIELDS_ELSEWHERE = FIELDS_ELSEWHERE | {"input_size": "in_features"}
_CALLED_ELSEWHERE = CALLED_ELSEWHERE | dict.fromkeys(
    ("train", "training"), "deterministic=, which is its opposite"
)


def _checked(call: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """A method of a module, with a hint for keywords that other libraries have."""
    known = inspect.signature(call).parameters

    @functools.wraps(call)
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        check_names(type(self).__name__, options, known, _CALLED_ELSEWHERE)
        return call(self, *args, **options)  # pyright: ignore[reportCallIssue]

    return checked  # pyright: ignore[reportReturnType]


_MODELS = (models.SequenceClassifier, models.LanguageModel)

# The fields of Linen modules that are probabilities.
_RATES = (*REGULARIZERS, "dropout", "input_dropout", "word_dropout")


def _is_random(definition: nn.Module) -> bool:
    """Whether a call in training draws keys, by what `definition` and those inside say.

    Keys for a cell that is not of this library have to be given in the call.
    """
    if any(getattr(definition, name, 0) for name in _RATES):
        return True
    if _has_noise(definition):
        return True
    return any(map(_is_random, _children(definition).values()))


def _has_noise(definition: Any) -> bool:
    """Whether a cell draws from the stream `"noise"`, as `cells.LeakyRNNCell` may."""
    cell, options = (getattr(definition, n, None) for n in ("cell", "cell_options"))
    if getattr(cell, "noise", 0) or (options or {}).get("noise", 0):
        return True
    return any(map(_has_noise, _children(definition).values()))


def _variables(value: Any) -> nnx.Param | nnx.Dict:
    """The parameters of a Linen module, boxed ones with the metadata of their box."""
    if isinstance(value, meta.Partitioned):
        return nnx.Param(value.value, out_sharding=value.names)
    if isinstance(value, Mapping):
        return nnx.Dict({name: _variables(part) for name, part in value.items()})
    return nnx.Param(jnp.asarray(value))


def _arrays(value: Any) -> Any:
    if isinstance(value, _Module):
        return value.params
    if isinstance(value, nnx.Dict):
        # Not `items()`, which `nnx.tabulate` would take for a call of a module.
        parts = vars(value).items()
        return {k: _arrays(v) for k, v in parts if isinstance(v, _PARAMETERS)}
    return value[...]


_PARAMETERS = (nnx.Param, nnx.Dict)


def _created(
    definition: nn.Module, example: Array, rngs: nnx.Rngs | None, *but: str
) -> dict[str, Any]:
    """The parameters that `definition` has besides those of its children, `but`."""
    shapes = jax.eval_shape(definition.init, jax.random.key(0), example)
    own = {*shapes.get("params", {})} - {*but}
    if not own:
        return {}
    if rngs is None:
        raise ValueError(
            f"{type(definition).__name__} has parameters of its own, {sorted(own)}: "
            "give rngs"
        )
    params = definition.init(rngs.params(), example)["params"]
    return {name: params[name] for name in own}


def _definition(role: str, module: Any) -> nn.Module:
    if not isinstance(module, _Module):
        raise TypeError(f"{role} must be a module of jaxrnn.nnx, got {module!r:.200}")
    return module.definition


class _LayerMethods(_Module):
    """The methods that all layers have."""

    @_checked
    def __call__(
        self,
        x: Float[Array, "*b t d"],
        lengths: Int[ArrayLike, "*b"] | None = None,
        segment_ids: Int[ArrayLike, "*b t"] | None = None,
        *,
        state: State | None = None,
        reverse: bool = False,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> tuple[Float[Array, "*b t h"], State]:
        """Outputs for every step and the final state, as `jaxrnn.Recurrent.__call__`.

        Args:
            x: the inputs; what padding holds is not read.
            lengths: steps of each row that hold data.
            segment_ids: 0 at padding, 1, 2, ... for the sequences of a row.
            state: the one that the first sequence of each row starts with.
            reverse: read every sequence from its last step to its first.
            deterministic: that of the module if None.
            rngs: keys for dropout and zoneout; those of the module if None.

        Raises:
            TypeError, ValueError: as `jaxrnn.Recurrent.__call__`.
        """
        options = {"state": state, "reverse": reverse}
        options |= {"deterministic": deterministic, "rngs": rngs}
        return self._call(x, lengths, segment_ids, **options)

    def project(self, x: Float[Array, "*b d"]) -> Float[Array, "*b g"]:
        """Like `jaxrnn.Recurrent.project`."""
        return self._apply(x, method="project")

    def step(
        self, x: Float[Array, "*b d"], state: State, *, projected: bool = False
    ) -> tuple[Float[Array, "*b h"], State]:
        """One time step, without dropout, as `jaxrnn.Recurrent.step`."""
        return self._apply(x, state, projected=projected, method="step")

    def initial_state(self, batch_shape: tuple[int, ...]) -> State:
        """The state before anything was read, which may be learned."""
        return self._apply(batch_shape, method="initial_state")

    @property
    def num_states(self) -> int:
        """How many entries of a state are this layer's: one for each cell."""
        return self.definition.num_states

    @property
    def supports_step(self) -> bool:
        """Whether the layer has `step`: not if it reads in reverse."""
        return self.definition.supports_step

    @property
    def resolved_backends(self) -> tuple[str, ...]:
        """What runs each cell, as `jaxrnn.Recurrent.resolved_backends`."""
        return self.definition.resolved_backends


class _CellLayer(_LayerMethods):
    """A layer that has no children, so that all parameters are its own."""

    def __init__(self, definition: nn.Module, in_features: int, rngs: nnx.Rngs):
        check_min(1, in_features=in_features)
        params = _created(definition, _example(definition, in_features), rngs)
        super().__init__(definition, in_features, {}, params, rngs)


class Recurrent(_CellLayer):
    """`jaxrnn.Recurrent`: a cell run over time.

    Args:
        cell: a cell of `jaxrnn.cells`, or any `flax.linen.RNNCellBase`.
        in_features: features of the inputs, on the last axis.
        rngs: streams `"params"` and `"dropout"`.
        options: those of `jaxrnn.Recurrent`, by name.

    Raises:
        TypeError, ValueError: as `jaxrnn.Recurrent`; `in_features` is not positive.

    >>> layer = Recurrent(cells.MGUCell(8), 3, rngs=nnx.Rngs(0))
    >>> outputs, (h,) = layer(jnp.ones((2, 5, 3)), jnp.array([5, 2]))
    >>> outputs.shape, bool((outputs[1, 1] == h[1]).all())
    ((2, 5, 8), True)
    """

    _linen = recurrent.Recurrent

    def __init__(
        self,
        cell: nn.RNNCellBase,
        in_features: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        definition = recurrent.Recurrent(cell, **options, parent=None)
        super().__init__(definition, in_features, rngs)


class Layer(_CellLayer):
    """`jaxrnn.Layer`: `num_layers` layers of one kind of cell.

    Args:
        cell_type: a class of `jaxrnn.cells`.
        in_features: features of the inputs.
        features: outputs of each direction of each layer.
        rngs: streams `"params"` and `"dropout"`.
        options: those of `jaxrnn.Layer`, by name.

    Raises:
        TypeError, ValueError: as `jaxrnn.Layer`; `in_features` is not positive.

    >>> layer = Layer(cells.MGUCell, 3, 8, num_layers=2, rngs=nnx.Rngs(0))
    >>> layer.l1["w_x"].shape
    (8, 16)
    """

    _linen = layers.Layer

    def __init__(
        self,
        cell_type: type[cells.Cell],
        in_features: int,
        features: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[LayerOptions],
    ):
        definition = layers.Layer(cell_type, features=features, **options, parent=None)
        super().__init__(definition, in_features, rngs)


class _NamedLayer(_CellLayer):
    """A layer whose cell its class says: that of the Linen class `_linen`."""

    def __init__(
        self, in_features: int, features: int, *, rngs: nnx.Rngs, **options: Any
    ):
        definition = self._linen(features=features, **options, parent=None)
        super().__init__(definition, in_features, rngs)


class RNN(_NamedLayer):
    """`jaxrnn.RNN`: the simple recurrent network.

    Args:
        in_features: features of the inputs.
        features: outputs of each direction of each layer.
        rngs: streams `"params"` and `"dropout"`.
        options: those of `jaxrnn.RNN`, by name.

    Raises:
        TypeError, ValueError: as `jaxrnn.RNN`; `in_features` is not positive.

    >>> layer = RNN(3, 8, activation="relu", rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 5, 3)))[0].shape
    (2, 5, 8)
    """

    _linen = layers.RNN

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[RNNOptions],
    ):
        super().__init__(in_features, features, rngs=rngs, **options)


class LSTM(_NamedLayer):
    """`jaxrnn.LSTM`: long short-term memory.

    Args:
        in_features: features of the inputs.
        features: outputs of each direction of each layer.
        rngs: streams `"params"` and `"dropout"`.
        options: those of `jaxrnn.LSTM`, by name.

    Raises:
        TypeError, ValueError: as `jaxrnn.LSTM`; `in_features` is not positive.

    >>> layer = LSTM(3, 8, bidirectional=True, rngs=nnx.Rngs(0))
    >>> outputs, (forward, backward) = layer(jnp.ones((2, 5, 3)), jnp.array([5, 0]))
    >>> outputs.shape, backward.c.shape, layer.l0_reverse["w_h"].shape
    ((2, 5, 16), (2, 8), (8, 32))
    """

    _linen = layers.LSTM

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[LSTMOptions],
    ):
        super().__init__(in_features, features, rngs=rngs, **options)


class GRU(_NamedLayer):
    """`jaxrnn.GRU`: the gated recurrent unit.

    Args:
        in_features: features of the inputs.
        features: outputs of each direction of each layer.
        rngs: streams `"params"` and `"dropout"`.
        options: those of `jaxrnn.GRU`, by name.

    Raises:
        TypeError, ValueError: as `jaxrnn.GRU`; `in_features` is not positive.

    >>> layer = GRU(3, 8, rngs=nnx.Rngs(0))
    >>> y, state = layer.step(jnp.ones((2, 3)), layer.initial_state((2,)))
    >>> y.shape
    (2, 8)
    """

    _linen = layers.GRU

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[GRUOptions],
    ):
        super().__init__(in_features, features, rngs=rngs, **options)


def _example(definition: Any, in_features: int) -> Array:
    """Inputs that parameters can be created from: they depend on their last axis."""
    if isinstance(definition, _MODELS):
        return jnp.zeros((1, 1), jnp.int32)
    cell: Any = _first_cell(definition, {})[0]
    features = (*(cell.num_feature_axes - 1) * (1,), in_features)
    dtype = getattr(cell, "param_dtype", None) or jnp.float32
    return jnp.zeros((1, 1, *features), dtype)


def _first_cell(
    definition: Any, params: Mapping[str, Any]
) -> tuple[nn.RNNCellBase, Mapping[str, Any]]:
    """The cell of a layer that reads the inputs, and its part of the parameters."""
    while inside := _children(definition):
        name, definition = next(iter(inside.items()))
        params = params.get(name, {})
    if isinstance(definition, layers.Layer):
        return definition._cell(parent=None), params.get("l0", {})
    return definition.cell, params.get("cell", {})


class Bidirectional(_LayerMethods):
    """`jaxrnn.Bidirectional`: two layers, the second one reading backwards.

    Args:
        forward: reads from the first step to the last.
        backward: reads from the last step to the first.
        merge: as for `jaxrnn.Bidirectional`.
        rngs: stream `"dropout"`, needed only if the layers drop out.

    Raises:
        TypeError: a layer is not one of this module.
        ValueError: as `jaxrnn.Bidirectional`.

    >>> rngs = nnx.Rngs(0)
    >>> layer = Bidirectional(GRU(3, 8, rngs=rngs), GRU(3, 8, rngs=rngs), merge="sum")
    >>> layer(jnp.ones((2, 5, 3)))[0].shape
    (2, 5, 8)
    """

    _linen = combinators.Bidirectional

    def __init__(
        self,
        forward: _LayerMethods,
        backward: _LayerMethods,
        merge: Merge = "concat",
        *,
        rngs: nnx.Rngs | None = None,
    ):
        definition = combinators.Bidirectional(
            _definition("forward", forward),
            _definition("backward", backward),
            merge,
            parent=None,
        )
        sizes = forward.in_features, backward.in_features
        if None not in sizes and sizes[0] != sizes[1]:
            raise ValueError(
                f"both directions read the same inputs, but forward reads {sizes[0]} "
                f"features and backward {sizes[1]}"
            )
        children = {"forward": forward, "backward": backward}
        super().__init__(definition, forward.in_features, children, {}, rngs)


class Stack(_LayerMethods):
    """`jaxrnn.Stack`: layers on top of each other, named `layers_0`, `layers_1`, ...

    Args:
        layers: the first one reads the inputs.
        rngs: stream `"dropout"`, needed only for dropout, and `"params"`, needed only
            with `layer_norm`.
        options: those of `jaxrnn.Stack`, by name.

    Raises:
        TypeError: a layer is not one of this module.
        ValueError: as `jaxrnn.Stack`; `rngs` is needed.

    >>> rngs = nnx.Rngs(0)
    >>> layer = Stack([LSTM(3, 8, rngs=rngs), GRU(8, 4, rngs=rngs)])
    >>> layer(jnp.ones((2, 5, 3)))[0].shape, layer.layers_1.l0["b_n"].shape
    ((2, 5, 4), (4,))
    """

    _linen = combinators.Stack

    def __init__(
        self,
        layers: Sequence[_LayerMethods],
        *,
        rngs: nnx.Rngs | None = None,
        **options: Unpack[StackOptions],
    ):
        definitions = [_definition("each of layers", layer) for layer in layers]
        definition = combinators.Stack(definitions, **options, parent=None)
        children = {f"layers_{k}": layer for k, layer in enumerate(layers)}
        in_features, params = layers[0].in_features, {}
        if definition.layer_norm:
            example = _example(definition, in_features or 1)
            params = _created(definition, example, rngs, *children)
        super().__init__(definition, in_features, children, params, rngs)


class _Model(_Module):
    """A model on token ids around an encoder: that of the Linen class `_linen`."""

    def __init__(
        self,
        vocab_size: int,
        embed_features: int,
        encoder: _LayerMethods,
        *,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        inside = _definition("encoder", encoder)
        definition = self._linen(
            vocab_size, embed_features, inside, **options, parent=None
        )
        if encoder.in_features not in (None, embed_features):
            raise ValueError(
                f"the encoder reads {encoder.in_features} features, but the embedding "
                f"has {embed_features}"
            )
        example = _example(definition, embed_features)
        params = _created(definition, example, rngs, "encoder")
        super().__init__(definition, None, {"encoder": encoder}, params, rngs)


class SequenceClassifier(_Model):
    """`jaxrnn.models.SequenceClassifier`: logits for each sequence.

    Args:
        vocab_size: number of token ids.
        embed_features: features of the embedding, which the encoder reads.
        encoder: the layer that reads the embedded tokens.
        rngs: streams `"params"` and `"dropout"`.
        options: those of the Linen model, by name.

    Raises:
        TypeError: the encoder is not a layer of this module.
        ValueError: as the Linen model; the encoder reads a different number of
            features.

    >>> rngs = nnx.Rngs(0)
    >>> model = SequenceClassifier(100, 16, GRU(16, 8, rngs=rngs), rngs=rngs)
    >>> model(jnp.array([[3, 1, 4], [1, 5, 0]]), jnp.array([3, 2])).shape
    (2,)
    """

    _linen = models.SequenceClassifier

    def __init__(
        self,
        vocab_size: int,
        embed_features: int,
        encoder: _LayerMethods,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[SequenceClassifierOptions],
    ):
        super().__init__(vocab_size, embed_features, encoder, rngs=rngs, **options)

    @_checked
    def __call__(
        self,
        tokens: Int[ArrayLike, "b t"],
        lengths: Int[ArrayLike, "b"] | None = None,
        segment_ids: Int[ArrayLike, "b t"] | None = None,
        *,
        num_segments: int | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> Float[Array, "b *s"] | Float[Array, "b *s c"]:
        """As the Linen model's `__call__`; the last two as of a layer here."""
        options = {"deterministic": deterministic, "rngs": rngs}
        return self._call(
            tokens, lengths, segment_ids, num_segments=num_segments, **options
        )

    @_checked
    def embed_tokens(
        self,
        tokens: Int[ArrayLike, "b t"],
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> Float[Array, "b t e"]:
        """As the Linen model's, with the last two as of a layer here."""
        options = {"deterministic": deterministic, "rngs": rngs}
        return self._call(tokens, method="embed_tokens", **options)

    @_checked
    def from_embeddings(
        self,
        x: Float[ArrayLike, "b t e"],
        lengths: Int[ArrayLike, "b"] | None = None,
        segment_ids: Int[ArrayLike, "b t"] | None = None,
        *,
        num_segments: int | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> Float[Array, "b *s"] | Float[Array, "b *s c"]:
        """As the Linen model's, with the last two as of a layer here."""
        options = {"deterministic": deterministic, "rngs": rngs}
        options |= {"num_segments": num_segments, "method": "from_embeddings"}
        return self._call(x, lengths, segment_ids, **options)


class LanguageModel(_Model):
    """`jaxrnn.models.LanguageModel`: logits of the token that follows each one.

    Args:
        vocab_size: number of token ids.
        embed_features: features of the embedding, which the encoder reads.
        encoder: the layer that reads the embedded tokens.
        rngs: streams `"params"` and `"dropout"`.
        options: those of the Linen model, by name.

    Raises:
        TypeError: the encoder is not a layer of this module.
        ValueError: as the Linen model; the encoder reads a different number of
            features.

    >>> rngs = nnx.Rngs(0)
    >>> model = LanguageModel(100, 16, LSTM(16, 8, rngs=rngs), rngs=rngs)
    >>> logits, state = model(jnp.array([[3, 1, 4], [1, 5, 9]]))
    >>> logits.shape, model.step(jnp.array([2, 6]), state)[0].shape
    ((2, 3, 100), (2, 100))
    """

    _linen = models.LanguageModel

    def __init__(
        self,
        vocab_size: int,
        embed_features: int,
        encoder: _LayerMethods,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[LanguageModelOptions],
    ):
        super().__init__(vocab_size, embed_features, encoder, rngs=rngs, **options)

    @_checked
    def __call__(
        self,
        tokens: Int[ArrayLike, "*b t"],
        lengths: Int[ArrayLike, "*b"] | None = None,
        segment_ids: Int[ArrayLike, "*b t"] | None = None,
        *,
        state: State | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> tuple[Float[Array, "*b t v"], State]:
        """As the Linen model's `__call__`; the last two as of a layer here."""
        options = {"deterministic": deterministic, "rngs": rngs}
        return self._call(tokens, lengths, segment_ids, state=state, **options)

    @_checked
    def pre_logits(
        self,
        tokens: Int[ArrayLike, "*b t"],
        lengths: Int[ArrayLike, "*b"] | None = None,
        segment_ids: Int[ArrayLike, "*b t"] | None = None,
        *,
        state: State | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> tuple[Float[Array, "*b t h"], State]:
        """As the Linen model's, with the last two as of a layer here."""
        options = {"deterministic": deterministic, "rngs": rngs}
        options |= {"state": state, "method": "pre_logits"}
        return self._call(tokens, lengths, segment_ids, **options)

    def input_projection_table(self) -> Float[Array, "v g"]:
        """The embedding of every token after the first layer's input projection."""
        return self._apply(method="input_projection_table")

    def step(
        self,
        tokens: Int[ArrayLike, "*b"],
        state: State,
        input_projection_table: Float[Array, "v g"] | None = None,
    ) -> tuple[Float[Array, "*b v"], State]:
        """The logits after one more token of each row, and the state after it."""
        return self._apply(tokens, state, input_projection_table, method="step")

    def initial_state(self, batch_shape: tuple[int, ...]) -> State:
        """The state before anything was read, which may be learned."""
        return self._apply(batch_shape, method="initial_state")


_CLASSES: dict[type[nn.Module], type[_Module]] = {
    cls._linen: cls
    for cls in (
        *(Recurrent, Layer, RNN, LSTM, GRU, Bidirectional, Stack),
        *(SequenceClassifier, LanguageModel),
    )
}


def from_linen(
    definition: nn.Module,
    variables: Mapping[str, Any],
    *,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """The NNX module of a Linen module of `jaxrnn` and its variables.

    `rngs` has the stream `"dropout"`, needed only in training with dropout or zoneout.

    Raises:
        TypeError: there is no NNX module of the kind.
        ValueError: `variables` has no `"params"`, or some of them are missing,
            unexpected or mis-shaped; lists them all. Those of a cell that is not of
            this library are checked in calls alone.

    >>> import jaxrnn
    >>> x, definition = jnp.ones((2, 5, 3)), jaxrnn.GRU(8)
    >>> variables = definition.init(jax.random.key(0), x)
    >>> layer = from_linen(definition, variables)
    >>> bool((layer(x)[0] == definition.apply(variables, x)[0]).all())
    True
    """
    _require_kind(definition)
    if "params" not in variables:
        raise ValueError(f"variables has no 'params', only {sorted(variables)}")
    _check_params(definition, meta.unbox(variables["params"]))
    return _with_params(definition, variables["params"], rngs)


def _require_kind(definition: Any) -> None:
    if type(definition) not in _CLASSES:
        raise TypeError(
            "only the layers and models of jaxrnn have NNX modules, got "
            f"{definition!r:.200}: flax.nnx.bridge.ToNNX wraps any Linen module"
        )
    for inside in _children(definition).values():
        _require_kind(inside)


def _in_features(definition: nn.Module, params: Mapping[str, Any]) -> int | None:
    """How many the parameters were made for, if it is a cell of ours that says so."""
    cell, weights = _first_cell(definition, params)
    weight = weights.get("w_in", weights.get("w_x"))
    if weight is None or not isinstance(cell, cells.Cell):
        return None
    return weight.shape[-2] + cell.time_features


def _check_params(definition: nn.Module, params: Mapping[str, Any]) -> None:
    cell, _ = _first_cell(definition, params)
    is_model = isinstance(definition, _MODELS)
    if not is_model and not isinstance(cell, cells.Cell):
        return
    example = _example(definition, _in_features(definition, params) or 1)
    shapes = jax.eval_shape(definition.init, jax.random.key(0), example)
    expected, found = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (meta.unbox(shapes["params"]), params)
    )
    faults = shape_faults(found, expected)
    if faults:
        raise ValueError(
            f"these are not the parameters of this {type(definition).__name__}: "
            + "; ".join(faults)
        )


def _with_params(
    definition: nn.Module, params: Mapping[str, Any], rngs: nnx.Rngs | None
) -> _Module:
    children = {
        # A cell may have no parameters.
        name: _with_params(inside, params.get(name, {}), rngs)
        for name, inside in _children(definition).items()
    }
    is_model = isinstance(definition, _MODELS)
    in_features = None if is_model else _in_features(definition, meta.unbox(params))
    module = _Module(definition, in_features, children, params, rngs)
    # That of the class would create parameters, and only a call sets up an NNX object.
    object.__setattr__(module, "__class__", _CLASSES[type(definition)])
    return module


def _children(definition: Any) -> dict[str, nn.Module]:
    if isinstance(definition, combinators.Bidirectional):
        return {"forward": definition.forward, "backward": definition.backward}
    if isinstance(definition, combinators.Stack):
        return {f"layers_{k}": layer for k, layer in enumerate(definition.layers)}
    if isinstance(definition, _MODELS):
        return {"encoder": definition.encoder}
    return {}


def to_linen(module: _Module) -> tuple[Any, dict[str, Any]]:
    """The Linen module of a module of this file, and its variables.

    With them go weights to other libraries (`jaxrnn.weights`), files (`jaxrnn.save`)
    and artefacts (`jaxrnn.serving`).

    Raises:
        TypeError: the module is not one of this file.

    >>> definition, variables = to_linen(GRU(3, 8, rngs=nnx.Rngs(0)))
    >>> type(definition).__name__, sorted(variables["params"]["l0"])
    ('GRU', ['b', 'b_n', 'w_h', 'w_x'])
    """
    return _definition("module", module), {"params": module.params}
