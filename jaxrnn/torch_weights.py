"""Converts weights between PyTorch's layers and those of this library.

The parameters of a layer and their shapes::

    PyTorch                           here
    weight_ih_l0 [g*h, d]             l0/w_x [d, g*h]
    weight_hh_l0 [g*h, h]             l0/w_h [h, g*h]
    bias_ih_l0, bias_hh_l0 [g*h]      l0/b [g*h], their sum; in a GRU the reset gate
                                      multiplies a part of bias_hh_l0: l0/b_n [h]
    weight_hr_l0 [p, h]               l0/w_p [h, p]
    ..._l1, ..._l0_reverse            l1, l0_reverse

The names of a cell are the same without `_l0` and `l0/`. Two modules of Flax that stand
around a layer are known, too::

    Linear: weight [n, d], bias [n]   Dense: kernel [d, n], bias [n]
    Embedding: weight [v, d]          Embed: embedding [v, d]

Of PyTorch's two biases only the sum can be seen from outside; it goes back as
`bias_ih`, with zeros as `bias_hh` (but for `b_n` of a GRU). Numpy in, numpy out: torch
is not needed, and a file is read without executing any of it.
"""

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save

from jaxrnn._validation import linen_hint, shape_faults

Arrays = dict[str, np.ndarray]

_CELLS_OF_TORCH = {"RNNCell", "LSTMCell", "GRUCell"}
_OF_FLAX = {
    "Dense": {"kernel": "weight", "bias": "bias"},
    "Embed": {"embedding": "weight"},
}
_TRANSPOSED = {"kernel"}


class _AnyLayer(NamedTuple):
    """What has to be known of a layer, or of a cell alone."""

    cell_type: type
    features: int
    use_bias: bool
    num_layers: int
    bidirectional: bool
    proj_size: int
    is_cell: bool


def from_torch(
    state_dict: Mapping[str, Any], layer: Any, *, prefix: str = ""
) -> dict[str, dict[str, Any]]:
    """The variables of a layer from the weights of its PyTorch counterpart.

    The layer is an `RNN`, `LSTM` or `GRU`, the cell of one, or a `flax.linen.Dense` or
    `Embed`, which PyTorch calls Linear and Embedding.

    They are in the layer's `param_dtype`. The values of `state_dict` are torch tensors
    or numpy arrays. If the layer is a part of a model, `prefix` is its name there with
    a dot ("rnn."): other entries are ignored.

    Raises:
        TypeError: if `state_dict` is no mapping or `layer` another one.
        ValueError: if entries are missing, unexpected or mis-shaped; lists them all.

    >>> import jaxrnn
    >>> state_dict = {
    ...     "rnn.weight_ih_l0": np.ones((2, 3)), "rnn.weight_hh_l0": np.ones((2, 2)),
    ...     "rnn.bias_ih_l0": np.ones(2), "rnn.bias_hh_l0": np.ones(2),
    ... }
    >>> variables = from_torch(state_dict, jaxrnn.RNN(features=2), prefix="rnn.")
    >>> variables["params"]["l0"]["b"]
    array([2., 2.], dtype=float32)
    """
    _require_arrays(state_dict=state_dict)
    _require_layer(layer)
    dtype = np.dtype(layer.param_dtype)
    theirs = {
        name.removeprefix(prefix): _to_numpy(value)
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    if not theirs:
        raise ValueError(
            f"state_dict has no entry that begins with {prefix!r}, only "
            f"{[*state_dict][:8]}{_hint(state_dict, layer)}"
        )
    if _kind(layer) in _OF_FLAX:
        return {"params": _from_module(theirs, layer, dtype, _hint(theirs, layer))}
    cell, layer = not hasattr(layer, "cell_type"), _as_layer(layer)
    w_x = theirs.get("weight_ih" if cell else "weight_ih_l0")
    inputs = w_x.shape[-1] if w_x is not None and w_x.ndim else 0
    expected = {
        name: shape
        for suffix, d in _suffixes(layer, inputs)
        for name, shape in _torch_shapes(layer, suffix, d).items()
    }
    _check("state_dict", theirs, expected, _hint(theirs, layer))
    params = {}
    for suffix, _ in _suffixes(layer, inputs):
        weights = {
            "w_x": theirs[f"weight_ih{suffix}"].T,
            "w_h": theirs[f"weight_hh{suffix}"].T,
        }
        if layer.use_bias:
            b_x, b_h = theirs[f"bias_ih{suffix}"], theirs[f"bias_hh{suffix}"]
            if _is_gru(layer):
                weights["b_n"] = b_h[2 * layer.features :]
                b_h = np.concatenate(
                    [b_h[: 2 * layer.features], np.zeros_like(weights["b_n"])]
                )
            # The sum is rounded, not what is added.
            wide = np.promote_types(b_x.dtype, np.float32)
            weights["b"] = b_x.astype(wide) + b_h.astype(wide)
        if _proj_size(layer):
            weights["w_p"] = theirs[f"weight_hr{suffix}"].T
        params[suffix[1:]] = {
            k: np.array(v, dtype, order="C") for k, v in weights.items()
        }
    return {"params": params[""] if cell else params}


def to_torch(variables: Mapping[str, Any], layer: Any, *, prefix: str = "") -> Arrays:
    """The weights of a layer under PyTorch's names and in its order.

    The layer is of a kind that `from_torch` knows. `load_state_dict` takes them after
    `torch.from_numpy`; bfloat16, which that does not know, is converted to float32.

    Raises:
        TypeError: if `variables` is no mapping or `layer` another one.
        ValueError: if parameters are missing, unexpected or mis-shaped; lists them all.

    >>> import jax, jaxrnn
    >>> layer = jaxrnn.LSTM(features=4, bidirectional=True)
    >>> variables = layer.init(jax.random.key(0), np.ones((7, 3), np.float32))
    >>> [name for name in to_torch(variables, layer) if "bias" not in name]
    ['weight_ih_l0', 'weight_hh_l0', 'weight_ih_l0_reverse', 'weight_hh_l0_reverse']
    """
    _require_arrays(variables=variables)
    _require_layer(layer)
    if "params" not in variables:
        raise ValueError(f"variables must have 'params', got only {[*variables][:8]}")
    params = variables["params"]
    if _kind(layer) in _OF_FLAX:
        named = _to_module(_named_arrays("", params), layer)
        return {prefix + k: np.array(v, order="C") for k, v in named.items()}
    cell, layer = not hasattr(layer, "cell_type"), _as_layer(layer)
    parts = {"": params} if cell else {f"{k}/": v for k, v in params.items()}
    ours = {}
    for name, weights in parts.items():
        ours |= _named_arrays(name, weights)
    w_x = ours.get("w_x" if cell else "l0/w_x")
    inputs = w_x.shape[0] if w_x is not None and w_x.ndim else 0
    expected = {
        _path(suffix) + name: shape
        for suffix, d in _suffixes(layer, inputs)
        for name, shape in _our_shapes(layer, d).items()
    }
    _check("variables", ours, expected)
    state_dict = {}
    for suffix, _ in _suffixes(layer, inputs):
        path = _path(suffix)
        state_dict[f"weight_ih{suffix}"] = ours[f"{path}w_x"].T
        state_dict[f"weight_hh{suffix}"] = ours[f"{path}w_h"].T
        if layer.use_bias:
            b = ours[f"{path}b"]
            state_dict[f"bias_ih{suffix}"] = b
            state_dict[f"bias_hh{suffix}"] = np.zeros_like(b)
            if _is_gru(layer):
                b_n = ours[f"{path}b_n"]
                state_dict[f"bias_hh{suffix}"][2 * layer.features :] = b_n
        if _proj_size(layer):
            state_dict[f"weight_hr{suffix}"] = ours[f"{path}w_p"].T
    return {prefix + k: np.array(v, order="C") for k, v in state_dict.items()}


def load_safetensors(path: str | PathLike[str]) -> Arrays:
    """The arrays of a `.safetensors` file, by name.

    Raises:
        ValueError: if the file is not one, is damaged, or has types that numpy lacks.
        OSError: if it cannot be read.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> save_safetensors({"weight_ih_l0": np.ones((2, 3))}, path)
    >>> load_safetensors(path)["weight_ih_l0"].shape
    (2, 3)
    """
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # of several kinds: a type that numpy lacks is another
        cause = " ".join(str(error).split())  # may spell names with line breaks
        raise ValueError(f"{path} is no readable safetensors file: {cause}") from None


def save_safetensors(arrays: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Writes arrays to a `.safetensors` file, which torch reads as well.

    Raises:
        TypeError: one of them is not of numbers.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/lstm.safetensors"
    >>> save_safetensors({"bias_ih_l0": np.ones(2)}, path)
    >>> load_safetensors(path)
    {'bias_ih_l0': array([1., 1.])}
    """
    _require_arrays(arrays=arrays)
    # The format stores memory as it lies: a transposed view would come back wrong.
    dense = {name: np.array(value, order="C") for name, value in arrays.items()}
    for name, array in dense.items():
        if array.dtype.kind in "OSUMm":
            raise TypeError(f"{name} must be an array of numbers, got {array.dtype}")
    Path(path).write_bytes(save(dense))


def _require_arrays(**named: Any) -> None:
    ((name, arrays),) = named.items()
    if not isinstance(arrays, Mapping):
        hint = ""
        if hasattr(arrays, "state_dict"):  # A torch module.
            hint = ": give its state_dict()"
        elif isinstance(arrays, (str, PathLike)):
            hint = ": read the file by load_safetensors or torch.load"
        raise TypeError(f"{name} must be a dict of arrays, got {arrays!r:.80}{hint}")


def _require_layer(layer: Any) -> None:
    kind = _kind(layer)
    if kind in _CELLS_OF_TORCH and hasattr(layer, "gates"):
        if _proj_size(layer):
            raise TypeError("PyTorch's LSTMCell has no projection: load an LSTM")
        return
    if kind in _OF_FLAX and hasattr(layer, "param_dtype"):
        return
    if not hasattr(layer, "cell_type"):
        raise TypeError(
            "layer must be an RNN, LSTM or GRU, one of their cells, or a Dense or "
            f"Embed of flax.linen, got {layer!r:.80}{linen_hint(layer)}"
        )
    # By name, as this file knows no layers. Another cell with as many gates has other
    # equations, and would take the weights all the same.
    if layer.cell_type.__name__ not in _CELLS_OF_TORCH:
        raise TypeError(
            "layer must be an RNN, LSTM or GRU, as PyTorch has them, got a layer of "
            f"{layer.cell_type.__name__}"
        )


def _kind(layer: Any) -> str:
    return type(layer).__name__


def _as_layer(layer: Any) -> _AnyLayer:
    return _AnyLayer(
        cell_type=getattr(layer, "cell_type", type(layer)),
        features=layer.features,
        use_bias=layer.use_bias,
        num_layers=getattr(layer, "num_layers", 1),
        bidirectional=getattr(layer, "bidirectional", False),
        proj_size=getattr(layer, "proj_size", 0),
        is_cell=not hasattr(layer, "cell_type"),
    )


def _path(suffix: str) -> str:
    """Where the parameters of a cell are, from the end of PyTorch's names for it."""
    return f"{suffix[1:]}/" if suffix else ""


def _named_arrays(path: str, params: Mapping[str, Any]) -> Arrays:
    return {path + k: _known_to_torch(_to_numpy(value)) for k, value in params.items()}


def _module_shapes(module: Any, inputs: int) -> dict[str, tuple[int, ...]]:
    """Those of a `Dense` or an `Embed`."""
    if _kind(module) == "Embed":
        return {"embedding": (module.num_embeddings, module.features)}
    shapes: dict[str, tuple[int, ...]] = {"kernel": (inputs, module.features)}
    return shapes | ({"bias": (module.features,)} if module.use_bias else {})


def _from_module(theirs: Arrays, module: Any, dtype: np.dtype, hint: str) -> Arrays:
    weight = theirs.get("weight")
    inputs = weight.shape[-1] if weight is not None and weight.ndim else 0
    names, shapes = _OF_FLAX[_kind(module)], _module_shapes(module, inputs)
    expected = {
        names[name]: shape[::-1] if name in _TRANSPOSED else shape
        for name, shape in shapes.items()
    }
    _check("state_dict", theirs, expected, hint)
    return {
        name: np.array(_turned(name, theirs[names[name]]), dtype, order="C")
        for name in shapes
    }


def _to_module(ours: Arrays, module: Any) -> Arrays:
    kernel = ours.get("kernel")
    inputs = kernel.shape[0] if kernel is not None and kernel.ndim else 0
    _check("variables", ours, _module_shapes(module, inputs))
    names = _OF_FLAX[_kind(module)]
    return {names[name]: _turned(name, array) for name, array in ours.items()}


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    return array.T if name in _TRANSPOSED else array


def _hint(names: Mapping[str, Any], layer: Any) -> str:
    """What names that do not fit tell."""
    weight_norm = ("_g", "_v", ".original0", ".original1")
    if any(name.endswith(weight_norm) for name in names):
        return (
            "; names as of weight norm: torch.nn.utils.remove_weight_norm, or "
            "parametrize.remove_parametrizations, makes plain weights of them"
        )
    if any(name.endswith("_raw") for name in names):
        return "; names as of a weight drop: the weights are the '..._raw', rename them"
    if isinstance(layer, _AnyLayer):
        if "weight_ih" in names and not layer.is_cell:
            return (
                "; these are the weights of a cell: give its cell instead of the "
                "layer, or name them weight_ih_l0 and so on"
            )
        if "weight_ih_l0" in names and layer.is_cell:
            return "; these are the weights of a layer: give it instead of its cell"
    of_cells = ("weight_ih_l0", "weight_ih")
    wanted = ("weight",) if _kind(layer) in _OF_FLAX else of_cells
    prefixes = [
        name.removesuffix(end)
        for name in names
        for end in wanted
        if name.endswith(f".{end}")
    ]
    return f"; did you mean prefix={prefixes[0]!r}?" if prefixes else ""


def _suffixes(layer: _AnyLayer, inputs: int) -> Iterator[tuple[str, int]]:
    """The end of PyTorch's names for each cell in its order, and its input features."""
    outputs = _proj_size(layer) or layer.features
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    for k in range(layer.num_layers):
        for direction in directions:
            d = inputs if k == 0 else len(directions) * outputs
            yield ("" if layer.is_cell else f"_l{k}{direction}"), d


def _torch_shapes(layer: _AnyLayer, suffix: str, d: int) -> dict[str, tuple[int, ...]]:
    renamed = {"w_x": "weight_ih", "w_h": "weight_hh", "w_p": "weight_hr"}
    ours = _our_shapes(layer, d)
    shapes = {f"{renamed[k]}{suffix}": ours[k][::-1] for k in ours if k in renamed}
    if layer.use_bias:
        shapes |= {f"bias_ih{suffix}": ours["b"], f"bias_hh{suffix}": ours["b"]}
    return shapes


def _our_shapes(layer: _AnyLayer, d: int) -> dict[str, tuple[int, ...]]:
    h, p = layer.features, _proj_size(layer)
    g = layer.cell_type.gates * h
    shapes: dict[str, tuple[int, ...]] = {"w_x": (d, g), "w_h": (p or h, g)}
    if layer.use_bias:
        shapes["b"] = (g,)
        if _is_gru(layer):
            shapes["b_n"] = (h,)
    if p:
        shapes["w_p"] = (h, p)
    return shapes


def _is_gru(layer: _AnyLayer) -> bool:
    return layer.cell_type.__name__ == "GRUCell"


def _proj_size(layer: _AnyLayer) -> int:
    return getattr(layer, "proj_size", 0)


def _check(
    what: str, found: Arrays, expected: dict[str, tuple[int, ...]], hint: str = ""
) -> None:
    shapes = {name: array.shape for name, array in found.items()}
    faults = shape_faults(shapes, expected)
    if faults:
        listed = "; ".join(sorted(faults))
        raise ValueError(f"{what} does not fit the layer: {listed}{hint}")


def _known_to_torch(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "unbox"):  # A parameter of Flax with metadata.
        value = value.unbox()
    if hasattr(value, "detach"):  # A torch tensor, perhaps with gradients, on a GPU.
        value = value.detach().cpu()
        value = value.float() if value.element_size() < 4 else value  # bfloat16
        value = value.numpy()
    return np.asarray(value)
