"""The activations of the hidden units of a language model on a text.

The activation of a unit, from -1 to 1, is tanh(c) of an LSTM's cell state, as in
Karpathy, Johnson and Fei-Fei (2015), "Visualizing and Understanding Recurrent
Networks", and the hidden state itself of a GRU or RNN. Of other cells it is the
state too, its first part if there are several, and the real part of a complex one,
clipped to -1 and 1.
"""

import base64
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.charlm.generator import Writer
from jaxrnn.types import CellState, LSTMState

TEMPLATE = Path(__file__).parent / "templates" / "activations"
LONGEST = 10_000  # characters or words on a page
SHOWN = 128  # units
LIKELIEST = 5  # next characters that are shown
LAG = 10  # tokens


def describe(writer: Writer, text: str) -> dict[str, Any]:
    """Return the data of the page, as JSON, for the first tokens of a text.

    A page has at most `LONGEST` tokens and the `SHOWN` units with the highest
    scores. Arrays are in base64: activations in 127ths, probabilities in 65,535ths.
    """
    ids = writer.encode(text)[:LONGEST]
    states, logs = zip(*writer.trace(ids), strict=True)
    state = jax.tree.map(lambda *leaves: np.concatenate(leaves), *states)
    layers = [values(cell_state) for cell_state in state]
    tokens = writer.vocab.decode(ids)
    units = np.concatenate(layers, axis=1)
    scores = memory_scores(units, ids)
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    names = [
        (layer, k) for layer, part in enumerate(layers) for k in range(part.shape[1])
    ]
    probabilities = np.exp(np.concatenate(logs))
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELIEST]
    following = probabilities[np.arange(ids.size - 1), ids[1:]]
    return {
        "characters": writer.units.written(tokens),
        "tokens": tokens,
        "units": [
            {"layer": names[k][0], "unit": names[k][1], "score": float(scores[k])}
            for k in order
        ],
        "of": len(names),
        "lag": LAG,
        "values": _pack(127 * units[:, order].T, "i1"),
        "vocabulary": list(writer.vocab.tokens),
        "likeliest": _pack(likeliest, "<u4"),
        "probabilities": _pack(
            65535 * np.take_along_axis(probabilities, likeliest, axis=1), "<u2"
        ),
        "following": _pack(65535 * following, "<u2"),
    }


def values(state: CellState) -> np.ndarray:
    """Return the activations of the units of a layer, from -1 to 1.

    >>> values(np.array([0.5 + 2j, 3])).tolist()
    [0.5, 1.0]
    """
    if isinstance(state, LSTMState):
        return np.tanh(state.c)
    return np.clip(np.real(jax.tree.leaves(state)[0]), -1, 1)


def memory_scores(units: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return for each unit how much its activations [t u] depend on earlier characters.

    From each activation the mean over all positions with the same character is
    subtracted: the residual depends on earlier characters. The score is the mean of the
    residual times the residual `LAG` characters later, an autocovariance: large for a
    unit that varies a lot, and slowly. Of a text shorter than that it is the variance.

    >>> slow, fast = np.repeat([-1.0, 1.0], 20), np.tile([-1.0, 1.0], 20)
    >>> memory_scores(np.stack([slow, fast], axis=1), ids=np.zeros(40, int))
    array([0.33333333, 1.        ])
    """
    counts = np.bincount(ids)[ids]
    means = np.zeros((ids.max() + 1, units.shape[1]))
    np.add.at(means, ids, units / counts[:, None])
    residual = units - means[ids]
    lag = LAG if len(residual) > LAG else 0
    return np.mean(residual[: len(residual) - lag] * residual[lag:], axis=0)


def _pack(numbers: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.rint(numbers).astype(dtype).tobytes()).decode()
