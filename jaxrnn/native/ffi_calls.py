"""Arrays to the compiled kernels and back, for the rows of one device.

Operands, results and residuals are known by their names everywhere in `jaxrnn.native`.
Rows may have any number of axes, which lead: `[*b, t, d]` for sequences, `[*b, h]` for
states. The kernels have one: the axes are merged here, where that moves nothing.
"""

import math
import os
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrnn.native.library import BACKWARD, FORWARD
from jaxrnn.types import Array

CellName = Literal["lstm", "gru", "rnn-tanh", "rnn-relu"]
# In the order of the enum in recurrence.h.
CELLS: tuple[CellName, ...] = ("lstm", "gru", "rnn-tanh", "rnn-relu")

Arrays = Mapping[str, Array]

WEIGHTS = ("w_x", "b", "w_h", "b_n", "w_p")
MASKS = ("valid", "starts", "first")
# In the order that the kernels take them.
OPERANDS = ("x", *WEIGHTS, "h0", "c0", "h_first", "c_first", *MASKS)
DIFFERENTIABLE = OPERANDS[: -len(MASKS)]
_KEPT = ("c", "gates")
# What has a time axis before its features.
SEQUENCES = ("x", "y", *_KEPT)

# The kernels keep these with the time first: a step is then contiguous.
_TIME_MAJOR = (1, 0, 2)


def results(cell: CellName, *, saved: bool) -> tuple[str, ...]:
    """The names of the results of a forward pass.

    With `saved`, also of what only a backward pass reads.

    >>> results("gru", saved=True)
    ('y', 'h_last', 'gates')
    """
    kept = {"lstm": _KEPT, "gru": ("gates",)}.get(cell, ()) if saved else ()
    return ("y", "h_last", *(("c_last",) if cell == "lstm" else ()), *kept)


def residuals(cell: CellName) -> tuple[str, ...]:
    """The names of the results of a forward pass that the backward pass reads.

    >>> residuals("gru"), residuals("lstm")
    (('y', 'gates'), ('y', 'c', 'gates'))
    """
    return tuple(n for n in results(cell, saved=True) if not n.endswith("_last"))


def forward(cell: CellName, given: Arrays, *, saved: bool, reverse: bool) -> list:
    """The results of a forward pass that `results` names."""
    x, h0 = given["x"], given["h0"]
    rows, steps = h0.shape[:-1], x.shape[-2]
    hidden = given["w_x"].shape[-1] // _gates(cell)
    features = {"gates": 4 * hidden, "c": hidden, "c_last": hidden}
    sizes = {}
    for name in results(cell, saved=saved):
        time = (steps,) if name in SEQUENCES else ()
        sizes[name] = (*time, features.get(name, h0.shape[-1]))
    order = ("y", "h_last", "c_last", *_KEPT)
    found = _call(FORWARD, cell, given, (OPERANDS, MASKS), sizes, order, rows, reverse)
    return [found[name] for name in sizes]


def backward(
    cell: CellName, given: Arrays, wanted: tuple[str, ...], *, reverse: bool
) -> list:
    """The cotangents of the operands that `wanted` names.

    They come from operands, residuals and the cotangents `d_y`, `d_h_last` and, of an
    LSTM, `d_c_last`.
    """
    rows = given["h0"].shape[:-1]
    sizes = {
        name: given[name].shape if name in WEIGHTS else given[name].shape[len(rows) :]
        for name in wanted
    }
    operands = (*OPERANDS, "y", *_KEPT, "d_y", "d_h_last", "d_c_last")
    found = _call(
        BACKWARD, cell, given, (operands, MASKS), sizes, DIFFERENTIABLE, rows, reverse
    )
    return [found[name] for name in wanted]


def threads() -> int:
    """Threads for one call: with one device per core, a call has one thread.

    >>> threads() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cores = cores or os.cpu_count() or 1
    return max(1, cores // jax.local_device_count("cpu"))


def _gates(cell: CellName) -> int:
    return {"lstm": 4, "gru": 3}.get(cell, 1)


def _call(target, cell, given, operands, sizes, order, rows, reverse) -> Arrays:
    """The results of `target` with these sizes, by name.

    Those without rows are of weights. Missing operands are passed to the kernels as
    empty arrays.
    """
    names, masks = operands
    count = math.prod(rows)

    def merged(name):
        if name not in given:
            return jnp.zeros((0,), bool if name in masks else jnp.float32)
        array = given[name]
        if name in WEIGHTS:
            return array
        return array.reshape(count, *array.shape[len(rows) :])

    def shape(name):
        if name not in sizes:
            return (0,)
        return sizes[name] if name in WEIGHTS else (count, *sizes[name])

    def layout(name, there):
        return _TIME_MAJOR if name in _KEPT and there else None

    call = jax.ffi.ffi_call(
        target,
        [jax.ShapeDtypeStruct(shape(name), jnp.float32) for name in order],
        input_layouts=[layout(name, name in given) for name in names],
        output_layouts=[layout(name, name in sizes) for name in order],
    )
    found = call(
        *map(merged, names),
        cell=CELLS.index(cell),
        reverse=reverse,
        threads=threads(),
    )
    return {
        name: array if name in WEIGHTS else array.reshape(*rows, *sizes[name])
        for name, array in zip(order, found, strict=True)
        if name in sizes
    }
