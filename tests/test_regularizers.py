"""Weights dropped: which, how many, how they are scaled, and that training sees it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.regularizers import (
    activation_regularization,
    embedding_dropout,
    temporal_activation_regularization,
    weight_drop,
)

KEY = jax.random.key(7)
LAYER = jaxrnn.LSTM(32, num_layers=2)
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
PARAMS = LAYER.init(jax.random.key(0), X)


def test_a_share_of_each_recurrent_matrix_is_zero_and_the_rest_scaled():
    rate = 0.3
    dropped = weight_drop(PARAMS, rate, KEY)["params"]
    zeros = {}
    for name, cell in PARAMS["params"].items():
        weights, after = np.asarray(cell["w_h"]), np.asarray(dropped[name]["w_h"])
        zeros[name] = after == 0
        kept = ~zeros[name]
        np.testing.assert_allclose(after[kept], weights[kept] / 0.7, rtol=1e-6)
        # Four standard deviations of a binomial share.
        spread = 4 * np.sqrt(rate * (1 - rate) / weights.size)
        assert abs(zeros[name].mean() - rate) < spread
        for other in ("w_x", "b"):
            np.testing.assert_array_equal(cell[other], dropped[name][other])
    assert (zeros["l0"] != zeros["l1"]).any()  # Each matrix has its own.


def test_the_expectation_is_the_weight():
    params = {"w_h": jnp.array([[2.0, -3.0]])}
    keys = jax.random.split(KEY, 20_000)
    drawn = jax.vmap(lambda key: weight_drop(params, 0.5, key)["w_h"])(keys)
    # Each value is 0 or twice the weight: four standard errors of their mean.
    np.testing.assert_allclose(
        drawn.mean(axis=0), params["w_h"], atol=4 * 3 / np.sqrt(20_000)
    )


def test_gradients_reach_the_kept_weights_alone():
    def loss(params):
        outputs, _ = LAYER.apply(weight_drop(params, 0.5, KEY), X)
        return (outputs**2).sum()

    gradient = jax.jit(jax.grad(loss))(PARAMS)["params"]["l0"]["w_h"]
    kept = weight_drop(PARAMS, 0.5, KEY)["params"]["l0"]["w_h"] != 0
    assert (gradient[~kept] == 0).all()
    assert (gradient[kept] != 0).all()


def test_a_rate_of_zero_changes_nothing():
    assert weight_drop(PARAMS, 0.0, KEY) == PARAMS


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_out_of_range_are_named(rate):
    with pytest.raises(ValueError, match=f"from 0 to below 1, got {rate}"):
        weight_drop(PARAMS, rate, KEY)


def test_parameters_without_a_recurrent_matrix_are_refused():
    with pytest.raises(ValueError, match=r"no parameter is called w_h: .*kernel"):
        weight_drop({"dense": {"kernel": jnp.ones(2)}}, 0.5, KEY)


def test_the_dtype_of_the_weights_stays():
    params = {"w_h": jnp.ones((2, 2), jnp.bfloat16)}
    dropped = weight_drop(params, np.float32(0.5), jax.random.key(0))
    assert dropped["w_h"].dtype == jnp.bfloat16
    assert set(dropped["w_h"].ravel().tolist()) <= {0.0, 2.0}


def test_whole_vectors_of_an_embedding_are_dropped():
    table = np.random.default_rng(1).normal(size=(2000, 3)).astype(np.float32)
    params = {"embed": {"embedding": table}, "output": {"kernel": table}}
    dropped = embedding_dropout(params, 0.3, KEY)
    after = np.asarray(dropped["embed"]["embedding"])
    gone = (after == 0).all(axis=1)
    # Five standard errors of a share of 2,000.
    assert abs(gone.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 2000)
    np.testing.assert_allclose(after[~gone], table[~gone] / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(dropped["output"]["kernel"], table)
    assert embedding_dropout(params, 0.0, KEY) == params
    with pytest.raises(ValueError, match="no parameter is called embedding"):
        embedding_dropout({"b": table}, 0.5, KEY)


def test_activation_regularization_is_the_papers_mean(rng):
    outputs = rng.normal(size=(2, 5, 3)).astype(np.float32)
    ids = np.array([[1, 1, 2, 2, 0], [1, 0, 1, 1, 1]])
    squares, changes = [], []
    for row, numbers in zip(outputs, ids, strict=True):
        for t, number in enumerate(numbers):
            if number:
                squares.extend(row[t] ** 2)
            if t and number and number == numbers[t - 1]:
                changes.extend((row[t] - row[t - 1]) ** 2)
    # Float32 sums of 24 terms.
    np.testing.assert_allclose(
        activation_regularization(outputs, ids > 0), np.mean(squares), rtol=1e-6
    )
    np.testing.assert_allclose(
        temporal_activation_regularization(outputs, ids), np.mean(changes), rtol=1e-6
    )
    np.testing.assert_allclose(
        activation_regularization(outputs), np.mean(outputs**2), rtol=1e-6
    )
    differences = np.diff(outputs, axis=1)
    np.testing.assert_allclose(
        temporal_activation_regularization(outputs), np.mean(differences**2), rtol=1e-6
    )


def test_outputs_in_padding_are_not_read():
    outputs = np.array([[1.0], [np.nan]], np.float32)
    for penalty, given in [
        (activation_regularization, np.array([True, False])),
        (temporal_activation_regularization, np.array([1, 0])),
    ]:
        value, gradient = jax.value_and_grad(penalty)(jnp.asarray(outputs), given)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
