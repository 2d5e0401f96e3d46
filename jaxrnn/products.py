"""Mixed-precision matmul: low-precision operands, float32 accumulation, in both passes.

With bfloat16 weights and a float32 state, JAX's derivative of a product multiplies a
float32 cotangent by a bfloat16 operand, which no hardware is fast at, and rounds the
gradient to bfloat16. Here the operands of every product are in the compute dtype, those
of its derivatives too, and every sum is accumulated in the dtype of the state
(Micikevicius et al., 2018, arXiv:1710.03740).
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn._jax_compat import has_sharding_in_type, vma_axes
from jaxrnn.types import Array, Dtype, Float


def product(
    a: Float[Array, "*b h"], w: Float[Array, "h g"], dtype: Dtype
) -> Float[Array, "*b g"]:
    """`a @ w` with both operands cast to `dtype`, accumulated in the dtype of `a`.

    It is a `jax.lax.dot_general` to whoever looks at the forward pass, as the policies
    of `jax.checkpoint` do.

    >>> a = jnp.full((1, 2), 1.001)
    >>> product(a, jnp.ones((2, 1)), jnp.bfloat16)
    Array([[2.]], dtype=float32)
    """
    if a.dtype == dtype and has_sharding_in_type(a):
        # Only JAX's own product has derivatives with such types.
        return jnp.matmul(a, w.astype(dtype))
    # The precision of now: when this is lowered, its context may have ended.
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return _dot_general(a, w, jnp.dtype(dtype), precision)


def bilinear_product(
    a: Float[Array, "*b h"], w: Float[Array, "h g"], dtype: Dtype
) -> Float[Array, "*b g"]:
    """What `product` returns, for code that JAX transposes without differentiating it.

    A rule for tangents, such as that of `jaxrnn.fused`, is transposed as it stands:
    there the derivative that `product` defines would never be asked for, and JAX's own
    transpose of the product would be used.

    >>> a, w = jnp.full((1, 2), 1.001), jnp.ones((2, 1))
    >>> f = lambda a: bilinear_product(a, w, jnp.bfloat16)
    >>> jax.linear_transpose(f, a)(jnp.full((1, 1), 1.001))[0]
    Array([[1., 1.]], dtype=float32)
    """
    if a.dtype == dtype and has_sharding_in_type(a):
        return jnp.matmul(a, w.astype(dtype))
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    options = {"factors": jnp.dtype(dtype), "sums": a.dtype, "precision": precision}
    return _product.bind(a, w, stacked=0, **options)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _dot_general(a, w, factors, precision):
    return _multiply(
        a, w, factors=factors, sums=a.dtype, precision=precision, stacked=0
    )


@functools.partial(_dot_general.defjvp, symbolic_zeros=True)
def _tangent(factors, precision, primals, tangents):
    a, w = primals
    d_a, d_w = tangents
    options = {"factors": factors, "sums": a.dtype, "precision": precision}
    # Not `_dot_general`: a policy would see a call. So of a derivative's derivative,
    # this part is JAX's own.
    out = _multiply(a, w, stacked=0, **options)
    tangent = None
    if not isinstance(d_a, SymbolicZero):
        tangent = _product.bind(d_a, w, stacked=0, **options)
    if not isinstance(d_w, SymbolicZero):
        term = _product.bind(a, d_w, stacked=0, **options)
        tangent = term if tangent is None else tangent + term
    return out, jnp.zeros_like(out) if tangent is None else tangent


# The derivatives are two primitives, each in the derivatives of the other. The first
# `stacked` axes are those of separate products, as `vmap` makes them. Batch axes are
# not merged, so that batch-sharded inputs keep their sharding. And in the gradient of
# the weights the cotangent is the second operand: XLA's CPU backend copies the first
# one, which is the wide cotangent in JAX's own derivative. Of a step of
# experiments.imdb (64 reviews of 256 words, 2 CPU devices on 2 cores of an AMD EPYC
# with other work, 40 steps of each in turn) the lower quartile is 99 ms, with
# `jnp.matmul` 108 ms, the medians 146 and 156 ms.


def _multiply(a, w, *, stacked, **dtypes):
    """`[*s, *b, h]` and `[*s, h, g]` to `[*s, *b, g]`."""
    return _dot(a, w, ([a.ndim - 1], [stacked]), stacked, **dtypes)


def _correlate(a, b, *, stacked, **dtypes):
    """`[*s, *b, h]` and `[*s, *b, g]` to `[*s, h, g]`, summed over the rows."""
    rows = range(stacked, a.ndim - 1)
    return _dot(a, b, (rows, rows), stacked, **dtypes)


def _dot(a, b, contracted, stacked, *, factors, sums, precision):
    dimensions = (contracted, (range(stacked), range(stacked)))
    a, b = a.astype(factors), b.astype(factors)
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=sums
    )


def _primitive(name, compute):
    primitive = Primitive(name)
    static = ("factors", "sums", "precision", "stacked")
    primitive.def_impl(jax.jit(compute, static_argnames=static))

    def shape(a, b, **options):
        [out] = jax.make_jaxpr(functools.partial(compute, **options))(a, b).out_avals
        return out

    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    batching.primitive_batchers[primitive] = functools.partial(_batched, primitive)
    return primitive


def _batched(primitive, arguments, axes, *, stacked, **dtypes):
    if primitive is _product and axes[1] is None:  # the same weights: more rows
        rows = jnp.moveaxis(arguments[0], axes[0], stacked)
        return primitive.bind(rows, arguments[1], stacked=stacked, **dtypes), stacked
    stacks = [
        jnp.moveaxis(argument, axis, 0) if axis is not None else argument[None]
        for argument, axis in zip(arguments, axes, strict=True)
    ]
    size = max(stack.shape[0] for stack in stacks)
    stacks = [jnp.broadcast_to(s, (size, *s.shape[1:])) for s in stacks]
    return primitive.bind(*stacks, stacked=stacked + 1, **dtypes), 0


_product = _primitive("product", _multiply)
_correlation = _primitive("correlation", _correlate)


ad.defbilinear(
    _product,
    lambda ct, a, w, **options: _cotangent(a, _product, ct, w.mT, **options),
    lambda ct, a, w, **options: _cotangent(w, _correlation, a, ct, **options),
)
ad.defbilinear(
    _correlation,
    lambda ct, a, b, **options: _cotangent(a, _product, b, ct.mT, **options),
    lambda ct, a, b, **options: _cotangent(b, _product, a, ct, **options),
)


def _cotangent(argument, primitive, a, b, **options):
    """The cotangent of an operand, in its dtype.

    Where types have shardings it would need a sum over devices, which only JAX's own
    product knows to make.
    """
    varies = vma_axes(jax.typeof(a)) | vma_axes(jax.typeof(b))
    split = primitive is _correlation and any(_devices_of_rows(b, **options))
    if split or not varies <= vma_axes(argument.aval):
        raise ValueError(
            "half-precision products have no derivatives of weights where JAX's types "
            "know which devices have the rows: use a mesh of Auto axes, or "
            "jax.shard_map with check_vma=False"
        )
    return primitive.bind(a, b, **options).astype(argument.aval.dtype)


def _devices_of_rows(rows, *, stacked, **dtypes):
    """The explicit axes of a mesh that each axis of the rows is split over."""
    return jax.typeof(rows).sharding.spec[stacked:-1]
