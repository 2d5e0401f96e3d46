"""Converts weights between PyTorch's layers and those of this library.

    PyTorch                           here
    weight_ih_l0 [g*h, d]             l0/w_x [d, g*h]
    weight_hh_l0 [g*h, h]             l0/w_h [h, g*h]
    bias_ih_l0, bias_hh_l0 [g*h]      l0/b [g*h], their sum; in a GRU the reset gate
                                      multiplies a part of bias_hh_l0: l0/b_n [h]
    weight_hr_l0 [p, h]               l0/w_p [h, p]
    ..._l1, ..._l0_reverse            l1, l0_reverse

Of PyTorch's two biases only the sum can be seen from outside; it goes back as
`bias_ih`, with zeros as `bias_hh`. Numpy in, numpy out: torch is not needed, and a file
is read without executing any of it.
"""

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from jaxrnn.layers import Layer

Arrays = dict[str, np.ndarray]

_CELLS_OF_TORCH = {"RNNCell", "LSTMCell", "GRUCell"}


def from_torch(
    state_dict: Mapping[str, Any], layer: "Layer", *, prefix: str = ""
) -> dict[str, dict[str, Arrays]]:
    """The variables of an `RNN`, `LSTM` or `GRU` from its PyTorch counterpart.

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
            f"{[*state_dict][:8]}"
        )
    w_x = theirs.get("weight_ih_l0")
    inputs = w_x.shape[-1] if w_x is not None and w_x.ndim else 0
    expected = {
        name: shape
        for suffix, d in _suffixes(layer, inputs)
        for name, shape in _torch_shapes(layer, suffix, d).items()
    }
    _check("state_dict", theirs, expected)
    params = {}
    for suffix, _ in _suffixes(layer, inputs):
        cell = {
            "w_x": theirs[f"weight_ih_{suffix}"].T,
            "w_h": theirs[f"weight_hh_{suffix}"].T,
        }
        if layer.use_bias:
            b_x, b_h = theirs[f"bias_ih_{suffix}"], theirs[f"bias_hh_{suffix}"]
            if _is_gru(layer):
                cell["b_n"] = b_h[2 * layer.features :]
                b_h = np.concatenate(
                    [b_h[: 2 * layer.features], np.zeros_like(cell["b_n"])]
                )
            # The sum is rounded, not what is added.
            wide = np.promote_types(b_x.dtype, np.float32)
            cell["b"] = b_x.astype(wide) + b_h.astype(wide)
        if _proj_size(layer):
            cell["w_p"] = theirs[f"weight_hr_{suffix}"].T
        params[suffix] = {k: np.array(v, dtype, order="C") for k, v in cell.items()}
    return {"params": params}


def to_torch(
    variables: Mapping[str, Any], layer: "Layer", *, prefix: str = ""
) -> Arrays:
    """The weights of `layer` under PyTorch's names and in its order.

    `load_state_dict` takes them after `torch.from_numpy`; bfloat16, which that does not
    know, is converted to float32.

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
    ours = {
        f"{suffix}/{name}": _known_to_torch(np.asarray(value))
        for suffix, cell in variables["params"].items()
        for name, value in cell.items()
    }
    w_x = ours.get("l0/w_x")
    inputs = w_x.shape[0] if w_x is not None and w_x.ndim else 0
    expected = {
        f"{suffix}/{name}": shape
        for suffix, d in _suffixes(layer, inputs)
        for name, shape in _our_shapes(layer, d).items()
    }
    _check("variables", ours, expected)
    state_dict = {}
    for suffix, _ in _suffixes(layer, inputs):
        state_dict[f"weight_ih_{suffix}"] = ours[f"{suffix}/w_x"].T
        state_dict[f"weight_hh_{suffix}"] = ours[f"{suffix}/w_h"].T
        if layer.use_bias:
            b = ours[f"{suffix}/b"]
            state_dict[f"bias_ih_{suffix}"] = b
            state_dict[f"bias_hh_{suffix}"] = np.zeros_like(b)
            if _is_gru(layer):
                b_n = ours[f"{suffix}/b_n"]
                state_dict[f"bias_hh_{suffix}"][2 * layer.features :] = b_n
        if _proj_size(layer):
            state_dict[f"weight_hr_{suffix}"] = ours[f"{suffix}/w_p"].T
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
    dense = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    for name, array in dense.items():
        if array.dtype.kind in "OSUMm":
            raise TypeError(f"{name} must be an array of numbers, got {array.dtype}")
    save_file(dense, path)


def _require_arrays(**named: Any) -> None:
    ((name, arrays),) = named.items()
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{name} must be a dict of arrays, got {arrays!r:.80}")


def _require_layer(layer: Any) -> None:
    if not hasattr(layer, "cell_type"):
        raise TypeError(f"layer must be an RNN, LSTM or GRU, got {layer!r:.80}")
    # By name, as this file knows no layers. Another cell with as many gates has other
    # equations, and would take the weights all the same.
    if layer.cell_type.__name__ not in _CELLS_OF_TORCH:
        raise TypeError(
            "layer must be an RNN, LSTM or GRU, as PyTorch has them, got a layer of "
            f"{layer.cell_type.__name__}"
        )


def _suffixes(layer: "Layer", inputs: int) -> Iterator[tuple[str, int]]:
    """PyTorch's name for each cell, in its order, with the features going in."""
    outputs = _proj_size(layer) or layer.features
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    for k in range(layer.num_layers):
        for direction in directions:
            yield f"l{k}{direction}", inputs if k == 0 else len(directions) * outputs


def _torch_shapes(layer: "Layer", suffix: str, d: int) -> dict[str, tuple[int, ...]]:
    renamed = {"w_x": "weight_ih", "w_h": "weight_hh", "w_p": "weight_hr"}
    ours = _our_shapes(layer, d)
    shapes = {f"{renamed[k]}_{suffix}": ours[k][::-1] for k in ours if k in renamed}
    if layer.use_bias:
        shapes |= {f"bias_ih_{suffix}": ours["b"], f"bias_hh_{suffix}": ours["b"]}
    return shapes


def _our_shapes(layer: "Layer", d: int) -> dict[str, tuple[int, ...]]:
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


def _is_gru(layer: "Layer") -> bool:
    return layer.cell_type.__name__ == "GRUCell"


def _proj_size(layer: "Layer") -> int:
    return getattr(layer, "proj_size", 0)


def _check(what: str, found: Arrays, expected: dict[str, tuple[int, ...]]) -> None:
    faults = [f"missing {name} {expected[name]}" for name in expected.keys() - found]
    faults += [
        f"unexpected {name} {found[name].shape}" for name in found.keys() - expected
    ]
    faults += [
        f"{name} has shape {found[name].shape}, expected {expected[name]}"
        for name in expected.keys() & found
        if found[name].shape != expected[name]
    ]
    if faults:
        raise ValueError(f"{what} does not fit the layer: " + "; ".join(sorted(faults)))


def _known_to_torch(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # A torch tensor, perhaps with gradients, on a GPU.
        value = value.detach().cpu()
        value = value.float() if value.element_size() < 4 else value  # bfloat16
        value = value.numpy()
    return np.asarray(value)
