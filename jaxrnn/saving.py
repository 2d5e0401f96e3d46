"""A model in one file: its variables and what it takes to build it again.

The file is a `.safetensors` file, which other tools read as well: an array is called by
its path, `params/l0/w_x`, and the configuration stands in the header as JSON. No
template is needed to read it, and nothing in it is executed. For the state of a
training run there is `checkpoints`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from jaxrnn._validation import linen_hint

_FORMAT = "jaxrnn 1"


def save(
    path: str | os.PathLike[str], variables: Mapping[str, Any], config: Any = None
) -> None:
    """Writes the variables of a model and its configuration, whole or not at all.

    Args:
        path: of the file, which is replaced if there is one.
        variables: nested dicts of arrays, as `init` returns them.
        config: what JSON knows: dicts with strings as keys, lists, strings, numbers,
            true, false and None. It comes back as JSON has it, tuples as lists.

    Raises:
        TypeError: `variables` are no nested dicts of arrays with strings as names, an
            array has a dtype that the format lacks, or `config` is not JSON.
        ValueError: a name has a slash, is empty, or is not valid Unicode.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> import jax, jaxrnn
    >>> config = {"features": 4, "num_layers": 2}
    >>> model, x = jaxrnn.GRU(**config), np.ones((1, 3, 2), np.float32)
    >>> variables = model.init(jax.random.key(0), x)
    >>> path = Path(tempfile.mkdtemp(), "gru.safetensors")
    >>> jaxrnn.save(path, variables, config)
    >>> variables, config = jaxrnn.load(path)
    >>> jaxrnn.GRU(**config).apply(variables, x)[0].shape
    (1, 3, 4)
    """
    arrays: dict[str, np.ndarray] = {}
    _collect("", variables, arrays)
    try:
        spelled = json.dumps(config, allow_nan=False)
        same = json.loads(spelled)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"config must be JSON: {error}") from None
    if _keys(config) != _keys(same):
        raise TypeError(f"config must have strings as keys, got {config!r:.200}")
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        # Not `save_file`, whose file only its owner may read.
        metadata = {"format": _FORMAT, "config": spelled}
        partial.write_bytes(serialize(arrays, metadata=metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Any]:
    """The variables and the configuration that `save` wrote.

    They are numpy arrays in nested dicts, and what JSON makes of the configuration.

    Raises:
        ValueError: the file is none of `save`, or damaged.
        OSError: it cannot be read.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
    >>> save(path, {"params": {"b": np.ones(2, np.float32)}}, [1, "a"])
    >>> load(path)
    ({'params': {'b': array([1., 1.], dtype=float32)}}, [1, 'a'])
    """
    try:
        # A context manager that pyright does not know as one.
        with safe_open(path, framework="numpy") as file:  # pyright: ignore
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(
                    "it was not written by jaxrnn.save: torch_weights.load_safetensors "
                    "reads other files"
                )
            config = json.loads(metadata["config"])
            variables: dict[str, Any] = {}
            for name in file.keys():  # noqa: SIM118
                *parents, last = name.split("/")
                inner = variables
                for parent in parents:
                    inner = inner.setdefault(parent, {})
                inner[last] = file.get_tensor(name)
    except OSError:
        raise
    except (
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        cause = " ".join(str(error).split())
        raise ValueError(f"{path} is no model that can be loaded: {cause}") from None
    return variables, config


def _collect(path: str, tree: Any, arrays: dict[str, np.ndarray]) -> None:
    if isinstance(tree, Mapping):
        for name, part in tree.items():
            if not isinstance(name, str):
                raise TypeError(f"variables must have strings as names, got {name!r}")
            if not name or "/" in name or not _is_unicode(name):
                raise ValueError(
                    "a name must not be empty, nor have a slash or half a surrogate "
                    f"pair, got {name!r}"
                )
            if name == "__metadata__" and not path:
                raise ValueError(f"{name!r} is an entry of the file format: rename it")
            _collect(f"{path}/{name}" if path else name, part, arrays)
        return
    if hasattr(tree, "unbox"):  # A parameter of Flax with metadata.
        tree = tree.unbox()
    if not path or not hasattr(tree, "dtype") or "key<" in str(tree.dtype):
        raise TypeError(
            f"variables must be nested dicts of arrays, got {tree!r:.80} as "
            f"{path or 'the whole'}{linen_hint(tree)}"
        )
    # The format stores memory as it lies: a transposed view would come back wrong.
    array = np.asarray(tree)
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name not in _DTYPES:
        raise TypeError(
            f"{path} must have a dtype that .safetensors files and numpy know, got "
            f"{array.dtype}"
        )
    arrays[path] = array


_DTYPES = {
    *("bool", "bfloat16", "float16", "float32", "float64", "complex64"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _keys(config: Any) -> Any:
    """The keys of all dicts in a configuration, in place."""
    if isinstance(config, Mapping):
        return {key: _keys(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [_keys(value) for value in config]
    return None
