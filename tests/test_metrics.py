"""Means against numpy's; cross-entropies against the definition in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import metrics
from jaxrnn.metrics import Mean


def test_merging_in_any_split_equals_one_pass(rng):
    values, weights = rng.normal(size=60), rng.integers(0, 3, size=60)
    expected = np.average(values, weights=weights)
    for cuts in ([], [30], [1, 2, 59], list(range(1, 60))):
        parts = zip(np.split(values, cuts), np.split(weights, cuts), strict=True)
        means = [Mean.of(value, weight) for value, weight in parts]
        merged = functools.reduce(Mean.merge, means)
        assert metrics.merge({"mean": mean} for mean in means) == {"mean": merged}
        np.testing.assert_allclose(merged.value, expected, rtol=1e-5)
        assert float(merged.weight) == weights.sum()


def test_masked_entries_count_for_nothing_even_as_nan(rng):
    values = rng.normal(size=(4, 3)).astype(np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
    expected = values[mask].mean()
    values[~mask] = np.nan
    mean, gradient = jax.value_and_grad(lambda x: Mean.of(x, mask).value)(values)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, mask / mask.sum(), rtol=1e-6)


def test_mean_without_weights_counts_every_entry():
    mean = Mean.of(np.array([[1, 2, 3], [4, 5, 6]]))
    assert (mean.total, mean.weight, mean.value) == (21, 6, 3.5)


def test_nothing_counted_is_nan():
    assert math.isnan(Mean.of(jnp.ones(3), jnp.zeros(3)).value)
    assert math.isnan(Mean.of(jnp.ones(0)).value)


def test_bfloat16_is_summed_in_float32():
    # In bfloat16 256 + 1 is 256: the total would stop growing there.
    mean = Mean.of(jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16))
    assert mean.total == 1000
    assert mean.weight == 1000


def test_float64_stays_float64(x64):
    mean = Mean.of(jnp.array([1.0, 1e-12]))
    assert float(mean.total) == 1 + 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cross_entropy_against_the_definition(rng, dtype):
    logits = jnp.asarray(rng.normal(size=(2, 5, 7)), dtype)
    ids = rng.integers(0, 7, size=(2, 5))
    wide = np.asarray(logits, np.float64)
    odds = np.exp(wide)
    probabilities = odds / odds.sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probabilities, ids[..., None], -1)[..., 0])
    np.testing.assert_allclose(metrics.cross_entropy(logits, ids), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_binary_cross_entropy_against_the_definition(rng, dtype):
    logits = jnp.asarray(rng.normal(size=9), dtype)
    labels = rng.integers(0, 2, size=9)
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = -np.where(labels, np.log(p), np.log(1 - p))
    nats = metrics.binary_cross_entropy(logits, labels)
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_cross_entropies_of_great_logits_are_finite():
    nats = metrics.binary_cross_entropy(jnp.array([200.0, -200.0]), jnp.array([0, 0]))
    np.testing.assert_array_equal(nats, [200, 0])
    nats = metrics.cross_entropy(jnp.array([[500.0, -500.0]]), jnp.array([1]))
    np.testing.assert_array_equal(nats, [1000])


@pytest.mark.parametrize("id", [-1, -100, 4])
def test_no_class_is_nobodys(id):
    nats = metrics.cross_entropy(jnp.zeros((2, 4)), jnp.array([id, 1]))
    assert jnp.isnan(nats[0])
    weighted = Mean.of(nats, jnp.array([0, 1])).value
    np.testing.assert_allclose(weighted, math.log(4), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_ids_of_any_type(dtype):
    """The greatest of uint32 is -1, as int32 counts, and 300 is 44, as uint8 does."""
    greatest = int(jnp.iinfo(dtype).max)
    ids = jnp.array([3, 100, greatest], dtype)
    few = metrics.cross_entropy(jnp.zeros((3, 4)), ids)
    assert jnp.isnan(few).tolist() == [False, True, True]
    likely = 9 * jnp.eye(300)[np.array([3, 100])]
    many = metrics.cross_entropy(likely, ids[:2])
    # Of float32 numbers near 9; of another id it is 9 more.
    np.testing.assert_allclose(many, math.log1p(299 / math.exp(9)), atol=1e-5)


def test_correct_in_the_binary_case():
    logits, labels = jnp.array([-2.0, -2.0, 0.0, 3.0]), np.array([0, 1, 0, 1])
    np.testing.assert_array_equal(metrics.correct(logits, labels), [1, 0, 1, 1])


def test_correct_in_the_case_of_classes():
    logits = jnp.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.0, 2.0, 1.0]])
    correct = metrics.correct(logits, np.array([2, 1, 1]))
    np.testing.assert_array_equal(correct, [1, 0, 1])
    many = jnp.zeros((2, 300)).at[:, 256].set(1)  # 0, as uint8 counts
    np.testing.assert_array_equal(metrics.correct(many, np.uint8([0, 1])), [0, 0])


def test_nan_predicts_nothing():
    nan = jnp.nan
    found = metrics.correct(jnp.array([nan, nan, -1.0]), np.array([0, 1, 0]))
    np.testing.assert_array_equal(found, [0, 0, 1])
    found = metrics.correct(jnp.array([[nan, 1.0], [1.0, nan]]), np.array([0, 1]))
    np.testing.assert_array_equal(found, [0, 0])


def test_perplexity_and_bits_of_equally_likely_choices():
    nats = math.log(32)
    np.testing.assert_allclose(metrics.perplexity(nats), 32, rtol=1e-6)
    np.testing.assert_allclose(metrics.nats_to_bits(nats), 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "first", "second", "numbers"),
    [
        (Mean.of, (2, 3), (2, 1), ["(2, 1)", "(2, 3)"]),
        (metrics.cross_entropy, (2, 3, 7), (2, 4), ["(2, 3, 7)", "(2, 3)", "(2, 4)"]),
        (metrics.binary_cross_entropy, (2, 1), (2,), ["(2, 1)", "(2,)"]),
        (metrics.correct, (2, 3), (3,), ["(2, 3)", "(2,)", "(3,)"]),
    ],
)
def test_shapes_that_do_not_fit_are_named(function, first, second, numbers):
    with pytest.raises(ValueError, match="shape") as error:
        function(jnp.zeros(first), jnp.zeros(second, jnp.int32))
    for number in numbers:
        assert number in str(error.value)


def test_means_that_not_all_batches_have_are_merged_by_name():
    one, two, three = (Mean(np.float32(k), np.float32(1)) for k in (1, 2, 3))
    merged = metrics.merge([{"a": one, "b": two}, {"a": three}])
    assert merged == {"a": Mean(4, 2), "b": two}
    assert metrics.merge([]) == {}
