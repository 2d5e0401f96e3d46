"""Keras 3's weights and ours: the same numbers under other names.

    Keras                                 here
    kernel [d, g*h]                       w_x
    recurrent_kernel [h, g*h]             w_h
    bias [g*h]                            b
    bias [2, 3*h] of a GRU                b is the sum of both rows; but the part of the
                                          second that the reset gate multiplies is b_n

The gates of an LSTM lie in one order, those of a GRU as z r n there and as r z n here.
A GRU with `reset_after=True`, Keras's default, is our `GRU`; with False it is
`Recurrent(ResetBeforeGRUCell(...))`, which without biases looks the same.

Numpy in, numpy out: keras is not needed. Activations are no weights: those of Keras
must be the defaults, tanh and sigmoid, but for a SimpleRNN with relu.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn.weights._layout import (
    Arrays,
    Cell,
    Format,
    Shapes,
    cells_of,
    dump_cells,
    flatten,
    load_cells,
    reorder_gates,
    rows,
)


def from_keras(
    weights: Any | str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any],
    layer: Any,
    *,
    prefix: str = "",
) -> dict[str, Any]:
    """The variables of `layer` with the weights of its Keras counterpart.

    They are in the layer's `param_dtype`.

    Args:
        weights: a layer or model of Keras that is built; the path of a `.weights.h5`
            file, for which h5py must be installed; a dict of arrays by their paths, in
            which other parts of a model are left alone; or a list of one dict for each
            cell, in the order of the layer's state.
        layer: an `RNN`, `LSTM`, `GRU`, or a `Recurrent`, `Bidirectional` or `Stack` of
            such cells.
        prefix: only what begins with it is looked at.

    Raises:
        TypeError: if Keras has no cell like the layer's.
        ValueError: if arrays are missing, unexpected or mis-shaped; lists them all. If
            it is not clear which cells are meant, or in which order; if activations
            are others; if the file is no `.weights.h5` file.
        ModuleNotFoundError: if a file is given and h5py is not there.
        OSError: if the file cannot be read.

    >>> import jaxrnn
    >>> weights = {
    ...     "lstm/lstm_cell/kernel": np.ones((3, 8)),
    ...     "lstm/lstm_cell/recurrent_kernel": np.ones((2, 8)),
    ...     "lstm/lstm_cell/bias": np.ones(8), "dense/kernel": np.ones((2, 1)),
    ... }
    >>> variables = from_keras(weights, jaxrnn.LSTM(features=2))
    >>> {name: w.shape for name, w in variables["params"]["l0"].items()}
    {'w_x': (3, 8), 'w_h': (2, 8), 'b': (8,)}
    """
    ordered = False
    if isinstance(weights, str | os.PathLike):
        weights = _read_h5(weights)
    elif hasattr(weights, "weights") and not isinstance(weights, Mapping):
        keras_layer: Any = weights
        simple = {c.activation for c in cells_of(layer) if c.kind == "RNNCell"}
        _check_activations(keras_layer, simple)
        if not keras_layer.weights:
            raise ValueError(
                f"{keras_layer.name} has no weights yet: call it once, or its build()"
            )
        weights = {w.path: w for w in keras_layer.weights}
        ordered = True
    return load_cells(weights, layer, _FORMATS, prefix, "Keras", ordered)


def to_keras(variables: Mapping[str, Any], layer: Any) -> list[Arrays]:
    """The weights of each cell of `layer` under Keras's names and in its order.

    The cells are in the order of the layer's state. `keras_layer.set_weights` takes the
    arrays of all of them, one after the other.

    Raises:
        TypeError: if `variables` is no mapping, or Keras has no such cells.
        ValueError: if parameters are missing, unexpected or mis-shaped; lists them all.

    >>> import jax, jaxrnn
    >>> layer = jaxrnn.GRU(features=4, bidirectional=True)
    >>> variables = layer.init(jax.random.key(0), np.ones((7, 3), np.float32))
    >>> arrays = [w for cell in to_keras(variables, layer) for w in cell.values()]
    >>> [w.shape for w in arrays[:3]]
    [(3, 12), (4, 12), (2, 12)]
    """
    return dump_cells(variables, layer, _FORMATS, "Keras")


def _shapes(cell: Cell, inputs: int) -> Shapes:
    gates = cell.gates * cell.features
    shapes: Shapes = {
        "kernel": (inputs, gates),
        "recurrent_kernel": (cell.features, gates),
    }
    if cell.use_bias:
        shapes["bias"] = (2, gates) if cell.kind == "GRUCell" else (gates,)
    return shapes


def _load(cell: Cell, arrays: Arrays) -> Arrays:
    ours = {"w_x": arrays["kernel"], "w_h": arrays["recurrent_kernel"]}
    if cell.use_bias:
        ours["b"] = arrays["bias"]
    if cell.gates == 3:
        ours = {k: reorder_gates(v, "zrn", "rzn") for k, v in ours.items()}
    if cell.use_bias and cell.kind == "GRUCell":
        b_x, b_h = ours["b"]
        h = cell.features
        ours["b"] = np.concatenate([b_x[: 2 * h] + b_h[: 2 * h], b_x[2 * h :]])
        ours["b_n"] = b_h[2 * h :]
    return ours


def _dump(cell: Cell, arrays: Arrays) -> Arrays:
    theirs = {"kernel": arrays["w_x"], "recurrent_kernel": arrays["w_h"]}
    if cell.use_bias:
        theirs["bias"] = b = arrays["b"]
        if cell.kind == "GRUCell":
            rest = np.zeros_like(b[cell.features :])
            theirs["bias"] = np.stack([b, np.concatenate([rest, arrays["b_n"]])])
    if cell.gates == 3:
        theirs = {k: reorder_gates(v, "rzn", "zrn") for k, v in theirs.items()}
    return theirs


_FORMATS: dict[str, Format] = dict.fromkeys(
    ("RNNCell", "LSTMCell", "GRUCell", "ResetBeforeGRUCell"),
    Format(_shapes, _load, _dump, lambda cell, arrays: rows(arrays, "kernel")),
)


def _check_activations(part: Any, simple: set[str]) -> None:
    """Of a layer of Keras and all layers in it; `simple` are ours of simple cells."""
    names = ("forward_layer", "backward_layer", "cell")
    inner = [getattr(part, name) for name in names if hasattr(part, name)]
    for attribute in ("layers", "cells"):
        inner += getattr(part, attribute, [])
    for other in inner:
        _check_activations(other, simple)
    if hasattr(part, "recurrent_activation"):
        wanted = {"activation": {"tanh"}, "recurrent_activation": {"sigmoid"}}
    elif hasattr(part, "activation") and hasattr(part, "recurrent_initializer"):
        wanted = {"activation": simple or {"tanh", "relu"}}
    else:
        return
    for name, expected in wanted.items():
        found = getattr(getattr(part, name), "__name__", None)
        if found not in expected:
            raise ValueError(
                f"{name} of {part.name} must be {' or '.join(sorted(expected))}, "
                f"got {found}"
            )


def _read_h5(path: str | os.PathLike[str]) -> Arrays:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"h5py must be installed to read {path}: pip install h5py"
        ) from error
    os.stat(path)  # That it is missing or forbidden, the system says better.
    arrays: dict[str, Any] = {}

    def keep(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            arrays[name] = entry[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(keep)
    except (OSError, RuntimeError, KeyError) as error:
        cause = " ".join(str(error).split())
        hint = ""
        if str(path).endswith(".keras"):
            hint = ". Give the model: keras.models.load_model(path)"
        raise ValueError(
            f"{path} is no readable .weights.h5 file: {cause}{hint}"
        ) from None
    named = {}
    for name, array in arrays.items():
        # A layer's arrays have numbers there, in the order that Keras made them.
        found = re.fullmatch(r"((?:.*/)?(?:cell|cells/[^/]+))/vars/([012])", name)
        named[f"{found[1]}/{_H5_NAMES[int(found[2])]}" if found else name] = array
    return flatten(named)


_H5_NAMES = ("kernel", "recurrent_kernel", "bias")
