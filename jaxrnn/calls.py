"""How a layer is called: `layer(x, lengths, segment_ids, *, state, reverse, train)`.

What says which steps hold data may be given by position, which is all that the lifted
transformations `flax.linen.vmap` and `flax.linen.scan` pass on. The state never is:
`flax.linen.Sequential` gives the next layer by position whatever the last one returned.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxrnn.types import Array, Int, State

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

# Flax's classes of this name take keywords and do not pass them on.
_DROP_KEYWORDS = ("Vmap", "Scan")

# Arguments of a call in other libraries, and their names here.
CALLED_ELSEWHERE = {
    "hx": "state=",
    "h_0": "state=",
    "initial_state": "state=",
    "initial_carry": "state=",
    "mask": "segment_ids=segments.from_mask(mask)",
    "seq_lengths": "lengths=",
    "sequence_length": "lengths=",
    "training": "train=",
    "deterministic": "train=, which is its opposite",
    "go_backwards": "reverse=",
    "time_major": "x.swapaxes(0, 1): x is [batch, time, features]",
    "batch_first": "x itself, which is always [batch, time, features]",
}


# Fields in other libraries, and their names here.
FIELDS_ELSEWHERE = {
    "hidden_size": "features",
    "units": "features",
    "hidden_features": "features",
    "out_features": "features",
    "input_size": "nothing: the first inputs decide",
    "bias": "use_bias",
    "nonlinearity": "activation",
    "kernel_initializer": "kernel_init",
    "recurrent_initializer": "recurrent_init",
    "bias_initializer": "bias_init",
    "unit_forget_bias": "forget_bias, 1 if true",
    "recurrent_activation": "nothing: it is the sigmoid",
    "batch_first": "nothing: inputs are always [batch, time, features]",
    "time_major": "x.swapaxes(0, 1): inputs are always [batch, time, features]",
    "return_sequences": "nothing: a call always returns the outputs of all steps",
    "return_state": "nothing: a call always returns the state as well",
    "go_backwards": "reverse, an argument of the call",
    "merge_mode": "merge",
    "mask": "segment_ids=segments.from_mask(mask), an argument of the call",
    "num_embeddings": "vocab_size",
    "embedding_dim": "embed_features",
    "num_labels": "num_classes",
    "device": "jax.device_put of the parameters",
}


def check_names(
    owner: str,
    given: Iterable[str],
    known: Collection[str],
    elsewhere: Mapping[str, str],
) -> None:
    """Refuses keywords that are not known, with what they are called here.

    Raises:
        TypeError: one of `given` is not among the `known`.

    >>> check_names("LSTM", ["features"], ["features"], FIELDS_ELSEWHERE)
    """
    for name in given:
        if name not in known:
            hint = elsewhere.get(name)
            raise TypeError(
                f"{owner} has no argument {name!r}"
                + (f": here it is {hint}" if hint else "")
            )


def check_fields(cls: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Refuses what a Flax module of this class cannot be made with.

    Raises:
        TypeError: a field is not known, or too many are given by position.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    check_names(cls.__name__, options, fields, FIELDS_ELSEWHERE)
    first = [
        name
        for name, field in fields.items()
        if not field.kw_only and name not in ("parent", "name")
    ]
    if len(args) > len(first):
        raise TypeError(
            f"{cls.__name__} takes {', '.join(first)} by position and all else by "
            f"name, got {args!r:.80}: the number of features going in is not an "
            "argument, the first inputs decide"
        )


# That `dataclasses.field` makes a field is what type checkers need to be told.
@dataclass_transform(field_specifiers=(dataclasses.field,))
class LayerModule(nn.Module):
    """A Flax module that is called as a layer, by methods with `layer_call`.

    `flax.linen.vmap` and `scan` of a class drop keywords with a warning. Of these
    classes they raise a TypeError instead, if a keyword is not its default.

    Raises:
        TypeError: a field is not known, with what it is called here if that is known,
            or too many are given by position.
    """

    def __new__(cls, *args: Any, **options: Any):
        """Checks the arguments, and makes an object for `__init__` to fill."""
        check_fields(cls, args, options)
        return super().__new__(cls)

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        lifted = {
            kind + base.__name__ for base in cls.__bases__ for kind in _DROP_KEYWORDS
        }
        if cls.__name__ in lifted and "__call__" in vars(cls):
            cls.__call__ = _by_position_alone(cls.__call__)


def _by_position_alone(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def checked(self, *args: Any, **options: Any):
        given = [name for name, value in options.items() if _says_something(value)]
        if given:
            raise TypeError(
                f"flax.linen.vmap and scan drop arguments given by name, {given}: give "
                "lengths and segment_ids by position; for the others make a module of "
                "your own that passes them to the layer, and lift that one"
            )
        return call(self, *args)

    return checked


def layer_call(
    call: Callable[Arguments, Returned],
) -> Callable[Arguments, Returned]:
    """The `__call__` of a layer, with checked arguments and flags that may be traced.

    `nn.remat`, `nn.jit` and `jax.jit` make arrays of `reverse` and `train`: then both
    values are compiled, and one is computed.

    Raises:
        TypeError: the layer is not bound to variables; a keyword is not known; or as
            `check_ragged`.

    >>> from jaxrnn import GRU
    >>> layer, x = GRU(features=2), jnp.ones((1, 3, 4))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> flipped = jax.jit(layer.apply)(variables, x, reverse=True)[0][0, 0]
    >>> bool(jnp.allclose(flipped, layer.apply(variables, x)[0][0, -1]))
    True
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        _require_variables(self, "x")
        owner = type(self).__name__
        check_names(owner, options, signature.parameters, CALLED_ELSEWHERE)
        given = signature.bind(self, *args, **options).arguments
        check_ragged(given.get("lengths"), given.get("segment_ids"))
        for flag in ("reverse", "train"):
            if isinstance(options.get(flag), Tracer):
                return _of_traced(self, checked, flag, args, options)
        return call(self, *args, **options)  # pyright: ignore[reportCallIssue]

    return checked  # pyright: ignore[reportReturnType]


def needs_variables(
    method: Callable[Arguments, Returned],
) -> Callable[Arguments, Returned]:
    """A method of a layer other than `__call__`, which says how it is called.

    Raises:
        TypeError: the layer is not bound to variables.
    """

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        _require_variables(self, f'..., method="{method.__name__}"')
        return method(self, *args, **options)  # pyright: ignore[reportCallIssue]

    return checked  # pyright: ignore[reportReturnType]


def _require_variables(module: nn.Module, arguments: str) -> None:
    if module.scope is None:
        raise TypeError(
            f"{type(module).__name__} has no variables of its own: variables = "
            f"layer.init(key, x), then layer.apply(variables, {arguments})"
        )


def _of_traced(
    module: nn.Module,
    call: Callable[..., Any],
    flag: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    # The arguments are no operands of `cond`: it would trace those that are numbers.
    def branch(value: bool, module: nn.Module):
        return call(module, *args, **options | {flag: value})

    if module.is_initializing():  # The parameters do not depend on it.
        return branch(False, module)
    yes, no = (functools.partial(branch, value) for value in (True, False))
    return nn.cond(options[flag], yes, no, module)


def call_layer(
    layer: Any,
    x: Array,
    lengths: Int[ArrayLike, "*b"] | None = None,
    segment_ids: Int[ArrayLike, "*b t"] | None = None,
    *,
    state: State | None = None,
    reverse: bool = False,
    train: bool = False,
) -> tuple[Array, State]:
    """Calls `layer` with those of the arguments that are not the defaults.

    So a user-defined layer need not know all of them, and a lifted transformation of it
    neither drops them nor makes tracers of them.

    >>> from jaxrnn import GRU
    >>> layer = GRU(features=2)
    >>> x, lengths = jnp.ones((1, 3, 4)), jnp.array([2])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> outputs, state = call_layer(layer.bind(variables), x, lengths, reverse=True)
    >>> bool((outputs[0, 0] == state[0][0]).all())
    True
    """
    ragged = [lengths, segment_ids]
    while ragged and ragged[-1] is None:
        ragged.pop()
    options = {"state": state, "reverse": reverse, "train": train}
    given = {name: value for name, value in options.items() if _says_something(value)}
    return layer(x, *ragged, **given)


def _says_something(value: Any) -> bool:
    return value is not None and value is not False


def check_ragged(lengths: Any, segment_ids: Any) -> None:
    """Refuses a state in the place of lengths or segment ids.

    `segments.resolve` checks their shapes and values.

    Raises:
        TypeError: one of them is a tuple or a dictionary of arrays, floating point, or
            an array of another library.

    >>> check_ragged(jnp.array([3, 1]), None)
    """
    for name, value in [("lengths", lengths), ("segment_ids", segment_ids)]:
        leaves = jax.tree.leaves(value)
        parts = isinstance(value, (tuple, dict)) and any(map(jnp.ndim, leaves))
        try:
            dtypes = [jnp.result_type(leaf) for leaf in leaves]
        except TypeError:
            raise TypeError(
                f"{name} must be an array of JAX or numpy, got a "
                f"{type(value).__name__}: give numpy.asarray({name})"
            ) from None
        floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
        if parts or floating:
            got = type(value).__name__ if parts else floating[0]
            hint = (
                ". A state is given by name, state=...; layers on top of each other "
                "are a Stack, not a flax.linen.Sequential, which gives each one the "
                "state of the last"
            )
            # Of one number for each row, it is lengths of another type.
            is_state = parts or max(map(jnp.ndim, leaves)) > 1
            raise TypeError(
                f"{name} must be an array of integers, got {got}"
                + (hint if is_state else "")
            )
