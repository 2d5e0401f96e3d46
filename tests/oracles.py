"""What the right answer is: float64 loops over one sequence at a time, written from the
papers. Nothing of the library is imported, nothing here is fast.

Every function takes `x [t, d]`, an initial state and a dictionary of weights, and
returns the outputs of all steps and the final state.
"""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def rnn(x, h, w, activation="tanh"):
    """Elman (1990), "Finding structure in time"."""
    act = np.tanh if activation == "tanh" else lambda a: np.maximum(a, 0)
    outputs = []
    for x_t in x:
        h = act(x_t @ w["w_x"] + w["b"] + h @ w["w_h"])
        outputs.append(h)
    return np.array(outputs), h


def lstm(x, state, w):
    """Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000), one
    gate at a time; the projection of Sak et al. (2014) if there is a `w_p`."""
    h, c = state
    size = len(c)
    outputs = []
    for x_t in x:

        def gate(k, x_t=x_t, h=h):
            part = slice(k * size, (k + 1) * size)
            return x_t @ w["w_x"][:, part] + h @ w["w_h"][:, part] + w["b"][part]

        i, f, g, o = sigmoid(gate(0)), sigmoid(gate(1)), np.tanh(gate(2)), gate(3)
        c = f * c + i * g
        h = sigmoid(o) * np.tanh(c)
        if "w_p" in w:
            h = h @ w["w_p"]
        outputs.append(h)
    return np.array(outputs), (h, c)


def gru(x, h, w):
    """Cho et al. (2014), arXiv v1: the reset gate after the product."""
    size = len(h)
    parts = [slice(k * size, (k + 1) * size) for k in range(3)]
    outputs = []
    for x_t in x:
        r, z = (
            sigmoid(x_t @ w["w_x"][:, p] + h @ w["w_h"][:, p] + w["b"][p])
            for p in parts[:2]
        )
        p = parts[2]
        recurrent = h @ w["w_h"][:, p] + w["b_n"]
        n = np.tanh(x_t @ w["w_x"][:, p] + w["b"][p] + r * recurrent)
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.array(outputs), h


def reset_before_gru(x, h, w):
    """Cho et al. (2014), arXiv v3, equations 5 to 8: the reset gate before it."""
    size = len(h)
    parts = [slice(k * size, (k + 1) * size) for k in range(3)]
    outputs = []
    for x_t in x:
        r, z = (
            sigmoid(x_t @ w["w_x"][:, p] + h @ w["w_h"][:, p] + w["b"][p])
            for p in parts[:2]
        )
        p = parts[2]
        n = np.tanh(x_t @ w["w_x"][:, p] + w["b"][p] + (r * h) @ w["w_h"][:, p])
        h = z * h + (1 - z) * n
        outputs.append(h)
    return np.array(outputs), h
