"""The choice of a token against a float64 loop over the tokens, and against counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.logits import Candidates, penalize, sample, sample_inverse_cdf, truncate

# The value that chi-square with so many degrees of freedom passes once in 1,000 times.
CHI_SQUARE = {2: 13.82, 5: 20.52}


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def oracle(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The probability of each token that is left, in float64."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if temperature == 0:
        return {order[0]: 1.0}
    odds = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    order = order[:top_k]
    if top_p is not None:
        total, reached, kept = sum(odds[i] for i in order), 0.0, []
        for i in order:
            kept.append(i)
            reached += odds[i] / total
            if reached >= top_p:
                break
        order = kept
    if min_p is not None:
        order = [i for i in order if odds[i] >= min_p * odds[order[0]]]
    total = sum(odds[i] for i in order)
    return {i: odds[i] / total for i in order}


def left(candidates, row=0):
    """The tokens of a row that may be drawn, and their probabilities."""
    pairs = zip(
        candidates.ids[row].tolist(),
        candidates.probabilities[row].tolist(),
        strict=True,
    )
    return {token: p for token, p in pairs if p > 0}


def chi_square(drawn, probabilities):
    counts = np.bincount(np.asarray(drawn), minlength=len(probabilities))
    assert counts.size == len(probabilities)
    expected = np.asarray(probabilities) * counts.sum()
    assert expected.min() > 5  # where the approximation holds
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 4.0},
        {"temperature": 0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 23},
        {"top_p": 0.1},
        {"top_p": 0.5, "temperature": 2.0},
        {"top_p": 0.95},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"min_p": 0.2, "temperature": 0.7},
        {"min_p": 1.0},
        {"temperature": 3.0, "top_k": 9, "top_p": 0.8},
        {"temperature": 3.0, "top_k": 9, "top_p": 0.8, "min_p": 0.7},
        {"temperature": 0, "top_k": 9, "top_p": 0.8, "min_p": 0.7},
        {"top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_what_is_left_is_what_the_loop_leaves(rng, options):
    logits = rng.normal(size=(40, 23), scale=2).astype(np.float32)
    candidates = jax.jit(lambda x: truncate(x, **options))(logits)
    for row, row_logits in enumerate(logits.tolist()):
        expected = oracle(row_logits, **options)
        assert left(candidates, row) == pytest.approx(expected, rel=2e-5)


def test_every_row_has_its_own_options(rng):
    logits = rng.normal(size=(3, 11), scale=2).astype(np.float32)
    options = {
        "temperature": np.array([0.0, 0.5, 2.0]),
        "top_p": np.array([0.9, 0.2, 0.7]),
        "min_p": np.array([0.0, 0.5, 0.1]),
    }
    candidates = truncate(logits, **options)
    for row, row_logits in enumerate(logits.tolist()):
        own = {name: values[row] for name, values in options.items()}
        expected = oracle(row_logits, **own)
        assert left(candidates, row) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (1.0, [0.1065, 0.1065, 0.7870]),
        (0.5, [0.2119, 0.2119, 0.5761]),
        (0.1, [0.3104, 0.3104, 0.3792]),
    ],
)
def test_the_printed_examples_of_scaled_logits(scale, expected):
    """Raschka, Liu and Mirjalili (2022), chapter 15, multiply logits by 1/temperature;
    they print four digits."""
    candidates = truncate(jnp.array([[1.0, 1.0, 3.0]]), temperature=1 / scale)
    np.testing.assert_allclose(candidates.probabilities[0], expected, atol=5e-5)


def test_top_k_keeps_exactly_k_of_equals_the_first():
    logits = jnp.array([[1.0, 2.0, 1.0, 1.0, 1.0]])
    assert left(truncate(logits, top_k=3)).keys() == {0, 1, 2}
    assert left(truncate(jnp.zeros((1, 9)), top_k=4)) == dict.fromkeys(range(4), 0.25)


def test_top_p_ends_with_the_token_that_reaches_it():
    """All numbers are exact in binary."""
    logits = jnp.zeros((1, 8))
    assert left(truncate(logits, top_p=0.5)).keys() == {0, 1, 2, 3}
    assert left(truncate(logits, top_p=0.51)).keys() == {0, 1, 2, 3, 4}
    assert left(truncate(logits, top_p=1e-9)).keys() == {0}


def test_top_p_is_minimal(rng):
    logits = rng.normal(size=(200, 50), scale=3).astype(np.float32)
    wide = np.exp(logits.astype(np.float64))
    probabilities = wide / wide.sum(axis=1, keepdims=True)
    candidates = truncate(logits, top_p=0.8)
    for row in range(200):
        tokens = list(left(candidates, row))
        mass = probabilities[row, tokens]
        assert mass.sum() >= 0.8
        assert mass.sum() - mass.min() < 0.8
        assert np.delete(probabilities[row], tokens).max() < mass.min()


def test_top_p_of_one_keeps_the_unlikeliest():
    # The sum of the others is 1 in float32 already.
    logits = jnp.array([[0.0, -30.0, -40.0]])
    assert left(truncate(logits, top_p=1.0)).keys() == {0, 1, 2}


def test_greedy_takes_the_first_of_equals():
    logits = jnp.array([[0.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    for options in ({}, {"top_k": 2}, {"top_p": 1.0}, {"min_p": 0.5}):
        assert sample(logits, keys(2), temperature=0, **options).tolist() == [1, 0]


def test_temperature_falls_to_greedy_and_rises_to_uniform(rng):
    logits = rng.normal(size=(1, 6)).astype(np.float32)
    many = np.tile(logits, (6000, 1))
    for temperature in (1e-5, 1e-30, 1e-44):
        cold = sample(many, keys(6000), temperature=temperature)
        assert set(cold.tolist()) == {int(logits.argmax())}
    for temperature in (1e5, 1e30):
        hot = sample(many, keys(6000), temperature=temperature)
        assert chi_square(hot, [1 / 6] * 6) < CHI_SQUARE[5]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.7}, {"top_p": 1.0}, {"top_k": 6}], ids=str
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_frequencies_are_the_softmax(options, dtype):
    logits = jnp.array([0.5, -1.0, 2.0, 0.0, 1.0, -2.0], dtype)  # exact in bfloat16
    drawn = sample(jnp.tile(logits, (20000, 1)), keys(20000), **options)
    p = np.exp(np.array([0.5, -1, 2, 0, 1, -2]) / options.get("temperature", 1))
    assert chi_square(drawn, p / p.sum()) < CHI_SQUARE[5]


@pytest.mark.parametrize(
    ("options", "support"),
    [({"top_k": 3}, {1, 4, 6}), ({"top_p": 0.85}, {1, 4}), ({"min_p": 0.4}, {1, 4})],
)
def test_frequencies_on_the_support(options, support):
    p = np.array([0.02, 0.5, 0.02, 0.01, 0.4, 0.01, 0.04])
    logits = jnp.asarray(np.tile(np.log(p), (9000, 1)), jnp.float32)
    drawn = np.asarray(sample(logits, keys(9000), **options))
    assert set(drawn.tolist()) == support
    kept = p[sorted(support)]
    places = np.searchsorted(sorted(support), drawn)
    # One degree of freedom passes the bound for two even more rarely.
    assert chi_square(places, kept / kept.sum()) < CHI_SQUARE[2]


def test_a_draw_depends_on_its_own_row(rng):
    logits = rng.normal(size=(5, 30)).astype(np.float32)
    together = sample(logits, keys(5), top_p=0.9)
    for row in range(5):
        alone = sample(logits[row : row + 1], keys(5)[row : row + 1], top_p=0.9)
        assert alone[0] == together[row]
    other = sample(np.tile(logits[:1], (200, 1)), keys(200))
    assert len(set(other.tolist())) > 5  # other keys, other draws


def test_choose_never_takes_what_has_no_probability(rng):
    """Sums are rounded: at the numbers where they pass from one token to the next, and
    at the greatest below 1, a token must come that may be drawn, and in order."""
    p = rng.uniform(size=600).astype(np.float32) ** 4
    p[rng.uniform(size=600) < 0.5] = 0
    p[:3] = p[-40:] = 0
    p /= p.sum()
    borders = np.asarray(jnp.cumsum(p))
    borders = borders[borders < 1]
    around = [np.nextafter(borders, side, dtype=np.float32) for side in (0, 1)]
    uniform = np.sort(np.concatenate([borders, *around, [0, 1 - 2**-24]]))
    uniform = uniform.astype(np.float32)
    ids = np.tile(np.arange(600, dtype=np.int32), (uniform.size, 1))
    rows = jnp.tile(p, (uniform.size, 1))
    drawn = np.asarray(sample_inverse_cdf(Candidates(jnp.array(ids), rows), uniform))
    assert (p[drawn] > 0).all()
    assert (np.diff(drawn) >= 0).all()
    above = np.cumsum(p.astype(np.float64))[drawn]
    # A few of the steps by which float32 numbers near 1 differ.
    assert (above > uniform - 1e-6).all()
    assert (above - p[drawn] < uniform + 1e-6).all()


def test_logits_of_minus_infinity_are_never_drawn():
    logits = jnp.tile(jnp.array([-jnp.inf, 0.0, -jnp.inf, 0.0]), (500, 1))
    for options in ({}, {"temperature": 1e30}, {"top_k": 4}, {"top_p": 1.0}):
        assert set(sample(logits, keys(500), **options).tolist()) == {1, 3}


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}]
)
def test_no_distribution_gives_no_token(options):
    inf, nan = jnp.inf, jnp.nan
    logits = jnp.array([[0, nan, 1], [inf, 0, 0], [-inf, -inf, -inf], [0.0, 9.0, 0]])
    assert sample(logits, keys(4), **options).tolist() == [-1, -1, -1, 1]


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_k": 2, "top_p": 0.5}])
def test_no_distribution_whatever_the_sign_of_nan(options):
    """What a processor makes of 0 / 0 has one on x86."""
    nan = np.copysign(np.float32(np.nan), np.float32(-1))
    logits = jnp.array([[1.0, 2.0, nan, 0.0]])
    assert np.isnan(truncate(logits, **options).probabilities).all()
    assert sample(logits, keys(1), **options).tolist() == [-1]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.1}, {"temperature": 0}])
def test_zeros_of_both_signs_are_equal(options):
    assert sample(jnp.array([[-0.0, 0.0, -1.0]]), keys(1), **options).tolist() == [0]


def test_float64_is_kept(x64, rng):
    logits = rng.normal(size=(4, 9))
    candidates = truncate(logits, temperature=0.7, top_p=0.9)
    for row, row_logits in enumerate(logits.tolist()):
        expected = oracle(row_logits, temperature=0.7, top_p=0.9)
        assert left(candidates, row) == pytest.approx(expected, rel=1e-12)
    assert sample(logits, keys(4), temperature=0).tolist() == logits.argmax(1).tolist()


def test_top_k_does_not_sort_the_vocabulary():
    """The 40 likeliest of 50,000 took a CPU 1 ms for 8 rows, to sort them 85 ms."""
    logits = jnp.zeros((8, 5000))
    compiled = jax.jit(lambda x: sample(x, keys(8), top_k=40, top_p=0.9))
    program = compiled.lower(logits).compile().as_text()
    assert " sort(" not in program
    sorting = jax.jit(lambda x: sample(x, keys(8), top_p=0.9))
    assert " sort(" in sorting.lower(logits).compile().as_text()


def test_penalty_against_the_loop(rng):
    logits = rng.normal(size=(3, 7)).astype(np.float32)
    seen = rng.uniform(size=(3, 7)) < 0.5
    penalty = np.array([1.0, 1.3, 0.5], np.float32)
    expected = logits.copy()
    for row, token in np.argwhere(seen):
        if logits[row, token] > 0:
            expected[row, token] = logits[row, token] / penalty[row]
        else:
            expected[row, token] = logits[row, token] * penalty[row]
    np.testing.assert_array_equal(penalize(logits, seen, penalty), expected)


@pytest.mark.parametrize("temperature", [1e-40, 1.0, 1e38, np.array([1e38])])
def test_a_token_that_is_ruled_out_is_at_any_temperature(temperature):
    logits = jnp.array([[1.0, 2.0, -jnp.inf]])
    found = truncate(logits, temperature=temperature).probabilities
    assert found[0, 2] == 0
    assert found.sum() == pytest.approx(1)
    if np.max(temperature) > 1:
        np.testing.assert_allclose(found[0, :2], 0.5)
