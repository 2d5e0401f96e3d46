"""The only file that depends on JAX versions and on what kind an array is.

Arrays are traced or concrete, with or without shardings in their types.
"""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType
from jax.typing import ArrayLike


def concrete_or_none(values: ArrayLike) -> np.ndarray | None:
    """The values as a numpy array, for checks; None where they are not available.

    They are not inside a JAX transformation, or on the devices of other processes.

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
    """Whether the type of an array contains a sharding.

    So it does on a mesh with explicit axes, and inside `jax.shard_map` with
    `check_vma=True`.

    >>> import jax.numpy as jnp
    >>> has_sharding_in_type(jnp.zeros(2))
    False
    """
    kind = jax.typeof(array)
    return bool(vma_axes(kind)) or AxisType.Explicit in kind.sharding.mesh.axis_types


def vma_axes(kind: Any) -> frozenset[str]:
    """The mesh axes along which a type varies, inside `jax.shard_map`.

    >>> import jax.numpy as jnp
    >>> vma_axes(jax.typeof(jnp.zeros(2)))
    frozenset()
    """
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying
