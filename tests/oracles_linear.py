"""Float64 loops of the cells that are linear in their state, from the papers: as in
`oracles`, one sequence and one step at a time, importing nothing of the library."""

import numpy as np

from tests.oracles import sigmoid


def _gates(x_t, w, number):
    a = x_t @ w["w_x"]
    b = w.get("b", np.zeros(0))
    return np.split(a + np.pad(b, (0, len(a) - len(b))), number)


def _positive(x):
    """`g` of Feng et al. (2024), appendix B."""
    return np.where(x >= 0, x + 0.5, sigmoid(x))


def min_gru(x, h, w):
    """Feng et al. (2024), "Were RNNs all we needed?"."""
    outputs = []
    for x_t in x:
        z, n = _gates(x_t, w, 2)
        h = (1 - sigmoid(z)) * h + sigmoid(z) * _positive(n)
        outputs.append(h)
    return np.array(outputs), h


def min_lstm(x, h, w):
    """The same, with gates normalised to add up to one."""
    outputs = []
    for x_t in x:
        f, i, n = _gates(x_t, w, 3)
        f, i = sigmoid(f), sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * _positive(n)
        outputs.append(h)
    return np.array(outputs), h


def sru(x, c, w):
    """Lei et al. (2018), with `v` the published version, without it the first; the
    inputs skip the state, projected if they have another number of features."""
    size = len(c)
    v = np.split(w.get("v", np.zeros(2 * size)), 2)
    outputs = []
    for x_t in x:
        a = x_t @ w["w_x"]
        f = sigmoid(a[:size] + v[0] * c + w["b"][:size])
        r = sigmoid(a[size : 2 * size] + v[1] * c + w["b"][size:])
        skip = x_t if len(a) == 3 * size else a[3 * size :]
        c = f * c + (1 - f) * a[2 * size : 3 * size]
        outputs.append(r * c + (1 - r) * skip * np.sqrt(3))
    return np.array(outputs), c


def qrnn(x, state, w, pooling, window):
    """Bradbury et al. (2017), equations 1 to 5."""
    c = state[0] if window == 2 else state
    width = (1 + len(pooling)) * len(c)
    before = state[1] if window == 2 else np.zeros(width)
    outputs = []
    for x_t in x:
        a = x_t @ w["w_x"][:, :width] + before + w["b"]
        before = x_t @ w["w_x"][:, width:] if window == 2 else before
        z, f, *rest = np.split(a, 1 + len(pooling))
        z, f = np.tanh(z), sigmoid(f)
        rest = [sigmoid(gate) for gate in rest]
        c = f * c + (rest[1] if pooling == "ifo" else 1 - f) * z
        outputs.append(c if pooling == "f" else rest[0] * c)
    return np.array(outputs), (c, before) if window == 2 else c


def lru(x, s, w):
    """Orvieto et al. (2023), with the parameters' names of its appendix."""
    eigenvalues = np.exp(-np.exp(w["nu"]) + 1j * np.exp(w["theta"]))
    size = len(s)
    b = w["w_x"][:, :size] + 1j * w["w_x"][:, size : 2 * size]
    c = w["w_y"][:size] - 1j * w["w_y"][size:]
    outputs = []
    for x_t in x:
        s = eigenvalues * s + np.exp(w["gamma"]) * (x_t @ b)
        outputs.append((s @ c).real + x_t @ w["w_x"][:, 2 * size :])
    return np.array(outputs), s


def rg_lru(x, h, w):
    """De et al. (2024), equations 1 to 4, with c = 8."""
    size = len(h)
    outputs = []
    for x_t in x:
        u = x_t @ w["w_in"] if "w_in" in w else x_t
        r = sigmoid(u @ w["w_x"][:, :size] + w["b"][:size])
        i = sigmoid(u @ w["w_x"][:, size:] + w["b"][size:])
        a = sigmoid(-w["decay"]) ** (8 * r)
        h = a * h + np.sqrt(1 - a**2) * (i * u)
        outputs.append(h)
    return np.array(outputs), h


def s5(x, s, w):
    """Smith et al. (2023): zero-order hold, one state of each conjugate pair."""
    size = len(s)
    eigenvalues = -np.exp(w["log_decay"]) + 1j * w["frequency"]
    step = np.exp(w["log_step"])
    a = np.exp(eigenvalues * step)
    b = w["w_x"][:, :size] + 1j * w["w_x"][:, size : 2 * size]
    # The factor 2 of the real part is in w_y.
    c = w["w_y"][:size] - 1j * w["w_y"][size:]
    outputs = []
    for x_t in x:
        s = a * s + (a - 1) / eigenvalues * (x_t @ b)
        outputs.append((s @ c).real + x_t @ w["w_x"][:, 2 * size :])
    return np.array(outputs), s
