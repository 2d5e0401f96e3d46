"""Every layer of the library, and two that are not ours, against `contract`."""

import jax.numpy as jnp
import pytest
from flax import linen as nn

import jaxrnn
from tests import contract

H = 4


class LeakyCell(nn.RNNCellBase):
    """Somebody's cell: a leaky unit that also counts its steps, in a carry of its own
    making."""

    features: int

    @nn.compact
    def __call__(self, carry, x):
        new = nn.tanh(nn.Dense(self.features)(jnp.concatenate([carry["h"], x], -1)))
        rate = (1 / (1 + carry["seen"]))[..., None]
        h = (1 - rate) * carry["h"] + rate * new
        return {"h": h, "seen": carry["seen"] + 1}, 2 * h

    def initialize_carry(self, rng, input_shape):
        batch = input_shape[:-1]
        return {"h": jnp.zeros((*batch, self.features)), "seen": jnp.ones(batch)}

    @property
    def num_feature_axes(self):
        return 1


# Each layer with the directions of its cells, in the order of the state.
LAYERS = {
    "rnn": (jaxrnn.RNN(H), "f"),
    "lstm": (jaxrnn.LSTM(H), "f"),
    "gru": (jaxrnn.GRU(H), "f"),
    "rnn-relu-deep": (
        jaxrnn.RNN(H, num_layers=2, activation="relu", use_bias=False),
        "ff",
    ),
    "lstm-projected-deep": (jaxrnn.LSTM(H, num_layers=2, proj_size=2), "ff"),
    "lstm-bidirectional-deep": (
        jaxrnn.LSTM(H, num_layers=2, bidirectional=True),
        "fbfb",
    ),
    # Above is what "auto" takes: the C++ kernels, where they are compiled.
    **{
        f"{kind.__name__.lower()}-{backend}": (kind(H, backend=backend), "f")
        for kind in (jaxrnn.RNN, jaxrnn.LSTM, jaxrnn.GRU)
        for backend in ("fused", "scan")
    },
    "gru-bidirectional": (jaxrnn.GRU(H, bidirectional=True), "fb"),
    "independent-directions": (
        jaxrnn.Bidirectional(
            jaxrnn.LSTM(H, num_layers=2), jaxrnn.GRU(H), merge="stack"
        ),
        "ffb",
    ),
    "stack": (jaxrnn.Stack([jaxrnn.LSTM(H), jaxrnn.RNN(H), jaxrnn.GRU(H)]), "fff"),
    "reset-before-gru": (jaxrnn.Recurrent(jaxrnn.ResetBeforeGRUCell(H)), "f"),
    # The others of their kind are in test_cell_table.py.
    "lru-bidirectional": (
        jaxrnn.Layer(jaxrnn.cells.LRUCell, features=H, bidirectional=True),
        "fb",
    ),
    "qrnn-deep": (
        jaxrnn.Layer(
            jaxrnn.cells.QRNNCell,
            features=H,
            num_layers=2,
            skip="residual",
            cell_options={"window": 2},
        ),
        "ff",
    ),
    "zoneout": (jaxrnn.LSTM(H, zoneout_h=0.1, zoneout_c=0.2), "f"),
    "flax-cell": (jaxrnn.Recurrent(nn.OptimizedLSTMCell(H)), "f"),
    "own-cell": (jaxrnn.Recurrent(LeakyCell(H)), "f"),
}


# Which of them hold every check in each run; the others hold the essential ones there,
# and all in the slow tests.
FULL = {"lstm", "lstm-bidirectional-deep", "own-cell"}
ESSENTIAL = {
    contract.padded_equals_cut,
    contract.padding_is_not_read,
    contract.packed_equals_alone,
    contract.steps_equal_the_whole,
}


def cases():
    for name in LAYERS:
        for check in contract.CHECKS:
            slow = name not in FULL and check not in ESSENTIAL
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(name, check, id=f"{name}-{check.__name__}", marks=marks)


@pytest.mark.parametrize(("name", "check"), [*cases()])
def test_contract(name, check, rng):
    check(contract.Subject(*LAYERS[name], rng))
