"""Haiku's weights and ours: the same numbers under other names.

    Haiku                                     here
    LSTM: linear/w [d+h, 4*h]                 w_x above w_h; its gates are i g f o
      linear/b [4*h]                          b; Haiku adds 1 to the forget gate, which
                                              stands in b here
    GRU: w_i, w_h, b                          w_x, w_h, b of a `ResetBeforeGRUCell`; its
                                              gates are z r a, and z weighs the new
                                              state where ours weighs the old: -z
    VanillaRNN: linear/w, linear_1/w          w_x, w_h
      linear/b, linear_1/b                    b, their sum

Haiku's GRU has the reset gate before the product: it is our
`Recurrent(ResetBeforeGRUCell(...))`. Its VanillaRNN computes with relu: it is our
`RNN(..., activation="relu")`.

Numpy in, numpy out: haiku is not needed, the weights are its nested dict of arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn.weights._layout import (
    Arrays,
    Cell,
    Format,
    Shapes,
    dump_cells,
    load_cells,
    reorder_gates,
    rows,
)


def from_haiku(
    params: Mapping[str, Any] | Sequence[Any], layer: Any, *, prefix: str = ""
) -> dict[str, Any]:
    """The variables of `layer` with the weights of its Haiku counterpart.

    They are in the layer's `param_dtype`.

    Args:
        params: of a transformed function, in which other parts are left alone; or a
            list of one dict for each cell, in the order of the layer's state.
        layer: an `LSTM`, `RNN(..., activation="relu")`, or a `Recurrent`,
            `Bidirectional` or `Stack` of such cells or of `ResetBeforeGRUCell`.
        prefix: only what begins with it is looked at ("net/~/").

    Raises:
        TypeError: if Haiku has no cell like the layer's.
        ValueError: if arrays are missing or mis-shaped; lists them all. If it is not
            clear which cells are meant, or in which order. If an RNN's activation is
            not relu; if the layer has no place for a bias.

    >>> import jaxrnn
    >>> params = {"lstm/linear": {"w": np.ones((5, 8)), "b": np.zeros(8)}}
    >>> variables = from_haiku(params, jaxrnn.LSTM(features=2))
    >>> variables["params"]["l0"]["b"]
    array([0., 0., 1., 1., 0., 0., 0., 0.], dtype=float32)
    """
    return load_cells(params, layer, _FORMATS, prefix, "Haiku")


def to_haiku(variables: Mapping[str, Any], layer: Any) -> list[dict[str, Any]]:
    """The parameters of a Haiku core for each cell of `layer`.

    They are in the order of the layer's state, of `hk.LSTM`, `hk.GRU` or
    `hk.VanillaRNN`, and without the name of the module: `{"linear": {"w": ..., "b":
    ...}}` is Haiku's `"lstm/linear"`, a GRU's `{"w_i": ...}` its `"gru"`.

    Raises:
        TypeError: if `variables` is no mapping, or Haiku has no such cells.
        ValueError: if parameters are missing, unexpected or mis-shaped; lists them all.
            If an RNN's activation is not relu.

    >>> import jax, jaxrnn
    >>> layer = jaxrnn.LSTM(features=2)
    >>> variables = layer.init(jax.random.key(0), np.ones((7, 3), np.float32))
    >>> [cell] = to_haiku(variables, layer)
    >>> params = {f"lstm/{name}": arrays for name, arrays in cell.items()}
    >>> params["lstm/linear"]["w"].shape
    (5, 8)
    """
    tree = []
    for arrays in dump_cells(variables, layer, _FORMATS, "Haiku"):
        cell: dict[str, Any] = {}
        for name, array in arrays.items():
            module, _, last = name.rpartition("/")
            (cell.setdefault(module, {}) if module else cell)[last] = array
        tree.append(cell)
    return tree


def _lstm_shapes(cell: Cell, inputs: int) -> Shapes:
    gates = 4 * cell.features
    return {"linear/w": (inputs + cell.features, gates), "linear/b": (gates,)}


def _lstm_load(cell: Cell, arrays: Arrays) -> Arrays:
    w = reorder_gates(arrays["linear/w"], "igfo", "ifgo")
    b = reorder_gates(arrays["linear/b"], "igfo", "ifgo")
    h = cell.features
    return {"w_x": w[:-h], "w_h": w[-h:], "b": b + _forget_bias(cell, b.dtype)}


def _lstm_dump(cell: Cell, arrays: Arrays) -> Arrays:
    w = np.concatenate([arrays["w_x"], arrays["w_h"]])
    b = arrays["b"] - _forget_bias(cell, arrays["b"].dtype)
    return {
        "linear/w": reorder_gates(w, "ifgo", "igfo"),
        "linear/b": reorder_gates(b, "ifgo", "igfo"),
    }


def _forget_bias(cell: Cell, dtype: np.dtype) -> np.ndarray:
    return np.repeat(np.array([0, 1, 0, 0], dtype), cell.features)


def _gru_shapes(cell: Cell, inputs: int) -> Shapes:
    gates = 3 * cell.features
    return {"w_i": (inputs, gates), "w_h": (cell.features, gates), "b": (gates,)}


def _gru_load(cell: Cell, arrays: Arrays) -> Arrays:
    theirs = (arrays[name] for name in ("w_i", "w_h", "b"))
    ours = (reorder_gates(_negate_z(a, 0), "zrn", "rzn") for a in theirs)
    return dict(zip(("w_x", "w_h", "b"), ours, strict=True))


def _gru_dump(cell: Cell, arrays: Arrays) -> Arrays:
    ours = (arrays[name] for name in ("w_x", "w_h", "b"))
    theirs = (reorder_gates(_negate_z(a, 1), "rzn", "zrn") for a in ours)
    return dict(zip(("w_i", "w_h", "b"), theirs, strict=True))


def _negate_z(array: np.ndarray, block: int) -> np.ndarray:
    """1 - sigmoid(a) is sigmoid(-a)."""
    blocks = np.split(array, 3, axis=-1)
    blocks[block] = -blocks[block]
    return np.concatenate(blocks, axis=-1)


def _rnn_shapes(cell: Cell, inputs: int) -> Shapes:
    _require_relu(cell)
    h = cell.features
    return {
        "linear/w": (inputs, h),
        "linear_1/w": (h, h),
        "linear/b": (h,),
        "linear_1/b": (h,),
    }


def _require_relu(cell: Cell) -> None:
    if cell.activation != "relu":
        raise ValueError(
            "Haiku's VanillaRNN computes with relu: the layer must have "
            f"activation='relu', got {cell.activation!r}"
        )


def _rnn_load(cell: Cell, arrays: Arrays) -> Arrays:
    # With double_bias=False there is no second one.
    b = arrays["linear/b"]
    b = b + arrays.get("linear_1/b", np.zeros_like(b))
    return {"w_x": arrays["linear/w"], "w_h": arrays["linear_1/w"], "b": b}


def _rnn_dump(cell: Cell, arrays: Arrays) -> Arrays:
    _require_relu(cell)
    return {
        "linear/w": arrays["w_x"],
        "linear/b": arrays["b"],
        "linear_1/w": arrays["w_h"],
        "linear_1/b": np.zeros_like(arrays["b"]),
    }


_FORMATS = {
    "LSTMCell": Format(
        _lstm_shapes,
        _lstm_load,
        _lstm_dump,
        lambda cell, arrays: rows(arrays, "linear/w") - cell.features,
    ),
    "ResetBeforeGRUCell": Format(
        _gru_shapes, _gru_load, _gru_dump, lambda cell, arrays: rows(arrays, "w_i")
    ),
    "RNNCell": Format(
        _rnn_shapes,
        _rnn_load,
        _rnn_dump,
        lambda cell, arrays: rows(arrays, "linear/w"),
        frozenset({"linear_1/b"}),
    ),
}
