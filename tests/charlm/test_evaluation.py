"""The evaluations of a language model, against one pass and windows one at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments.charlm import evaluation
from experiments.charlm.evaluation import Evaluation
from jaxrnn.models import LanguageModel
from jaxrnn.placement import data_mesh
from tests import oracles

VOCAB, HIDDEN = 6, 5
LSTM = LanguageModel(VOCAB, 4, jaxrnn.LSTM(HIDDEN))


def random_variables(model, rng, scale=1.0):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return jax.tree.map(
        lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )


def nats_of_windows(variables, ids, window):
    """Mean nats of all characters but the first, one window after the other."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    nats = []
    for start in range(0, len(ids) - 1, window):
        text = ids[start : start + window + 1]
        x = p["embed"]["embedding"][text[:-1]]
        zeros = np.zeros(HIDDEN), np.zeros(HIDDEN)
        outputs, _ = oracles.lstm(x, zeros, p["encoder"]["l0"])
        logits = outputs @ p["output"]["kernel"] + p["output"]["bias"]
        for row, target in zip(logits, text[1:], strict=True):
            nats.append(np.log(np.exp(row).sum()) - row[target])
    assert len(nats) == len(ids) - 1
    return np.mean(nats)


@pytest.mark.parametrize(
    ("size", "devices"),
    [
        (2, 2),  # one character to predict
        (65, 1),  # one window of 64
        (66, 2),
        (1500, 2),  # rows of one batch of steps, most of them empty
        (64 * 64 + 64, 2),  # rows of two, one group of windows and one window
    ],
)
def test_all_three_are_those_of_one_window_at_a_time(rng, size, devices):
    variables = random_variables(LSTM, rng)
    ids = rng.integers(VOCAB, size=size).astype(np.int32)
    found = Evaluation(LSTM, ids, data_mesh(devices))(variables)
    assert found == {
        "nats_stateful": pytest.approx(nats_of_windows(variables, ids, size), 2e-5),
        "nats_window_64": pytest.approx(nats_of_windows(variables, ids, 64), 2e-5),
        "nats_window_256": pytest.approx(nats_of_windows(variables, ids, 256), 2e-5),
    }  # float32 states, and those of rows up to 1e-4 away


COUNTER = LanguageModel(2, 1, jaxrnn.RNN(1, activation="relu", use_bias=False))


def counter(counts, kernel, bias):
    """The variables of a model that adds up `counts` of its two characters; the logits
    are `kernel` times the sum, and `bias`."""
    params = {
        "embed": {"embedding": [[count] for count in counts]},
        "encoder": {"l0": {"w_x": [[1.0]], "w_h": [[1.0]]}},
        "output": {"kernel": [kernel], "bias": bias},
    }
    return {"params": jax.tree.map(np.float32, params, is_leaf=is_list)}


def is_list(leaf):
    return isinstance(leaf, list)


def test_a_model_that_never_forgets_is_read_to_the_end(rng, monkeypatch):
    """It counts the characters 0; the more there were the more likely is a 0."""
    ids = rng.integers(2, size=64 * 4 + 1).astype(np.int32)
    variables = counter(counts=[1.0, 0.0], kernel=[0.01, 0.0], bias=[0.0, 0.0])
    zeros = np.cumsum(ids[:-1] == 0)
    p = 1 / (1 + np.exp(-0.01 * zeros))
    expected = -np.log(np.where(ids[1:] == 0, p, 1 - p)).mean()

    monkeypatch.setattr(evaluation, "ROWS", 4)
    readings = counted(monkeypatch)
    found = Evaluation(COUNTER, ids, data_mesh(2))(variables)
    assert found["nats_stateful"] == pytest.approx(expected, rel=1e-5)
    assert abs(found["nats_window_64"] - expected) > 1e-3
    assert len(readings) == 4 + 1 + 1  # carried: one for each row; one group of each


def test_what_a_model_remembers_for_nothing_is_not_read_to_the_end(rng, monkeypatch):
    """The count of characters never agrees with that of the reading before; as states
    do not that bfloat16 products make."""
    ids = rng.integers(2, size=64 * 16 + 1).astype(np.int32)
    variables = counter(counts=[1.0, 1.0], kernel=[0.0, 0.0], bias=[1.0, 0.0])
    p = 1 / (1 + np.exp(-1.0))
    expected = -np.log(np.where(ids[1:] == 0, p, 1 - p)).mean()
    monkeypatch.setattr(evaluation, "ROWS", 16)
    readings = counted(monkeypatch)
    found = Evaluation(COUNTER, ids, data_mesh(2))(variables)
    assert found["nats_stateful"] == pytest.approx(expected, rel=1e-5)
    assert len(readings) == 2 + 1 + 1  # carried twice; one group of each window


def counted(monkeypatch):
    """The arguments of each reading, as they come."""
    readings, read = [], Evaluation._read

    def count(*arguments):
        readings.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(Evaluation, "_read", count)
    return readings


def test_a_model_that_knows_nothing_pays_for_every_character(rng):
    variables = jax.tree.map(np.zeros_like, random_variables(LSTM, rng))
    ids = rng.integers(VOCAB, size=1000).astype(np.int32)
    found = Evaluation(LSTM, ids, data_mesh(2))(variables)
    assert found.keys() == {"nats_stateful", "nats_window_64", "nats_window_256"}
    for nats in found.values():
        # Equal numbers in float32 round in the same direction as they add up.
        assert nats == pytest.approx(math.log(VOCAB), rel=1e-5)
