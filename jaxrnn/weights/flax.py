"""Flax's weights and ours, of Linen and of NNX: the same numbers under other names.

    flax.linen                                    here
    LSTMCell, OptimizedLSTMCell: ii if ig io      w_x, side by side
      hi hf hg ho                                 w_h, and their biases b
    GRUCell: ir iz in, hr hz hn                   w_x and their biases b, w_h
      the bias of hn                              b_n
    SimpleCell: i, h                              w_x and its bias b, w_h

    flax.nnx
    OptimizedLSTMCell: dense_i, dense_h           w_x, w_h and its bias b
    LSTMCell: ii if_ ig io, hi hf hg ho           w_x, w_h and their biases b
    GRUCell, SimpleCell: dense_i, dense_h         w_x and its bias b, w_h

The GRU of NNX has no bias for the part of the state that the reset gate multiplies: our
`b_n` is zero there. The cells' activations must be the defaults, tanh and sigmoid, but
for a SimpleCell with relu; none may be `residual`.

Numpy in, numpy out: the weights are nested dicts of arrays, as Linen's `init` returns
them, and `nnx.state(module, nnx.Param)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxrnn.weights._layout import (
    Arrays,
    Cell,
    Format,
    Shapes,
    dump_cells,
    flatten,
    load_cells,
    require_zero,
    rows,
)


def from_linen(
    variables: Mapping[str, Any] | Sequence[Any], layer: Any, *, prefix: str = ""
) -> dict[str, Any]:
    """The variables of `layer` with the weights of cells of `flax.linen`.

    They are in the layer's `param_dtype`.

    Args:
        variables: of a cell, an `nn.RNN`, an `nn.Bidirectional` or a model, in which
            other parts are left alone; or a list of one dict for each cell, in the
            order of the layer's state.
        layer: an `RNN`, `LSTM`, `GRU`, or a `Recurrent`, `Bidirectional` or `Stack` of
            such cells.
        prefix: only what begins with it is looked at ("params/encoder/").

    Raises:
        TypeError: if Flax has no cell like the layer's.
        ValueError: if arrays are missing or mis-shaped; lists them all. If it is not
            clear which cells are meant, or in which order. If the layer has no place
            for a bias.

    >>> import jax, jaxrnn
    >>> from flax import linen as nn
    >>> x = np.ones((7, 5, 3), np.float32)
    >>> theirs = nn.RNN(nn.OptimizedLSTMCell(features=2))
    >>> weights = theirs.init(jax.random.key(0), x)
    >>> layer = jaxrnn.LSTM(features=2)
    >>> outputs, _ = layer.apply(from_linen(weights, layer), x)
    >>> bool(np.allclose(outputs, theirs.apply(weights, x), atol=1e-6))
    True
    """
    return load_cells(variables, layer, _LINEN, prefix, "flax.linen")


def to_linen(variables: Mapping[str, Any], layer: Any) -> list[dict[str, Any]]:
    """The parameters of a cell of `flax.linen` for each cell of `layer`.

    They are in the order of the layer's state, and those of an `OptimizedLSTMCell` or
    `LSTMCell`, a `GRUCell` or a `SimpleCell`.

    Raises:
        TypeError: if `variables` is no mapping, or Flax has no such cells.
        ValueError: if parameters are missing, unexpected or mis-shaped; lists them all.

    >>> import jax, jaxrnn
    >>> from flax import linen as nn
    >>> x = np.ones((7, 5, 3), np.float32)
    >>> layer = jaxrnn.GRU(features=2)
    >>> variables = layer.init(jax.random.key(0), x)
    >>> [cell] = to_linen(variables, layer)
    >>> y = nn.RNN(nn.GRUCell(features=2)).apply({"params": {"cell": cell}}, x)
    >>> bool(np.allclose(y, layer.apply(variables, x)[0], atol=1e-6))
    True
    """
    return [
        _nested(cell) for cell in dump_cells(variables, layer, _LINEN, "flax.linen")
    ]


def from_nnx(
    state: Mapping[Any, Any] | Sequence[Any], layer: Any, *, prefix: str = ""
) -> dict[str, Any]:
    """Like `from_linen`, for `flax.nnx` cells.

    `state` is `nnx.state(module, nnx.Param)` of a cell, an `nnx.RNN`, an
    `nnx.Bidirectional` or a model; `prefix` has no "params/".

    >>> import jaxrnn
    >>> from flax import nnx
    >>> cell = nnx.OptimizedLSTMCell(3, 2, rngs=nnx.Rngs(0))
    >>> layer = jaxrnn.LSTM(features=2)
    >>> variables = from_nnx(nnx.state(cell, nnx.Param), layer)
    >>> {name: w.shape for name, w in variables["params"]["l0"].items()}
    {'w_x': (3, 8), 'w_h': (2, 8), 'b': (8,)}
    """
    cells = state if isinstance(state, Sequence) else [state]
    cells = [cell for cell in cells if isinstance(cell, Mapping)]
    names = [name for cell in cells for name in flatten(cell)]
    below = [name for name in names if name.startswith(prefix)]
    # Of the two LSTMs, `if_` is in the one that has a matrix for each gate.
    gate_by_gate = any(name.endswith("if_/kernel") for name in below)
    formats = _NNX | (_NNX_LSTM if gate_by_gate else {})
    return load_cells(state, layer, formats, prefix, "flax.nnx")


def to_nnx(
    variables: Mapping[str, Any],
    layer: Any,
    *,
    lstm: Literal["OptimizedLSTMCell", "LSTMCell"] = "OptimizedLSTMCell",
) -> list[dict[str, Any]]:
    """The parameters of a cell of `flax.nnx` for each cell of `layer`.

    They are in the order of the layer's state, and for `nnx.update`; `lstm` says of
    which LSTM.

    Raises:
        TypeError: if `variables` is no mapping, or Flax has no such cells.
        ValueError: if parameters are missing, unexpected or mis-shaped; lists them all.
            If `b_n` of a GRU is not zero, for which NNX has no place.

    >>> import jax, jaxrnn
    >>> from flax import nnx
    >>> layer = jaxrnn.LSTM(features=2)
    >>> variables = layer.init(jax.random.key(0), np.ones((7, 3), np.float32))
    >>> cell = nnx.OptimizedLSTMCell(3, 2, rngs=nnx.Rngs(0))
    >>> nnx.update(cell, to_nnx(variables, layer)[0])
    >>> bool((cell.dense_i.kernel[...] == variables["params"]["l0"]["w_x"]).all())
    True
    """
    if lstm not in ("OptimizedLSTMCell", "LSTMCell"):
        raise ValueError(
            f"lstm must be 'OptimizedLSTMCell' or 'LSTMCell', got {lstm!r}"
        )
    formats = _NNX | (_NNX_LSTM if lstm == "LSTMCell" else {})
    return [_nested(cell) for cell in dump_cells(variables, layer, formats, "flax.nnx")]


def _gate_by_gate(inputs: tuple[str, ...], state: tuple[str, ...]) -> Format:
    """A matrix of its own for each gate."""

    def shapes(cell: Cell, d: int) -> Shapes:
        h = cell.features
        found: Shapes = {f"{name}/kernel": (d, h) for name in inputs}
        found |= {f"{name}/kernel": (h, h) for name in state}
        return found | {f"{name}/bias": (h,) for name in biased(cell)}

    def biased(cell: Cell) -> tuple[str, ...]:
        if cell.kind == "LSTMCell":
            return state
        return (*inputs, state[-1]) if cell.kind == "GRUCell" else inputs

    def load(cell: Cell, arrays: Arrays) -> Arrays:
        def joined(names: tuple[str, ...], last: str) -> np.ndarray:
            return np.concatenate([arrays[f"{name}/{last}"] for name in names], axis=-1)

        ours = {"w_x": joined(inputs, "kernel"), "w_h": joined(state, "kernel")}
        ours["b"] = joined(biased(cell)[: len(inputs)], "bias")
        if cell.kind == "GRUCell":
            ours["b_n"] = arrays[f"{state[-1]}/bias"]
        return ours

    def dump(cell: Cell, arrays: Arrays) -> Arrays:
        theirs = {}
        for names, last, array in (
            (inputs, "kernel", arrays["w_x"]),
            (state, "kernel", arrays["w_h"]),
            (biased(cell)[: len(inputs)], "bias", arrays["b"]),
        ):
            for name, gate in zip(names, np.split(array, len(names), -1), strict=True):
                theirs[f"{name}/{last}"] = gate
        if cell.kind == "GRUCell":
            theirs[f"{state[-1]}/bias"] = arrays["b_n"]
        return theirs

    return Format(
        shapes, load, dump, lambda cell, arrays: rows(arrays, f"{inputs[0]}/kernel")
    )


def _fused(bias: str) -> Format:
    """Two matrices for all gates, and a bias beside one of them."""

    def shapes(cell: Cell, d: int) -> Shapes:
        gates = cell.gates * cell.features
        return {
            "dense_i/kernel": (d, gates),
            "dense_h/kernel": (cell.features, gates),
            bias: (gates,),
        }

    def load(cell: Cell, arrays: Arrays) -> Arrays:
        w_x, w_h, b = (arrays[name] for name in shapes(cell, 0))
        ours = {"w_x": w_x, "w_h": w_h, "b": b}
        if cell.kind == "GRUCell":
            ours["b_n"] = np.zeros_like(b[: cell.features])
        return ours

    def dump(cell: Cell, arrays: Arrays) -> Arrays:
        if cell.kind == "GRUCell":
            require_zero(
                arrays["b_n"],
                f"b_n of {'/'.join(cell.path)}",
                "flax.nnx has no such bias",
            )
        ours = (arrays["w_x"], arrays["w_h"], arrays["b"])
        return dict(zip(shapes(cell, 0), ours, strict=True))

    return Format(
        shapes, load, dump, lambda cell, arrays: rows(arrays, "dense_i/kernel")
    )


def _nested(arrays: Arrays) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        first, last = name.split("/")
        tree.setdefault(first, {})[last] = array
    return tree


_LINEN = {
    "LSTMCell": _gate_by_gate(("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "GRUCell": _gate_by_gate(("ir", "iz", "in"), ("hr", "hz", "hn")),
    "RNNCell": _gate_by_gate(("i",), ("h",)),
}
_NNX = {
    "LSTMCell": _fused("dense_h/bias"),
    "GRUCell": _fused("dense_i/bias"),
    "RNNCell": _fused("dense_i/bias"),
}
_NNX_LSTM = {
    "LSTMCell": _gate_by_gate(("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho"))
}
