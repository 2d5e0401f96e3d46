"""The arrays of a state by name: what a checkpoint holds, and how two differ."""

from typing import Any

import jax
from jax.dtypes import canonicalize_dtype
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree


def by_name(tree: PyTree) -> dict[str, Any]:
    """A flat dict: containers are the template's business, not the file's.

    Raises:
        TypeError: a leaf is no array, or JAX would narrow it: 64 bits, unless they are
            enabled.
        ValueError: its name is not printable, or another leaf's.

    >>> import numpy as np
    >>> by_name({"l0": {"w": np.ones(2, np.float32)}})
    {'l0/w': array([1., 1.], dtype=float32)}
    """
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        called = name or "the state"
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"{called} must be an array, got {leaf!r}")
        kept = canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        if kept != leaf.dtype:
            raise TypeError(
                f"{called} is {leaf.dtype}, which would come back as {kept}: "
                "convert it, or set jax_enable_x64"
            )
        if name in leaves or not name.isprintable():
            raise ValueError(
                f"{name!r} must be printable, and the name of one leaf: rename it"
            )
        leaves[name] = leaf
    return leaves


def types(leaves: dict[str, Any]) -> dict[str, str]:
    """Dtype and shape of each.

    >>> types({"w": jax.ShapeDtypeStruct((2, 3), "float32")})
    {'w': 'float32[2, 3]'}
    """
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """Between two `types`, in words.

    >>> differences({"w": "float32[2]"}, {"w": "float32[3]", "b": "float32[3]"})
    ['b is float32[3], not expected', 'w is float32[3], not float32[2]']
    """
    return [
        f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'expected')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """A leaf without its values, on its devices or on the first one.

    >>> abstract(jax.ShapeDtypeStruct((2,), "float32")).sharding.device_set.pop().id
    0
    """
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(
        leaf.shape,
        leaf.dtype,
        sharding=sharding or SingleDeviceSharding(jax.local_devices()[0]),
    )
