"""What the units of a character model do while it reads a text.

The value of a unit is what it remembers, from -1 to 1: the hyperbolic tangent of the
memory cell of an LSTM, as in Karpathy, Johnson and Fei-Fei (2015), "Visualizing and
Understanding Recurrent Networks", and the state itself of a GRU or RNN.
"""

import base64
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.charlm.generator import Writer
from jaxrnn.types import CellState, LSTMState

TEMPLATE = Path(__file__).parent / "templates" / "activations"
LONGEST = 10_000  # characters of a page
SHOWN = 128  # units
LIKELIEST = 5  # characters that may come next
LAG = 10  # characters


def describe(writer: Writer, text: str, name: str) -> dict[str, Any]:
    """What the page shows of the text called `name`, as JSON has it: numbers are in
    base64, those of units in 127ths, probabilities in 65,535ths.

    Raises:
        ValueError: the text is too long for a page.
    """
    if len(text) > LONGEST:
        raise ValueError(
            f"{name} has {len(text):,} characters, a page takes at most {LONGEST:,}: "
            "give a part of it"
        )
    states, logs = zip(*writer.trace(text), strict=True)
    state = jax.tree.map(lambda *leaves: np.concatenate(leaves), *states)
    layers = [values(cell_state) for cell_state in state]
    ids = writer.vocab.encode(list(text))
    units = np.concatenate(layers, axis=1)
    scores = memory(units, ids)
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    names = [
        (layer, k) for layer, part in enumerate(layers) for k in range(part.shape[1])
    ]
    probabilities = np.exp(np.concatenate(logs))
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELIEST]
    following = probabilities[np.arange(ids.size - 1), ids[1:]]
    return {
        "characters": list(text),
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
    """The values of the units of a cell, from -1 to 1."""
    return np.tanh(state.c) if isinstance(state, LSTMState) else state


def memory(units: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """How much each unit remembers of a text, by its values [t u] at the characters.

    From each value the mean over all places with the same character is taken away: what
    is left the unit has from earlier ones. The score is the mean product of what is
    left with what is left `LAG` characters later: great for a unit that swings widely,
    and keeps what it has. Of a shorter text it is the mean square.

    >>> kept, lost = np.repeat([-1.0, 1.0], 20), np.tile([-1.0, 1.0], 20)
    >>> memory(np.stack([kept, lost], axis=1), ids=np.zeros(40, int))
    array([0.33333333, 1.        ])
    """
    counts = np.bincount(ids)[ids]
    means = np.zeros((ids.max() + 1, units.shape[1]))
    np.add.at(means, ids, units / counts[:, None])
    left = units - means[ids]
    lag = LAG if len(left) > LAG else 0
    return np.mean(left[: len(left) - lag] * left[lag:], axis=0)


def _pack(numbers: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.rint(numbers).astype(dtype).tobytes()).decode()
