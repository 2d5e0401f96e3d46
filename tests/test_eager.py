"""Outside of `jax.jit` nothing is compiled again: not in ten calls after the first."""

import functools

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn
from jaxrnn import functional, sampling
from tests.test_functional import BACKENDS

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
LENGTHS = np.array([5, 2])
IDS = np.array([[1, 1, 2, 2, 0], [1, 2, 2, 3, 3]])
_counts = [0]


def _count(event, duration, **_):
    _counts[0] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


def check(function):
    """One call compiles what there is to compile, ten others nothing."""
    jax.block_until_ready(function())
    before = _counts[0]
    for _ in range(10):
        jax.block_until_ready(function())
    assert _counts[0] == before


LAYERS = {
    **{f"lstm-{b}": jaxrnn.LSTM(4, num_layers=2, backend=b) for b in BACKENDS},
    **{f"gru-{b}": jaxrnn.GRU(4, bidirectional=True, backend=b) for b in BACKENDS},
    **{f"rnn-{b}": jaxrnn.RNN(4, backend=b) for b in BACKENDS},
    "in-chunks": jaxrnn.LSTM(4, remat_chunk=2),
    "reset-before": jaxrnn.Recurrent(jaxrnn.ResetBeforeGRUCell(4)),
    "flax": jaxrnn.Recurrent(nn.OptimizedLSTMCell(4)),
    "stack": jaxrnn.Stack([jaxrnn.GRU(4), jaxrnn.Recurrent(nn.GRUCell(4))]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name):
    layer = LAYERS[name]
    variables = layer.init(jax.random.key(0), X)
    check(lambda: layer.apply(variables, X))
    check(lambda: layer.apply(variables, X, lengths=LENGTHS))
    check(lambda: layer.apply(variables, X, segment_ids=IDS, reverse=True))

    def loss(variables):
        return jnp.sum(layer.apply(variables, X, lengths=LENGTHS)[0])

    check(lambda: jax.grad(loss)(variables))
    if "gru" in name:
        return
    state = layer.initial_state((2,))
    check(lambda: layer.apply(variables, X[:, 0], state, method="step"))


def test_the_functions():
    weights = {"w_x": jnp.ones((3, 12)), "w_h": jnp.ones((4, 12))}
    check(lambda: functional.gru(weights, None, X))


def test_the_models():
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    classifier = jaxrnn.models.SequenceClassifier(9, 4, jaxrnn.LSTM(3))
    variables = classifier.init(jax.random.key(0), tokens)
    check(lambda: classifier.apply(variables, tokens, lengths=np.array([3, 1])))
    model = jaxrnn.models.LanguageModel(9, 4, jaxrnn.GRU(3))
    variables = model.init(jax.random.key(0), tokens)
    check(lambda: model.apply(variables, tokens))
    state = model.initial_state((2,))
    step = functools.partial(model.apply, variables, method="step")
    check(lambda: step(tokens[:, 0], state))
    keys = jax.random.split(jax.random.key(0), 2)
    check(lambda: sampling.generate(step, state, tokens, 4, keys))
