"""Float64 loops of the structured, continuous and convolutional cells, from the papers:
as in `oracles`, one sequence and one step at a time, importing nothing of the
library."""

import itertools

import numpy as np

from tests.oracles import sigmoid


def ind_rnn(x, h, w, activation="relu"):
    """Li et al. (2018)."""
    outputs = []
    for x_t in x:
        h = x_t @ w["w_x"] + w["u"] * h + w["b"]
        h = np.maximum(h, 0) if activation == "relu" else np.tanh(h)
        outputs.append(h)
    return np.array(outputs), h


def antisymmetric(x, h, w, gated=False, epsilon=0.01, gamma=0.01):
    """Chang, Chen, Haber and Chi (2019)."""
    size = len(h)
    matrix = w["w_h"] - w["w_h"].T - gamma * np.eye(size)
    outputs = []
    for x_t in x:
        a = x_t @ w["w_x"] + w["b"]
        change = np.tanh(a[-size:] + h @ matrix)
        if gated:
            change = sigmoid(a[:size] + h @ matrix) * change
        h = h + epsilon * change
        outputs.append(h)
    return np.array(outputs), h


def co_rnn(x, state, w, dt=0.05, gamma=3.0, epsilon=5.0):
    """Rusch and Mishra (2021), with explicit damping."""
    y, z = state
    size = len(y)
    outputs = []
    for x_t in x:
        a = x_t @ w["w_x"] + y @ w["w_h"][:, :size] + z @ w["w_h"][:, size:] + w["b"]
        z = z + dt * np.tanh(a) - dt * gamma * y - dt * epsilon * z
        y = y + dt * z
        outputs.append(y)
    return np.array(outputs), (y, z)


def lem(x, state, w, dt=1.0):
    """Rusch, Mishra, Erichson and Mahoney (2022)."""
    y, z = state
    size = len(y)
    outputs = []
    for x_t in x:
        u = x_t @ w["w_x"] + w["b"]
        a = y @ w["w_h"]
        step_z = dt * sigmoid(u[:size] + a[:size])
        step_y = dt * sigmoid(u[size : 2 * size] + a[size : 2 * size])
        new = np.tanh(u[2 * size : 3 * size] + a[2 * size :])
        z = (1 - step_z) * z + step_z * new
        y = (1 - step_y) * y + step_y * np.tanh(u[3 * size :] + z @ w["w_y"])
        outputs.append(y)
    return np.array(outputs), (y, z)


def leaky_rnn(
    x, v, w, rate=lambda v: np.maximum(v, 0), tau=100.0, dt=20.0, dale=None, exact=False
):
    """Song, Yang and Wang (2016), without noise; `dt` is the last feature of the inputs
    if None, `dale` the number of excitatory units."""
    matrix = w["w_h"]
    if dale is not None:
        matrix = np.abs(matrix)
        matrix[dale:] *= -1
    outputs = []
    for x_t in x:
        u, step = (x_t[:-1], x_t[-1]) if dt is None else (x_t, dt)
        alpha = 1 - np.exp(-step / tau) if exact else step / tau
        v = (1 - alpha) * v + alpha * (u @ w["w_x"] + rate(v) @ matrix + w["b"])
        outputs.append(rate(v))
    return np.array(outputs), v


def cfc(x, h, w, dt=1.0):
    """Hasani et al. (2022); `dt` is the last feature of the inputs if None."""
    outputs = []
    for x_t in x:
        u, step = (x_t[:-1], x_t[-1]) if dt is None else (x_t, dt)
        s = np.tanh(u @ w["w_x"] + h @ w["w_h"] + w["b"])
        f, g, n = np.split(s @ w["w_y"] + w["b_y"], 3)
        gate = sigmoid(-f * step)
        h = gate * np.tanh(g) + (1 - gate) * np.tanh(n)
        outputs.append(h)
    return np.array(outputs), h


def convolve(x, w):
    """A correlation with zeros around the border, the output as large as the input."""
    kernel = w.shape[:-2]
    before = [(size - 1) // 2 for size in kernel]
    padded = np.pad(
        x,
        [(b, size - 1 - b) for b, size in zip(before, kernel, strict=True)] + [(0, 0)],
    )
    out = np.zeros((*x.shape[:-1], w.shape[-1]))
    for place in itertools.product(*map(range, x.shape[:-1])):
        for offset in itertools.product(*map(range, kernel)):
            at = tuple(p + o for p, o in zip(place, offset, strict=True))
            out[place] += padded[at] @ w[offset]
    return out


def conv_lstm(x, state, w):
    """Shi et al. (2015), equation 3, without peepholes."""
    h, c = state
    outputs = []
    for x_t in x:
        gates = convolve(x_t, w["w_x"]) + convolve(h, w["w_h"]) + w["b"]
        i, f, g, o = np.split(gates, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs), (h, c)
