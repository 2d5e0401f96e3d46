"""The matrix product of the recurrent layers: narrow factors, wide sums, backwards too.

With bfloat16 weights and a float32 state, JAX's own derivative of a product multiplies
a float32 cotangent with a bfloat16 factor, which no hardware is fast at, and rounds the
gradient to bfloat16. Here the factors of every product are narrow, those of its
derivatives too, and every sum is wide (Micikevicius et al., 2018, arXiv:1710.03740).
"""

import math

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn.types import Array, Dtype, Float


def product(
    a: Float[Array, "*b h"], w: Float[Array, "h g"], dtype: Dtype
) -> Float[Array, "*b g"]:
    """`a @ w` with both factors rounded to `dtype`, summed in the dtype of `a`.

    >>> a = jnp.full((1, 2), 1.001)
    >>> product(a, jnp.ones((2, 1)), jnp.bfloat16)
    Array([[2.]], dtype=float32)
    """
    # XLA is best at products of two matrices.
    rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
    if a.dtype == dtype:
        out = jnp.matmul(rows, w.astype(dtype))
    else:
        out = _mixed.bind(rows, w, factors=jnp.dtype(dtype), sums=a.dtype)
    return out.reshape(*a.shape[:-1], w.shape[-1])


def _compute(a: Array, w: Array, *, factors: Dtype, sums: Dtype) -> Array:
    a, w = a.astype(factors), w.astype(factors)
    return jnp.matmul(a, w, preferred_element_type=sums)


def _shape(a, w, *, factors, sums):
    del factors
    return ShapedArray((*a.shape[:-1], w.shape[-1]), sums)


def _cotangent_of_a(cotangent, a, w, **dtypes):
    return _mixed.bind(cotangent, w.mT, **dtypes).astype(a.aval.dtype)


def _cotangent_of_w(cotangent, a, w, **dtypes):
    return _mixed.bind(a.mT, cotangent, **dtypes).astype(w.aval.dtype)


def _batched(arguments, axes, **dtypes):
    stacks = [
        jnp.moveaxis(argument, axis, 0) if axis is not None else argument[None]
        for argument, axis in zip(arguments, axes, strict=True)
    ]
    size = max(stack.shape[0] for stack in stacks)
    stacks = [jnp.broadcast_to(s, (size, *s.shape[1:])) for s in stacks]
    return _mixed.bind(*stacks, **dtypes), 0


# The primitive multiplies matrices, or stacks of them.
_mixed = Primitive("mixed_product")
_mixed.def_impl(jax.jit(_compute, static_argnames=("factors", "sums")))
_mixed.def_abstract_eval(_shape)
mlir.register_lowering(_mixed, mlir.lower_fun(_compute, multiple_results=False))
ad.defbilinear(_mixed, _cotangent_of_a, _cotangent_of_w)
batching.primitive_batchers[_mixed] = _batched
