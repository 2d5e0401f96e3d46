"""Float64 loops of the gated cells, from the papers: as in `oracles`, one sequence and
one step at a time, importing nothing of the library."""

import numpy as np

from tests.oracles import sigmoid


def _part(a, k, size):
    return a[..., k * size : (k + 1) * size]


def peephole_lstm(x, state, w):
    """Gers and Schmidhuber (2000)."""
    h, c = state
    size = len(c)
    outputs = []
    for x_t in x:

        def gate(k, x_t=x_t, h=h):
            return sum(
                (
                    x_t @ _part(w["w_x"], k, size),
                    h @ _part(w["w_h"], k, size),
                    _part(w["b"], k, size),
                )
            )

        i = sigmoid(gate(0) + w["w_c"][:size] * c)
        f = sigmoid(gate(1) + w["w_c"][size : 2 * size] * c)
        c = f * c + i * np.tanh(gate(2))
        h = sigmoid(gate(3) + w["w_c"][2 * size :] * c) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs), (h, c)


def coupled_lstm(x, state, w):
    """Greff et al. (2017), CIFG, with i = 1 - f."""
    h, c = state
    size = len(c)
    outputs = []
    for x_t in x:
        f, g, o = np.split(x_t @ w["w_x"] + h @ w["w_h"] + w["b"], 3)
        i = 1 - sigmoid(f)
        c = (1 - i) * c + i * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        assert len(h) == size
        outputs.append(h)
    return np.array(outputs), (h, c)


def janet(x, h, w):
    """van der Westhuizen and Lasenby (2018), beta = 1."""
    size = len(h)
    outputs = []
    for x_t in x:
        s = x_t @ w["w_x"][:, :size] + h @ w["w_h"][:, :size] + w["b"][:size]
        n = x_t @ w["w_x"][:, size:] + h @ w["w_h"][:, size:] + w["b"][size:]
        h = sigmoid(s) * h + (1 - sigmoid(s - 1)) * np.tanh(n)
        outputs.append(h)
    return np.array(outputs), h


def _norm(a):
    return (a - np.mean(a)) / np.sqrt(np.var(a) + 1e-5)


def layer_norm_lstm(x, state, w):
    """Ba, Kiros and Hinton (2016), supplementary material."""
    h, c = state
    outputs = []
    for x_t in x:
        gates = w["scale_x"] * _norm(x_t @ w["w_x"])
        gates = gates + w["scale_h"] * _norm(h @ w["w_h"]) + w["b"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        seen = c
        if "scale_c" in w:
            seen = w["scale_c"] * _norm(c) + w["b_c"]
        h = sigmoid(o) * np.tanh(seen)
        outputs.append(h)
    return np.array(outputs), (h, c)


def layer_norm_gru(x, h, w):
    """The same, with the reset gate after the product; z is the paper's 1 - z."""
    cut = 2 * len(h)
    outputs = []
    for x_t in x:
        x_rz, x_n = np.split(x_t @ w["w_x"], [cut])
        h_rz, h_n = np.split(h @ w["w_h"], [cut])
        rz = w["scale_x"][:cut] * _norm(x_rz) + w["scale_h"][:cut] * _norm(h_rz)
        r, z = np.split(sigmoid(rz + w["b"][:cut]), 2)
        h_n = w["scale_h"][cut:] * _norm(h_n) + w["b_n"]
        n = np.tanh(w["scale_x"][cut:] * _norm(x_n) + w["b"][cut:] + r * h_n)
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.array(outputs), h


def multiplicative_lstm(x, state, w):
    """Krause, Lu, Murray and Renals (2017)."""
    h, c = state
    size = len(c)
    outputs = []
    for x_t in x:
        m = (x_t @ w["w_x"][:, 4 * size :]) * (h @ w["w_h"])
        i, f, g, o = np.split(x_t @ w["w_x"][:, : 4 * size] + m @ w["w_mh"] + w["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = np.tanh(c) * sigmoid(o)
        outputs.append(h)
    return np.array(outputs), (h, c)


def mogrifier_lstm(x, state, w, rounds):
    """Melis, Kocisky and Blunsom (2020), equations 1 and 2."""

    def matrix(k):
        name = f"mogrify_{k}"
        return w[name] if name in w else w[f"{name}_left"] @ w[f"{name}_right"]

    h, c = state
    outputs = []
    for x_t in x:
        u = x_t
        for k in range(1, rounds + 1):
            if k % 2 == 1:
                u = 2 * sigmoid(h @ matrix(k)) * u
            else:
                h = 2 * sigmoid(u @ matrix(k)) * h
        i, f, g, o = np.split(u @ w["w_x"] + h @ w["w_h"] + w["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs), (h, c)


def mgu(x, h, w):
    """Zhou, Wu, Zhang and Zhou (2016)."""
    size = len(h)
    outputs = []
    for x_t in x:
        f = x_t @ w["w_x"][:, :size] + h @ w["w_h"][:, :size] + w["b"][:size]
        f = sigmoid(f)
        n = x_t @ w["w_x"][:, size:] + (f * h) @ w["w_h"][:, size:] + w["b"][size:]
        h = (1 - f) * h + f * np.tanh(n)
        outputs.append(h)
    return np.array(outputs), h


def ugrnn(x, h, w):
    """Collins, Sohl-Dickstein and Sussillo (2017)."""
    outputs = []
    for x_t in x:
        g, n = np.split(x_t @ w["w_x"] + h @ w["w_h"] + w["b"], 2)
        h = sigmoid(g) * h + (1 - sigmoid(g)) * np.tanh(n)
        outputs.append(h)
    return np.array(outputs), h


def li_gru(x, h, w):
    """Ravanelli et al. (2018), with layer normalisation of each gate."""
    size = len(h)
    outputs = []
    for x_t in x:
        z, n = (
            w["scale_x"][part] * _norm(x_t @ w["w_x"][:, part])
            + h @ w["w_h"][:, part]
            + w["b"][part]
            for part in (slice(0, size), slice(size, None))
        )
        z = sigmoid(z)
        h = z * h + (1 - z) * np.maximum(n, 0)
        outputs.append(h)
    return np.array(outputs), h


def rhn(x, h, w, depth):
    """Zilly, Srivastava, Koutnik and Schmidhuber (2017), carry gate = 1 - transform."""
    size = len(h)
    outputs = []
    for x_t in x:
        for level in range(depth):
            part = slice(2 * level * size, 2 * (level + 1) * size)
            a = h @ w["w_h"][:, part] + w["b"][part]
            a = a + x_t @ w["w_x"] if level == 0 else a
            n, t = np.tanh(a[:size]), sigmoid(a[size:])
            h = n * t + h * (1 - t)
        outputs.append(h)
    return np.array(outputs), h


def minimal_rnn(x, h, w):
    """Chen (2017)."""
    outputs = []
    for x_t in x:
        v = np.tanh(x_t @ w["w_x"] + w["b_v"])
        u = sigmoid(h @ w["w_h"] + v @ w["w_v"] + w["b"])
        h = u * h + (1 - u) * v
        outputs.append(h)
    return np.array(outputs), h


def scrn(x, state, w, alpha=0.95):
    """Mikolov et al. (2014)."""
    fast = len(w["w_h"])
    h, s = state[:fast], state[fast:]
    outputs = []
    for x_t in x:
        s = (1 - alpha) * (x_t @ w["w_x"][:, fast:]) + alpha * s
        h = sigmoid(s @ w["w_sh"] + x_t @ w["w_x"][:, :fast] + h @ w["w_h"] + w["b"])
        outputs.append(np.concatenate([h, s]))
    return np.array(outputs), outputs[-1] if outputs else state
