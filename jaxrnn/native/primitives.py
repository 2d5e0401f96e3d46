"""The recurrences as JAX primitives that run in C++ on CPUs.

    recurrence           operands -> outputs, last state and, with `saved`, residuals
    recurrence_tangent   operands, residuals, tangents -> tangents of the results
    recurrence_cotangent operands, residuals, cotangents -> cotangents of operands

The second is linear in the tangents, the third is its transpose. Each is a pure
function of `jaxrnn.fused` first, which is what other platforms, `jax.export`, second
derivatives and forward mode run; the first and the third have a lowering for CPUs that
calls the kernels. A primitive, unlike `jax.custom_vjp` around a call, keeps all
transformations: forward mode, `vmap`, and sharding, where each device calls the kernels
for its rows.

Operands have names (`ffi_calls.OPERANDS`); the parameter `names` of a primitive lists
those that are present. Before the axes of its rows every operand has `stacked` axes of
separate recurrences, as `vmap` over weights makes them: those run one after the other.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn import fused
from jaxrnn._jax_compat import vma_axes
from jaxrnn.native import ffi_calls
from jaxrnn.native.ffi_calls import DIFFERENTIABLE, WEIGHTS, CellName
from jaxrnn.products import product
from jaxrnn.types import Array, LSTMState

Names = tuple[str, ...]
Operands = dict[str, Array]


def recurrence(
    cell: CellName, operands: Mapping[str, Array], *, reverse: bool = False
) -> list[Array]:
    """A recurrence in float32, from operands by their names.

    It returns the outputs `[*b, t, p]`, zero where not valid, and the last `h` and, of
    an LSTM, `c`.

    >>> w, h = jnp.ones((1, 1)), jnp.zeros((1, 1))
    >>> operands = {"x": jnp.ones((1, 3, 1)), "w_x": w, "w_h": w, "h0": h}
    >>> y, h_last = recurrence("rnn-relu", operands)
    >>> y.ravel().tolist(), h_last.tolist()
    ([1.0, 2.0, 3.0], [[3.0]])
    """
    names = tuple(name for name in ffi_calls.OPERANDS if name in operands)
    arrays = [operands[name] for name in names]
    # In jax.shard_map the transpose of this is the sum over devices.
    axes = [vma_axes(jax.typeof(array)) for array in arrays]
    every = frozenset[str]().union(*axes)
    arrays = [
        jax.lax.pcast(array, tuple(every - own), to="varying") if every - own else array
        for array, own in zip(arrays, axes, strict=True)
    ]
    return _recurrence.bind(
        *arrays,
        cell=cell,
        names=names,
        reverse=reverse,
        # Now: when this is lowered, its context may have ended.
        precision=jax.config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
        stacked=0,
        saved=False,
    )


# --------------------------------------------------------------- the pure functions


def _parts(cell: CellName, operands: Operands, reverse: bool):
    """What the functions of `fused` take of a recurrence.

    These are loop, weights, states, masks, and inputs, which at padding are zero.
    """
    loop = fused.Loop(cell, jnp.dtype(jnp.float32), reverse)
    names = ("w_h", "b", "b_n", "w_p")
    weights = {name: operands[name] for name in names if name in operands}
    masks = fused.Masks(
        *(
            _time_first(operands[n], 1) if n in operands else None
            for n in ffi_calls.MASKS
        )
    )
    x = operands["x"]
    if "valid" in operands:
        x = jnp.where(operands["valid"][..., None], x, 0)
    return loop, weights, _states(cell, operands), masks, _time_first(x)


def _states(cell: CellName, operands: Operands):
    """The initial state and the one where `first` says so, which may be the same."""
    first = ("h_first", "c_first") if "h_first" in operands else ("h0", "c0")
    return tuple(
        _state(cell, *map(operands.get, names)) for names in (("h0", "c0"), first)
    )


def _state(cell: CellName, h: Any, c: Any):
    return LSTMState(h, c) if cell == "lstm" else h


def _time_first(a: Array, features: int = 2) -> Array:
    return jnp.moveaxis(a, -features, 0)


def _time_last(a: Array) -> Array:
    return jnp.moveaxis(a, 0, -2)


def _forward(*arrays: Array, cell, names: Names, reverse, saved) -> list[Array]:
    operands = dict(zip(names, arrays, strict=True))
    loop, weights, states, masks, x = _parts(cell, operands, reverse)
    x_gates = product(x, operands["w_x"], loop.dtype)
    y, last, kept = fused.forward(loop, weights, states, x_gates, masks)
    found = {"y": _time_last(y)}
    if cell == "lstm":
        found |= {"h_last": last.h, "c_last": last.c}
        before, i, f, g, o = kept
        found["c"] = _time_last(f * before.c + i * g)
        found["gates"] = _time_last(jnp.concatenate([i, f, g, o], axis=-1))
    else:
        found["h_last"] = last
    if cell == "gru":
        _, h_n, r, z, n = kept
        found["gates"] = _time_last(jnp.concatenate([r, z, n, h_n], axis=-1))
    return [found[name] for name in ffi_calls.results(cell, saved=saved)]


def _tangent(*arrays: Array, cell, names: Names, reverse, given: Names) -> list[Array]:
    residuals = ffi_calls.residuals(cell)
    tangent_names = tuple(f"d_{name}" for name in given)
    known = dict(zip((*names, *residuals, *tangent_names), arrays, strict=True))
    loop, weights, states, masks, x = _parts(cell, known, reverse)

    y = _time_first(known["y"])
    after = LSTMState(y, _time_first(known["c"])) if cell == "lstm" else y
    before = fused.states_before(loop, states, after, masks)
    if cell == "lstm":
        kept = (before, *jnp.split(_time_first(known["gates"]), 4, axis=-1))
    elif cell == "gru":
        r, z, n, h_n = jnp.split(_time_first(known["gates"]), 4, axis=-1)
        kept = (before, h_n, r, z, n)
    else:
        kept = (before, y)

    of = {name: jnp.zeros_like(known[name]) for name in names if name in DIFFERENTIABLE}
    of |= {name: known[f"d_{name}"] for name in given}
    of_x = of["x"]
    if "valid" in names:
        of_x = jnp.where(known["valid"][..., None], of_x, 0)
    of_x_gates = product(_time_first(of_x), known["w_x"], loop.dtype)
    of_x_gates = of_x_gates + product(x, of["w_x"], loop.dtype)
    of_weights = {name: of[name] for name in weights}
    d_y, d_last = fused.tangents(
        loop, weights, kept, masks, of_weights, _states(cell, of), of_x_gates
    )
    return [_time_last(d_y), *(d_last if cell == "lstm" else (d_last,))]


def _cotangent(
    *arrays: Array, cell, names: Names, reverse, given: Names
) -> list[Array]:
    number = len(names) + len(ffi_calls.residuals(cell))
    primals, cotangents = arrays[:number], arrays[number:]
    known = dict(zip(names, primals, strict=False))
    linear = functools.partial(
        _tangent, *primals, cell=cell, names=names, reverse=reverse, given=given
    )
    transpose = jax.linear_transpose(linear, *(known[name] for name in given))
    return list(transpose(list(cotangents)))


# ------------------------------------------------------------------ the native calls


def _forward_call(*arrays: Array, cell, names: Names, reverse, saved) -> list[Array]:
    operands = dict(zip(names, arrays, strict=True))
    return ffi_calls.forward(cell, operands, saved=saved, reverse=reverse)


def _cotangent_call(
    *arrays: Array, cell, names: Names, reverse, given: Names
) -> list[Array]:
    names = (*names, *ffi_calls.residuals(cell), *_cotangent_names(cell))
    known = dict(zip(names, arrays, strict=True))
    return ffi_calls.backward(cell, known, given, reverse=reverse)


def _cotangent_names(cell: CellName) -> Names:
    return tuple(f"d_{name}" for name in ffi_calls.results(cell, saved=False))


def _operand_names(params: Mapping[str, Any]) -> Names:
    """Of all that a primitive is given, without the `d_` of tangents and cotangents."""
    names, cell = params["names"], params["cell"]
    if "given" in params:
        names += ffi_calls.residuals(cell) + ffi_calls.results(cell, saved=False)
    return names


def _result_names(params: Mapping[str, Any]) -> Names:
    if "given" in params:
        return params["given"]
    return ffi_calls.results(params["cell"], saved=params["saved"])


def _features(name: str) -> int:
    """How many axes of an array come after those of its rows, or are all it has."""
    return 2 if name in (*ffi_calls.SEQUENCES, "w_x", "w_h", "w_p") else 1


def _one_by_one(fun: Callable, stacked: int) -> Callable:
    """`fun` for each of separate recurrences."""
    if not stacked:
        return fun
    each = _one_by_one(fun, stacked - 1)
    return lambda *arrays: jax.lax.map(lambda arrays: each(*arrays), arrays)


@functools.lru_cache
def _partitioned(call: Callable, rows: int, params: tuple) -> Callable:
    """`call` for the rows that each device has, `rows` axes of them.

    Sums over the rows, the gradients of weights, are added up. The partitioner gathers
    what is split in any other way.
    """
    options = dict(params)
    stacked, operands, results = (
        options["stacked"],
        _operand_names(options),
        _result_names(options),
    )
    fun = _one_by_one(call, stacked)
    shards = custom_partitioning(lambda *arrays: tuple(fun(*arrays)))  # a signature

    def partition(mesh, arrays, _):
        spec = (*arrays[0].sharding.spec, *(None,) * (stacked + rows))  # that of x
        stack, split = spec[:stacked], spec[stacked : stacked + rows]
        axes = [a for s in split for a in (s if isinstance(s, tuple) else (s,)) if a]

        def place(name):
            return NamedSharding(mesh, P(*stack, *(() if name in WEIGHTS else split)))

        def each(*arrays):
            found = dict(zip(results, fun(*arrays), strict=True))
            sums = {name: a for name, a in found.items() if name in WEIGHTS}
            if axes and sums:
                found |= jax.lax.psum(sums, tuple(axes))
            return tuple(found[name] for name in results)

        return mesh, each, tuple(map(place, results)), tuple(map(place, operands))

    whole: list[str] = []  # the axes that are not split

    def spell(name):
        own = [f"f{len(whole) + k}" for k in range(_features(name))]
        whole.extend(own)
        split = [] if name in WEIGHTS else [f"r{k}" for k in range(rows)]
        return " ".join([*(f"s{k}" for k in range(stacked)), *split, *own])

    rule = [", ".join(map(spell, names)) for names in (operands, results)]
    shards.def_partition(
        partition,
        infer_sharding_from_operands=lambda mesh, a, r: partition(mesh, a, r)[2],
        sharding_rule=" -> ".join(rule),
        need_replication_factors=tuple(whole),
    )
    return shards


# --------------------------------------------------------------------- the primitives


def _primitive(name: str, pure: Callable, call: Callable | None = None) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True

    # One function for each set of parameters: JAX keeps what it compiled by function.
    @functools.lru_cache
    def jitted(stacked, precision, **params):
        def fun(*arrays):
            with jax.default_matmul_precision(precision):
                return pure(*arrays, **params)

        for _ in range(stacked):
            fun = jax.vmap(fun)
        return jax.jit(fun)

    @functools.lru_cache
    def bound(**params):
        return jax.jit(functools.partial(primitive.bind, **params))

    def run(*arrays, **params):
        with jax.disable_jit(False):  # It would call itself.
            return bound(**params)(*arrays)

    def shapes(*arrays, **params):
        return jax.make_jaxpr(jitted(**params))(*arrays).out_avals

    primitive.def_impl(run)
    primitive.def_abstract_eval(shapes)
    by_jax = mlir.lower_fun(lambda *arrays, **params: jitted(**params)(*arrays))
    mlir.register_lowering(primitive, by_jax)
    _pure[name] = jitted
    if call is None:
        return primitive

    def by_kernels(*arrays, **params):
        options = {k: params[k] for k in params if k not in ("stacked", "precision")}
        fun = functools.partial(call, **options)
        return _one_by_one(fun, params["stacked"])(*arrays)

    def on_devices(*arrays, **params):
        h0 = arrays[params["names"].index("h0")]
        key = tuple(sorted(params.items()))
        rows = h0.ndim - 1 - params["stacked"]
        return _partitioned(_bound_call(call, key), rows, key)(*arrays)

    def lower(ctx, *arrays, **params):
        many = _devices(ctx)
        if many is None or not all(math.prod(aval.shape) for aval in ctx.avals_in):
            return by_jax(ctx, *arrays, **params)
        fun = on_devices if many else by_kernels
        return mlir.lower_fun(fun)(ctx, *arrays, **params)

    mlir.register_lowering(primitive, lower, platform="cpu")
    try:  # custom_partitioning asks for the devices; JAX has no public way to say so
        from jax._src import dispatch

        dispatch.prim_requires_devices_during_lowering.add(primitive)
    except (ImportError, AttributeError):
        pass
    return primitive


_pure: dict[str, Callable] = {}


@functools.lru_cache
def _bound_call(call: Callable, key: tuple) -> Callable:
    options = {k: v for k, v in key if k not in ("stacked", "precision")}
    return functools.partial(call, **options)


def _devices(ctx: mlir.LoweringRuleContext) -> bool | None:
    """Whether arrays may be split over several devices.

    None where the kernels cannot run: they are not for an artefact that has to run
    without them, for other platforms too, or where only some of the axes of a mesh are
    in `jax.shard_map`.
    """
    module = ctx.module_context
    place: Any = module.axis_context
    if module.lowering_parameters.for_export:
        return None
    if tuple(ctx.platforms or module.platforms) != ("cpu",):
        return None
    manual = getattr(place, "manual_axes", frozenset())
    if manual:
        return False if manual == frozenset(place.mesh.axis_names) else None
    if getattr(place, "num_devices", 1) == 1:
        return False
    known = getattr(place, "abstract_mesh", None) and getattr(
        place, "device_assignment", None
    )
    return True if known else None


_recurrence = _primitive("recurrence", _forward, _forward_call)
_recurrence_tangent = _primitive("recurrence_tangent", _tangent)
_recurrence_cotangent = _primitive("recurrence_cotangent", _cotangent, _cotangent_call)


# ------------------------------------------------------------------------ derivatives


def _recurrence_jvp(primals, tangents, *, saved, **params):
    if saved:  # of residuals too: a second derivative
        return _jvp_by_jax(_recurrence, primals, tangents, saved=saved, **params)
    cell, names = params["cell"], params["names"]
    found = _recurrence.bind(*primals, saved=True, **params)
    by_name = dict(zip(ffi_calls.results(cell, saved=True), found, strict=True))
    pairs = [
        (name, tangent)
        for name, tangent in zip(names, tangents, strict=True)
        if name in DIFFERENTIABLE and type(tangent) is not ad.Zero
    ]
    of_results = _recurrence_tangent.bind(
        *primals,
        *(by_name[name] for name in ffi_calls.residuals(cell)),
        *(tangent for _, tangent in pairs),
        given=tuple(name for name, _ in pairs),
        **params,
    )
    return found[: len(of_results)], of_results


def _jvp_by_jax(primitive, primals, tangents, **params):
    """That of the pure function, with respect to what is not constant."""
    where = [k for k, t in enumerate(tangents) if type(t) is not ad.Zero]

    def of(*some):
        arrays = list(primals)
        for k, array in zip(where, some, strict=True):
            arrays[k] = array
        return _pure[primitive.name](**params)(*arrays)

    some, of_some = ([a[k] for k in where] for a in (primals, tangents))
    found, of_found = jax.jvp(of, some, of_some)
    return list(found), list(of_found)


ad.primitive_jvps[_recurrence] = _recurrence_jvp
for _primitive_ in (_recurrence_tangent, _recurrence_cotangent):
    ad.primitive_jvps[_primitive_] = functools.partial(_jvp_by_jax, _primitive_)


def _transpose(other: Primitive, cotangents, *arrays, **params):
    """Of either of the linear primitives, by the other one."""
    number = len(params["names"]) + len(ffi_calls.residuals(params["cell"]))
    cotangents = [ad.instantiate_zeros(ct) for ct in cotangents]
    found = other.bind(*arrays[:number], *cotangents, **params)
    return [None] * number + list(found)


ad.primitive_transposes[_recurrence_tangent] = functools.partial(
    _transpose, _recurrence_cotangent
)
ad.primitive_transposes[_recurrence_cotangent] = functools.partial(
    _transpose, _recurrence_tangent
)


# --------------------------------------------------------------------- vmap and unused


def _batched(primitive, arrays, axes, *, stacked, **params):
    """More rows where the weights are the same, else separate recurrences."""
    operands, results = _operand_names(params), _result_names(params)
    [size] = {a.shape[k] for a, k in zip(arrays, axes, strict=True) if k is not None}
    named = list(zip(operands, arrays, axes, strict=True))
    separate = any(k is not None and name in WEIGHTS for name, _, k in named)
    separate |= "given" in params and any(name in WEIGHTS for name in results)

    def moved(name, array, axis):
        if name in WEIGHTS and not separate:
            return array
        to = 0 if separate else stacked
        if axis is None:
            array = jnp.expand_dims(array, to)
            return jnp.broadcast_to(
                array, (*array.shape[:to], size, *array.shape[to + 1 :])
            )
        return jnp.moveaxis(array, axis, to)

    arrays = [moved(*one) for one in named]
    found = primitive.bind(*arrays, stacked=stacked + separate, **params)
    return found, [0 if separate else stacked] * len(found)


def _tangent_batched(arrays, axes, **params):
    fun = jax.vmap(_pure[_recurrence_tangent.name](**params), in_axes=tuple(axes))
    found = fun(*arrays)
    return found, [0] * len(found)


for _primitive_ in (_recurrence, _recurrence_cotangent):
    batching.primitive_batchers[_primitive_] = functools.partial(_batched, _primitive_)
batching.primitive_batchers[_recurrence_tangent] = _tangent_batched


def _without_residuals(used, eqn):
    """Leaves the residuals unwritten where nobody reads them.

    That is so, for example, where `jax.checkpoint` computes them again later.
    """
    if not any(used):
        return [False] * len(eqn.invars), None
    number = len(ffi_calls.results(eqn.params["cell"], saved=False))
    if eqn.params["saved"] and not any(used[number:]):
        params = {**eqn.params, "saved": False}
        eqn = eqn.replace(outvars=eqn.outvars[:number], params=params)
    return [True] * len(eqn.invars), eqn


def _without_unused_cotangents(used, eqn):
    """A gradient that nobody reads, such as that of the first inputs, is not made."""
    if not any(used):
        return [False] * len(eqn.invars), None
    keep = [k for k, is_used in enumerate(used) if is_used]
    params = {**eqn.params, "given": tuple(eqn.params["given"][k] for k in keep)}
    outvars = [eqn.outvars[k] for k in keep]
    return [True] * len(eqn.invars), eqn.replace(outvars=outvars, params=params)


pe.dce_rules[_recurrence] = _without_residuals
pe.dce_rules[_recurrence_cotangent] = _without_unused_cotangents
