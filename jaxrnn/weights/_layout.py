"""What the formats of other libraries share.

These are the cells of a layer, the arrays of a file by name, and the check that the one
fits the other.

A library keeps the weights of a cell as a few arrays. `Format` says which, and how
they become ours. Where the cells of a model lie in it, their names say: `find_cells`
collects the arrays whose names end like those of a cell.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrnn._validation import linen_hint, shape_faults

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


class Cell(NamedTuple):
    """One cell of a layer, as far as its weights need to be known.

    Attributes:
        path: of its parameters.
        kind: the name of its class.
        features: of its state.
        inputs: features going in; None where only the weights say.
        use_bias: whether it has biases.
        dtype: of its parameters.
        activation: of an `RNNCell`.
    """

    path: tuple[str, ...]
    kind: str
    features: int
    inputs: int | None
    use_bias: bool
    dtype: np.dtype
    activation: str = "tanh"

    @property
    def gates(self) -> int:
        return {"RNNCell": 1, "LSTMCell": 4}.get(self.kind, 3)


class Format(NamedTuple):
    """How one library keeps the weights of one kind of cell.

    Attributes:
        shapes: of its arrays, by name, for a cell and the features going in.
        load: from its arrays to `w_x`, `w_h` and, with biases, `b` and a GRU's `b_n`.
        dump: the way back.
        inputs: the features going in, as its arrays say.
        optional: names that may be missing.
    """

    shapes: Callable[[Cell, int], Shapes]
    load: Callable[[Cell, Arrays], Arrays]
    dump: Callable[[Cell, Arrays], Arrays]
    inputs: Callable[[Cell, Arrays], int]
    optional: frozenset[str] = frozenset()


def cells_of(layer: Any) -> list[Cell]:
    """The cells of a layer, in the order of its state.

    Raises:
        TypeError: if it is no layer, or has cells that are not this library's.
        ValueError: if a cell has something that other libraries lack.

    >>> import jaxrnn
    >>> [cell.path for cell in cells_of(jaxrnn.GRU(features=4, bidirectional=True))]
    [('l0',), ('l0_reverse',)]
    """
    return [*_walk(layer, (), None)]


def _walk(layer: Any, path: tuple[str, ...], inputs: int | None) -> Iterator[Cell]:
    # By attributes, as this file imports no JAX, which the layers need.
    for option in ("learned_initial_state", "layer_norm", "skip"):
        if getattr(layer, option, None):
            raise ValueError(
                f"layer has {option}={getattr(layer, option)!r}, which the layers of "
                "other libraries have not"
            )
    if hasattr(layer, "cell_type"):
        directions = ("", "_reverse") if layer.bidirectional else ("",)
        for k in range(layer.num_layers):
            for direction in directions:
                name = layer.cell_type.__name__
                yield _cell(layer, name, (*path, f"l{k}{direction}"), inputs)
            inputs = _outputs(layer)
    elif hasattr(layer, "cell"):
        cell = layer.cell
        yield _cell(cell, type(cell).__name__, (*path, "cell"), inputs)
    elif hasattr(layer, "forward") and hasattr(layer, "backward"):
        yield from _walk(layer.forward, (*path, "forward"), inputs)
        yield from _walk(layer.backward, (*path, "backward"), inputs)
    elif hasattr(layer, "layers"):
        for k, part in enumerate(layer.layers):
            yield from _walk(part, (*path, f"layers_{k}"), inputs)
            inputs = _outputs(part)
    else:
        raise TypeError(
            "layer must be an RNN, LSTM, GRU, Recurrent, Bidirectional or Stack, got "
            f"{layer!r:.80}{linen_hint(layer)}"
        )


def _cell(source: Any, kind: str, path: tuple[str, ...], inputs: int | None) -> Cell:
    if kind not in _KINDS:
        raise TypeError(f"cells must be one of {[*_KINDS]}, got {kind}")
    if getattr(source, "proj_size", 0):
        raise ValueError(
            f"layer has proj_size={source.proj_size}: only PyTorch's LSTM has one"
        )
    return Cell(
        path,
        kind,
        source.features,
        inputs,
        source.use_bias,
        np.dtype(source.param_dtype),
        getattr(source, "activation", "tanh"),
    )


_KINDS = ("RNNCell", "LSTMCell", "GRUCell", "ResetBeforeGRUCell")


def _outputs(layer: Any) -> int | None:
    """The features coming out of a layer; None where they lie on two axes."""
    if hasattr(layer, "cell_type"):
        return layer.features * (2 if layer.bidirectional else 1)
    if hasattr(layer, "cell"):
        return layer.cell.features
    if hasattr(layer, "layers"):
        return _outputs(layer.layers[-1])
    forward = _outputs(layer.forward)
    if layer.merge == "concat":
        backward = _outputs(layer.backward)
        return forward and backward and forward + backward
    return forward if layer.merge in ("sum", "mean", "mul") else None


def load_cells(
    source: Any,
    layer: Any,
    formats: Mapping[str, Format],
    prefix: str,
    library: str,
    ordered: bool = False,
) -> dict[str, Any]:
    """The variables of `layer` with the weights of the cells in `source`.

    `source` is a mapping in which they are found, or a sequence of one for each.

    Raises:
        TypeError: if `source` is neither, or `library` has no such cells.
        ValueError: as `find_cells`, or with all arrays that do not fit.
    """
    cells = cells_of(layer)
    each = [_format_of(cell, formats, library) for cell in cells]
    if isinstance(source, Mapping):
        found = find_cells(flatten(source), cells, each, prefix, ordered)
    elif isinstance(source, Sequence) and not isinstance(source, str | bytes):
        found = {f"weights[{k}]": flatten(cell) for k, cell in enumerate(source)}
    else:
        hint = ": give nnx.state(module, nnx.Param)" if library == "flax.nnx" else ""
        raise TypeError(
            "weights must be a dict of arrays, or a list of one for each cell, got "
            f"{source!r:.80}{hint}"
        )
    if len(found) != len(cells):
        raise ValueError(
            f"weights must have {len(cells)} cells, as the layer has, got "
            f"{len(found)}: {[*found][:8]}"
        )
    faults, params = [], {}
    for cell, how, (name, arrays) in zip(cells, each, found.items(), strict=True):
        inputs = cell.inputs
        if inputs is None:
            inputs = how.inputs(cell, arrays)
        expected = how.shapes(cell, inputs)
        wrong = shape_faults(_shapes(arrays), expected, how.optional)
        faults += [f"{name}: {fault}" for fault in wrong]
        if not wrong:
            ours = how.load(cell, {k: _wide(v) for k, v in arrays.items()})
            for bias in {"b", "b_n"} & ours.keys() if not cell.use_bias else ():
                remedy = "use_bias=True has a place for it"
                require_zero(ours.pop(bias), f"the bias of {name}", remedy)
            _set(params, cell, ours)
    if faults:
        raise ValueError("weights do not fit the layer: " + "; ".join(faults))
    return {"params": params}


def dump_cells(
    variables: Mapping[str, Any],
    layer: Any,
    formats: Mapping[str, Format],
    library: str,
) -> list[Arrays]:
    """The weights of each cell of `layer`, under the other library's names.

    Raises:
        TypeError: if `variables` is no mapping, or `library` has no such cells.
        ValueError: if parameters are missing, unexpected or mis-shaped; lists them all.
    """
    cells = cells_of(layer)
    each = [_format_of(cell, formats, library) for cell in cells]
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be a dict of arrays, got {variables!r:.80}")
    if "params" not in variables:
        raise ValueError(f"variables must have 'params', got only {[*variables][:8]}")
    ours = flatten(variables["params"])
    expected, inputs = {}, []
    for cell in cells:
        path = "/".join(cell.path)
        w_x = np.asarray(ours.get(f"{path}/w_x", 0))
        known = cell.inputs
        inputs.append(len(w_x) if known is None and w_x.ndim else known or 0)
        shapes = _our_shapes(cell, inputs[-1])
        expected |= {f"{path}/{name}": shape for name, shape in shapes.items()}
    faults = shape_faults(_shapes(ours), expected)
    if faults:
        raise ValueError("variables do not fit the layer: " + "; ".join(faults))
    found = []
    for cell, how in zip(cells, each, strict=True):
        start = "/".join(cell.path) + "/"
        arrays = {
            name.removeprefix(start): value
            for name, value in ours.items()
            if name.startswith(start)
        }
        if not cell.use_bias:  # Other libraries may have one all the same.
            gates = cell.gates * cell.features
            arrays["b"] = np.zeros(gates, arrays["w_h"].dtype)
            arrays["b_n"] = arrays["b"][: cell.features]
        theirs = how.dump(cell, arrays)
        found.append({k: np.array(v, order="C") for k, v in theirs.items()})
    return found


def find_cells(
    arrays: Arrays,
    cells: Sequence[Cell],
    formats: Sequence[Format],
    prefix: str,
    ordered: bool = False,
) -> dict[str, Arrays]:
    """The arrays of each cell below `prefix`, by the cell's name there.

    They are in the order of `arrays` if that is `ordered`, else in the order that the
    names say: numbers as numbers, forward before backward.

    Raises:
        ValueError: if there are none, or the names do not say their order.

    >>> how = Format(
    ...     lambda cell, inputs: {"w": (inputs, cell.features)},
    ...     lambda cell, arrays: arrays, lambda cell, arrays: arrays,
    ...     lambda cell, arrays: arrays["w"].shape[0],
    ... )
    >>> cell = Cell((), "RNNCell", 2, None, True, np.dtype("float32"))
    >>> w = np.ones((3, 2))
    >>> [*find_cells({"rnn_10/w": w, "rnn_9/w": w}, [cell, cell], [how, how], "")]
    ['rnn_9', 'rnn_10']
    """
    below = {k: v for k, v in arrays.items() if k.startswith(prefix)}
    found = {}
    for cell, how in zip(cells, formats, strict=True):
        names = how.shapes(cell, 0).keys() | how.optional | {"bias"}
        matrices = {name for name in names - how.optional if not _is_bias(name)}
        for path in _parents(below, matrices):
            start = f"{path}/" if path else ""
            group = {n: below[start + n] for n in names if start + n in below}
            if _has_features(cell, how, {n: group[n] for n in matrices}):
                found[path] = group
    if not found:
        shapes = [f"{name} {array.shape}" for name, array in arrays.items()]
        raise ValueError(
            f"weights have no {cells[0].kind} of {cells[0].features} features below "
            f"{prefix!r}, only {shapes[:8]}"
        )
    if ordered:
        names = [*below]

        def first(path: str) -> int:
            start = f"{path}/" if path else ""
            return next(k for k, name in enumerate(names) if name.startswith(start))

        return {path: found[path] for path in sorted(found, key=first)}
    if len({_without_order(path) for path in found}) > 1:
        raise ValueError(
            f"the names {sorted(found)} do not say which cell comes first: give one "
            "part of them by prefix, or a list of one dict for each cell"
        )
    return {path: found[path] for path in sorted(found, key=_order)}


def _is_bias(name: str) -> bool:
    return name.split("/")[-1] in ("bias", "b")


def _parents(arrays: Arrays, required: set[str]) -> list[str]:
    """The paths below which all of these names are, in the order of `arrays`."""
    paths = {
        name.removesuffix(last).removesuffix("/"): None
        for name in arrays
        for last in required
        if name == last or name.endswith(f"/{last}")
    }
    return [
        path
        for path in paths
        if all((f"{path}/{name}" if path else name) in arrays for name in required)
    ]


def _has_features(cell: Cell, how: Format, matrices: Arrays) -> bool:
    """Whether the matrices are as a cell of this size has them.

    Else it is another part of the model, or another layer of it.
    """
    inputs = how.inputs(cell, matrices)
    shapes = how.shapes(cell, inputs)
    return inputs > 0 and all(a.shape == shapes[name] for name, a in matrices.items())


def _order(path: str) -> list[tuple[int, int, str]]:
    path = path.replace("forward", "0").replace("backward", "1")
    parts = re.split(r"(\d+)", re.sub(r"(?<=[^\W\d_])(?=/|$)", "_0", path))
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _without_order(path: str) -> str:
    return re.sub(r"_?\d+(?=/|$)", "", re.sub("forward|backward", "#", path))


def flatten(tree: Any, path: str = "") -> Arrays:
    """The arrays of nested mappings, their keys joined by slashes.

    Raises:
        TypeError: if there is something else than mappings and arrays of numbers.

    >>> flatten({"l0": {"w": np.ones(2)}})
    {'l0/w': array([1., 1.])}
    """
    if isinstance(tree, Mapping):
        return {
            name: array
            for key, value in tree.items()
            for name, array in flatten(value, f"{path}/{key}".lstrip("/")).items()
        }
    for read in ("get_value", "numpy"):  # of Flax NNX, and of Keras
        tree = getattr(tree, read)() if hasattr(tree, read) else tree
    if "key<" in str(getattr(tree, "dtype", "")):
        raise TypeError(
            f"{path} is a PRNG key, no weight: of a module of Flax NNX give "
            "nnx.state(module, nnx.Param)"
        )
    array = np.asarray(tree)
    if array.dtype.kind in "OSUMm":
        raise TypeError(
            f"{path or 'weights'} must be an array of numbers, got {tree!r}"
        )
    return {path: array}


def _format_of(cell: Cell, formats: Mapping[str, Format], library: str) -> Format:
    if cell.kind not in formats:
        raise TypeError(
            f"{library} has cells like {[*formats]}, but none like the layer's "
            f"{cell.kind}"
        )
    return formats[cell.kind]


def _shapes(arrays: Arrays) -> Shapes:
    return {name: array.shape for name, array in arrays.items()}


def _our_shapes(cell: Cell, inputs: int) -> Shapes:
    gates = cell.gates * cell.features
    shapes: Shapes = {"w_x": (inputs, gates), "w_h": (cell.features, gates)}
    if cell.use_bias:
        shapes["b"] = (gates,)
        if cell.kind == "GRUCell":
            shapes["b_n"] = (cell.features,)
    return shapes


def _set(params: dict[str, Any], cell: Cell, arrays: Arrays) -> None:
    for name in cell.path:
        params = params.setdefault(name, {})
    params |= {k: np.array(v, cell.dtype, order="C") for k, v in arrays.items()}


def _wide(array: np.ndarray) -> np.ndarray:
    """At least float32: sums are rounded once, to the dtype of the parameters."""
    return array.astype(np.promote_types(array.dtype, np.float32))


def reorder_gates(array: np.ndarray, gates: str, wanted: str) -> np.ndarray:
    """The blocks of the last axis in another order.

    >>> reorder_gates(np.array([1, 2, 3]), "zrn", "rzn")
    array([2, 1, 3])
    """
    blocks = np.split(array, len(gates), axis=-1)
    return np.concatenate([blocks[gates.index(gate)] for gate in wanted], axis=-1)


def require_zero(array: np.ndarray, what: str, remedy: str) -> None:
    """Refuses values that the other side has no place for.

    Raises:
        ValueError: if one is not zero.

    >>> require_zero(np.zeros(2), "b_n", "")
    """
    if np.any(array):
        largest = np.abs(array).max()
        raise ValueError(f"{what} must be zero, has {largest:.3g}: {remedy}")


def rows(arrays: Arrays, name: str) -> int:
    """The size of an array's first axis, 0 where there is none.

    >>> rows({"w": np.ones((3, 2))}, "w"), rows({}, "w")
    (3, 0)
    """
    return len(arrays[name]) if name in arrays and np.ndim(arrays[name]) else 0
