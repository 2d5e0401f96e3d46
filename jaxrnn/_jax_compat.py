"""Differences between JAX versions, and between arrays: traced or concrete, with or
without shardings in their types. The only file that asks about them."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType
from jax.typing import ArrayLike


def concrete_or_none(values: ArrayLike) -> np.ndarray | None:
    """The values as a numpy array, to be checked; None where they are not at hand:
    inside a JAX transformation, or on the devices of other processes.

    >>> concrete_or_none([1, 2])
    array([1, 2])
    >>> jax.eval_shape(lambda x: concrete_or_none(x) or x, 1.0).dtype
    dtype('float32')
    """
    if isinstance(values, Tracer):
        return None
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        return None
    return np.asarray(values)


def has_sharding_in_type(array: jax.Array) -> bool:
    """Whether JAX's type of an array says which devices have what: on a mesh with
    explicit axes, and where `jax.shard_map` checks what varies.

    >>> has_sharding_in_type(jnp.zeros(2))
    False
    """
    kind = jax.typeof(array)
    return bool(vma_axes(kind)) or AxisType.Explicit in kind.sharding.mesh.axis_types


def vma_axes(kind: Any) -> frozenset[str]:
    """The axes of a mesh along which, by its type, an array is not the same: where
    `jax.shard_map` checks that.

    >>> vma_axes(jax.typeof(jnp.zeros(2)))
    frozenset()
    """
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying
