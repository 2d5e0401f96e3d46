"""The sampled softmax: against loops in float64, and unbiased where it is random."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import metrics
from jaxrnn.sampled_softmax import CandidateSampler, sampled_cross_entropy

pytestmark = pytest.mark.slow

ZIPF = [1 / rank for rank in range(1, 41)]


def capped(weights, size):
    """min(1, c * weight) with the sum `size`, by bisection of c."""
    low, high = 0.0, size / min(weights)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(min(1.0, middle * w) for w in weights) < size:
            low = middle
        else:
            high = middle
    return [min(1.0, high * w) for w in weights]


@pytest.mark.parametrize(
    ("weights", "size"),
    [
        (ZIPF, 1),
        (ZIPF, 7),
        (ZIPF[::-1], 39),
        (ZIPF, 40),
        ([1.0] * 10, 3),
        ([1.0] * 10, 10),
        ([5.0, 0.1, 5.0, 0.1, 0.1], 3),
        ([1e6, 3.0, 1e-1, 2.0], 2),
    ],
)
def test_probabilities_are_in_proportion_up_to_1(weights, size):
    sampler = CandidateSampler.of(weights, size)
    # Probabilities are multiples of 1 / unit, rounded to float32.
    np.testing.assert_allclose(
        sampler.probabilities, capped(weights, size), rtol=1e-6, atol=1.5 / sampler.unit
    )
    assert sampler.ends[-1] == size * sampler.unit


def test_draws_have_these_probabilities_and_never_a_class_twice():
    sampler = CandidateSampler.of(ZIPF[::-1], 12)
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(sampler.draw))(keys))
    assert drawn.shape == (20_000, 12)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert drawn.min() >= 0
    share = np.bincount(drawn.ravel(), minlength=40) / 20_000
    p = sampler.probabilities
    error = np.sqrt(p * (1 - p) / 20_000)
    assert (np.abs(share - p) <= 4.5 * error).all()
    assert (share[p == 1] == 1).all()
    assert (p == 1).any()


@pytest.mark.parametrize("begin", [0, 1])
def test_the_first_and_the_last_class_are_drawn_at_the_ends(begin, monkeypatch):
    sampler = CandidateSampler.of([1.0, 1.0, 1.0, 1.0], 2)
    place = [0, sampler.unit - 1][begin]
    monkeypatch.setattr(jax.random, "randint", lambda *_: jnp.int32(place))
    assert sampler.draw(jax.random.key(0)).tolist() == [[0, 2], [1, 3]][begin]


@pytest.mark.parametrize(
    ("weights", "size", "message"),
    [
        ([1.0, 2.0], 3, "size = 3 candidates of 2 classes: at most all"),
        ([1.0, 2.0], 0, "size must be at least 1, got 0"),
        ([1.0, 0.0], 1, "one finite number above 0 for each class"),
        ([1.0, math.nan], 1, "one finite number above 0 for each class"),
        ([[1.0]], 1, "one finite number above 0 for each class"),
        ([1.0, 1e-12], 1, "raise the smallest weight, 1e-12"),
    ],
)
def test_what_cannot_be_drawn_is_refused(weights, size, message):
    with pytest.raises(ValueError, match=message):
        CandidateSampler.of(weights, size)


def problem(rng, v=11, d=5):
    features = rng.normal(size=(3, 4, d))
    table, bias = rng.normal(size=(v, d)), rng.normal(size=v)
    targets = rng.integers(0, v, (3, 4))
    return features, table, bias, targets


def loop(features, table, bias, targets, candidates, probabilities):
    """The estimate as the paper has it, one number at a time."""
    out = np.zeros(targets.shape)
    for place in np.ndindex(targets.shape):
        target = targets[place]
        score = [float(features[place] @ table[j] + bias[j]) for j in range(len(table))]
        total = math.exp(score[target])
        for j in np.asarray(candidates).tolist():
            if j != target:
                total += math.exp(score[j]) / float(probabilities[j])
        out[place] = math.log(total) - score[target]
    return out


def test_it_is_what_a_loop_computes(rng, x64):
    features, table, bias, targets = problem(rng)
    sampler = CandidateSampler.of(ZIPF[:11], 4)
    p = np.float64(sampler.probabilities)
    for seed in range(3):
        candidates = sampler.draw(jax.random.key(seed))
        nats = sampled_cross_entropy(
            *map(jnp.asarray, (features, table, bias, targets)), candidates, p
        )
        expected = loop(features, table, bias, targets, candidates, p)
        np.testing.assert_allclose(nats, expected, rtol=1e-12)


def test_its_gradients_are_finite_differences(rng, x64):
    features, table, bias, targets = map(jnp.asarray, problem(rng))
    sampler = CandidateSampler.of(ZIPF[:11], 4)
    candidates, p = (
        sampler.draw(jax.random.key(0)),
        np.float64(sampler.probabilities),
    )
    # One target is among the candidates.
    targets = targets.at[0, 0].set(int(candidates[1]))

    def loss(features, table, bias):
        return sampled_cross_entropy(
            features, table, bias, targets, candidates, p
        ).sum()

    given = (features, table, bias)
    found = jax.grad(loss, argnums=(0, 1, 2))(*given)
    for k, array in enumerate(given):
        for place in np.ndindex(array.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [*given]
                moved[k] = array.at[place].add(step)
                ends.append(loop(*map(np.asarray, moved), targets, candidates, p).sum())
            slope = (ends[0] - ends[1]) / 2e-6
            assert float(found[k][place]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_with_all_classes_it_is_the_cross_entropy(rng, x64):
    features, table, bias, targets = map(jnp.asarray, problem(rng))
    sampler = CandidateSampler.of(ZIPF[:11], 11)
    candidates = sampler.draw(jax.random.key(0))
    p = np.float64(sampler.probabilities)

    def sampled(features):
        return sampled_cross_entropy(features, table, bias, targets, candidates, p)

    def exact(features):
        return metrics.cross_entropy(features @ table.T + bias[None, None], targets)

    np.testing.assert_allclose(sampled(features), exact(features), rtol=1e-12)
    gradients = [
        jax.vjp(f, features)[1](jnp.ones(targets.shape))[0] for f in (sampled, exact)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-10, atol=1e-12)


def test_the_denominator_is_the_true_one_on_average(rng, x64):
    features, table, bias, targets = map(jnp.asarray, problem(rng))
    sampler = CandidateSampler.of(ZIPF[:11], 4)
    p = np.float64(sampler.probabilities)

    @jax.jit
    @jax.vmap
    def inverse(key):
        """The estimate of 1 / softmax, which is linear in the denominator's."""
        candidates = sampler.draw(key)
        return jnp.exp(
            sampled_cross_entropy(features, table, bias, targets, candidates, p)
        )

    draws = np.asarray(inverse(jax.random.split(jax.random.key(0), 40_000)))
    true = np.exp(metrics.cross_entropy(features @ table.T + bias[None, None], targets))
    error = draws.std(axis=0) / math.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - true) < 4 * error).all()


def test_half_precision_is_summed_in_float32(rng):
    features, table, bias, targets = problem(rng, v=300)
    sampler = CandidateSampler.of([1.0] * 300, 100)
    candidates = sampler.draw(jax.random.key(0))
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in (features, table, bias)]
    nats = sampled_cross_entropy(
        *arguments, jnp.asarray(targets), candidates, sampler.probabilities
    )
    assert nats.dtype == jnp.float32
    # Only the arguments are rounded, and sums to float32.
    rounded = [np.asarray(x, np.float64) for x in arguments]
    expected = loop(*rounded, targets, candidates, sampler.probabilities)
    np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bias": jnp.zeros(3)}, "table has 4 classes, but bias has shape"),
        ({"probabilities": jnp.ones(5)}, "probabilities"),
        ({"targets": jnp.zeros(3, int)}, r"need targets of shape \(2,\), not \(3,\)"),
        ({"features": jnp.zeros((2, 9))}, "a table with rows of 9, not 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong, message):
    right = {
        "features": jnp.zeros((2, 3)),
        "table": jnp.zeros((4, 3)),
        "bias": jnp.zeros(4),
        "targets": jnp.zeros(2, int),
        "candidates": jnp.arange(2),
        "probabilities": jnp.ones(4),
    }
    with pytest.raises(ValueError, match=message):
        sampled_cross_entropy(**(right | wrong))


def test_a_target_that_is_no_class_is_nan(rng):
    sampler = CandidateSampler.of([1, 1, 1, 1], size=4)
    features, table = jnp.ones((3, 2)), jnp.asarray(rng.normal(size=(4, 2)))
    found = sampled_cross_entropy(
        features,
        table.astype(jnp.float32),
        jnp.zeros(4),
        jnp.array([-1, 3, 4]),
        sampler.draw(jax.random.key(0)),
        sampler.probabilities,
    )
    assert jnp.isnan(found).tolist() == [True, False, True]
