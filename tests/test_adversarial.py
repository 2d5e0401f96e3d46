"""Adversarial perturbations: against finite differences and loops in float64."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import LSTM, adversarial
from jaxrnn.adversarial import (
    adversarial_perturbation,
    entropy,
    kl_divergence,
    normalize_embeddings,
    two_class_logits,
    virtual_adversarial_perturbation,
)

pytestmark = pytest.mark.slow

VALID = np.array([[True, True, True, True], [True, False, True, False], [False] * 4])
EPSILON = 0.7


class Classifier(nn.Module):
    """Any module on embedded inputs: an LSTM, the mean of its outputs, logits."""

    @nn.compact
    def __call__(self, x, valid):
        outputs, _ = LSTM(5, param_dtype=x.dtype)(
            x, segment_ids=valid.astype(jnp.int32)
        )
        return nn.Dense(3, param_dtype=x.dtype)(outputs.mean(axis=1))


@pytest.fixture
def network(rng, x64):
    """Its logits as a function of inputs, and inputs."""
    model = Classifier()
    x = jnp.asarray(rng.normal(size=(*VALID.shape, 2)))
    params = model.init(jax.random.key(0), x, jnp.asarray(VALID))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    return jax.jit(lambda x: model.apply(params, x, jnp.asarray(VALID))), x


def gradient(function, x, step):
    """Central differences, one number at a time."""
    found = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        ends = [float(function(x.at[place].add(s))) for s in (step, -step)]
        found[place] = (ends[0] - ends[1]) / (2 * step)
    return found


def unit(direction):
    """Each sequence divided by its norm over valid steps."""
    out = np.zeros_like(direction)
    for row in range(len(direction)):
        steps = [t for t in range(direction.shape[1]) if VALID[row, t]]
        norm = math.sqrt(sum(float(v) ** 2 for t in steps for v in direction[row, t]))
        for t in steps:
            out[row, t] = direction[row, t] / norm
    return out


def numpy_log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def divergence(reference, logits):
    p, q = (numpy_log_softmax(np.asarray(x)) for x in (reference, logits))
    return float((np.exp(p) * (p - q)).sum())


def test_the_adversarial_one_has_the_direction_of_the_gradient(network):
    logits, x = network

    def loss(x):
        return (logits(x) ** 2).sum()

    found = adversarial_perturbation(loss, x, EPSILON, jnp.asarray(VALID))
    expected = EPSILON * unit(gradient(loss, x, 1e-5))
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert float(loss(x + 1e-2 * found)) > float(loss(x))


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_virtual_one_is_the_power_method_of_a_loop(network, iterations):
    logits, x = network
    key, xi = jax.random.key(3), 0.1
    found = virtual_adversarial_perturbation(
        logits, x, EPSILON, key, jnp.asarray(VALID), xi=xi, num_iterations=iterations
    )
    reference = logits(x)
    direction = unit(np.asarray(jax.random.normal(key, x.shape, x.dtype)))
    for _ in range(iterations):
        moved = jnp.asarray(xi * direction)
        direction = unit(
            gradient(lambda r: divergence(reference, logits(x + r)), moved, 5e-5)
        )
    np.testing.assert_allclose(found, EPSILON * direction, atol=1e-6)


def test_the_virtual_one_finds_the_greatest_curvature(network):
    """After many iterations, the eigenvector of the Hessian of each sequence."""
    logits, x = network
    found = virtual_adversarial_perturbation(
        logits,
        x,
        1.0,
        jax.random.key(0),
        jnp.asarray(VALID),
        xi=1e-4,
        num_iterations=200,
    )
    reference = logits(x)

    def change(r):
        return kl_divergence(reference, logits(x + r)).sum()

    hessian = jax.hessian(change)(jnp.zeros_like(x))
    for row in (0, 1):
        own = hessian[row, :, :, row].reshape(8, 8)
        valid = np.repeat(VALID[row], 2)
        _, vectors = np.linalg.eigh(np.asarray(own)[np.ix_(valid, valid)])
        cosine = np.asarray(found[row]).ravel()[valid] @ vectors[:, -1]
        assert abs(cosine) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_padding_is_zero_whatever_it_holds(network, garbage):
    logits, x = network
    valid = jnp.asarray(VALID)
    padded = jnp.where(valid[..., None], x, garbage)

    def loss(x):
        return (logits(x)[:2] ** 2).sum()

    key = jax.random.key(0)
    for found, expected in [
        [adversarial_perturbation(loss, y, 1.0, valid) for y in (padded, x)],
        [
            virtual_adversarial_perturbation(logits, y, 1.0, key, valid)
            for y in (padded, x)
        ],
    ]:
        np.testing.assert_array_equal(found, expected)
        assert not np.asarray(found)[~VALID].any()
        norms = np.sqrt((np.asarray(found) ** 2).sum(axis=(1, 2)))
        np.testing.assert_allclose(norms, [1, 1, 0], rtol=1e-12)


def test_without_valid_all_steps_are(network):
    _, x = network

    def loss(x):
        return (x**3).sum()

    found = adversarial_perturbation(loss, x, 2.0)
    norms = jnp.sqrt((x**4).sum(axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(found, 2 * x**2 / norms, rtol=1e-12)


def test_no_gradient_reaches_a_perturbation(x64):
    weights = jnp.array([1.0, -2.0])
    x = jnp.array([[[0.3, 0.5], [0.1, -0.4]]])

    def moved_by(weights):
        def logits(x):
            return two_class_logits((x @ weights).sum(axis=1))

        def loss(x):
            return logits(x)[..., 1].sum()

        r = adversarial_perturbation(loss, x, 1.0)
        v = virtual_adversarial_perturbation(logits, x, 1.0, jax.random.key(0))
        return ((r + v) ** 3).sum()

    assert float(moved_by(weights)) != 0
    assert jax.grad(moved_by)(weights).tolist() == [0.0, 0.0]


def test_small_gradients_have_a_direction_too():
    x = jnp.zeros((1, 1, 2))
    found = adversarial_perturbation(lambda x: 1e-30 * x[..., 0].sum(), x, 1.0)
    assert found.tolist() == [[[1.0, 0.0]]]


def test_the_random_direction_is_that_of_the_key(network):
    logits, x = network
    found = [
        virtual_adversarial_perturbation(logits, x, 1.0, jax.random.key(k))
        for k in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_embeddings_are_normalized_by_frequency(rng, x64):
    """Repeat each word as often as it occurs: mean 0, variance 1 of each feature."""
    counts, table = np.array([5, 1, 3, 0]), rng.normal(2, 3, size=(4, 6))
    found = np.asarray(normalize_embeddings(jnp.asarray(table), jnp.asarray(counts)))
    read = np.repeat(found, counts, axis=0)
    np.testing.assert_allclose(read.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(read.var(axis=0), 1, rtol=1e-12)
    repeated = np.repeat(table, counts, axis=0)
    expected = (table - repeated.mean(axis=0)) / repeated.std(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_constant_feature_has_nothing_to_normalize():
    """Also where its mean is rounded, and in its gradient."""
    table = jnp.array([[2.0, 1.0], [2.0, 3.0]])
    found = normalize_embeddings(table, jnp.ones(2))
    assert found.tolist() == [[0.0, -1.0], [0.0, 1.0]]
    constant, frequencies = jnp.full((3, 1), 0.1), jnp.array([1, 2, 4])
    assert normalize_embeddings(constant, frequencies).tolist() == [[0.0]] * 3
    gradient = jax.grad(lambda x: normalize_embeddings(x, frequencies).sum())
    assert gradient(jnp.zeros((3, 1))).tolist() == [[0.0]] * 3


def test_frequencies_may_be_beyond_the_range_of_the_embeddings_dtype():
    table = jnp.array([[1.0], [5.0]], jnp.float16)
    found = normalize_embeddings(table, jnp.array([70_000, 70_000]))
    assert found.dtype == jnp.float16
    assert found.tolist() == [[-1.0], [1.0]]


def test_divergence_and_entropy_are_sums_over_classes(rng, x64):
    a, b = rng.normal(0, 3, size=(2, 4, 5))
    p, q = (np.exp(numpy_log_softmax(x)) for x in (a, b))
    for row in range(4):
        pairs = list(zip(p[row].tolist(), q[row].tolist(), strict=True))
        found = kl_divergence(jnp.asarray(a[row]), jnp.asarray(b[row]))
        expected = sum(x * math.log(x / y) for x, y in pairs)
        assert float(found) == pytest.approx(expected, rel=1e-12)
        expected = -sum(x * math.log(x) for x, _ in pairs)
        assert float(entropy(jnp.asarray(a[row]))) == pytest.approx(expected, rel=1e-12)
    assert not np.any(jax.grad(lambda a: kl_divergence(a, b).sum())(jnp.asarray(a)))


def test_one_logit_is_that_of_the_second_class():
    logits = jnp.array([-3.0, 0.5])
    second = jax.nn.softmax(two_class_logits(logits))[:, 1]
    np.testing.assert_allclose(second, 1 / (1 + np.exp([3.0, -0.5])), rtol=1e-6)


def test_certain_predictions_have_finite_gradients():
    logits = jnp.array([[200.0, -200.0]])
    gradients = [
        jax.grad(lambda x: entropy(x).sum())(logits),
        jax.grad(lambda x: kl_divergence(-logits, x).sum())(logits),
    ]
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"),
    [
        (0, (-1.0,), {}, "epsilon must be finite and at least 0, got -1.0"),
        (0, (math.inf,), {}, "epsilon must be finite and at least 0, got inf"),
        (0, (1.0, np.ones((1, 2), int)), {}, "valid must be boolean, got int"),
        (0, (1.0, np.ones((2, 1), bool)), {}, r"valid has shape \(2, 1\)"),
        (1, (1.0, jax.random.key(0)), {"xi": 0.0}, "xi must be above 0 and finite"),
        (1, (1.0, jax.random.key(0)), {"num_iterations": 0}, "num_iterations must be"),
    ],
)
def test_what_makes_no_sense_is_refused(function, arguments, options, message):
    x = jnp.ones((1, 2, 3))
    call = (adversarial_perturbation, virtual_adversarial_perturbation)[function]
    with pytest.raises(ValueError, match=message):
        call(lambda x: x.sum() if function == 0 else x[:, 0], x, *arguments, **options)


def test_shapes_of_inputs_and_words_are_checked():
    with pytest.raises(ValueError, match=r"time and a feature axis, got shape \(3,\)"):
        adversarial_perturbation(jnp.sum, jnp.ones(3), 1.0)
    with pytest.raises(ValueError, match=r"frequencies have shape \(2,\), but the tab"):
        normalize_embeddings(jnp.ones((3, 1)), jnp.ones(2))


def test_half_precision_keeps_the_norm(rng):
    x = jnp.asarray(rng.normal(size=(2, 40, 8)), jnp.bfloat16)
    found = adversarial_perturbation(lambda x: (x * x).sum(), x, 3.0)
    norms = jnp.sqrt((found.astype(jnp.float32) ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(norms, 3.0, rtol=1e-2)  # bfloat16 has 8 bits
    assert found.dtype == x.dtype
    assert adversarial.__doc__


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_divergence_and_entropy_are_computed_in_float32(dtype):
    """The differences of close predictions would be rounding errors."""
    logits = jax.random.normal(jax.random.key(0), (8, 5)).astype(dtype)
    moved = logits + jnp.asarray(0.02, dtype)
    for found, expected in (
        (
            adversarial.kl_divergence(logits, moved.at[:, 0].add(dtype(0.02))),
            adversarial.kl_divergence(
                logits.astype(jnp.float32),
                moved.at[:, 0].add(dtype(0.02)).astype(jnp.float32),
            ),
        ),
        (adversarial.entropy(logits), adversarial.entropy(logits.astype(jnp.float32))),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, expected)


def test_a_class_that_is_ruled_out_adds_nothing():
    logits = jnp.array([0.0, 0.0, -jnp.inf])
    assert adversarial.entropy(logits) == pytest.approx(np.log(2))
    assert adversarial.kl_divergence(logits, logits) == 0
    assert adversarial.kl_divergence(logits, jnp.zeros(3)) == pytest.approx(
        np.log(3) - np.log(2)
    )
    assert np.isfinite(jax.grad(adversarial.entropy)(logits)).all()
