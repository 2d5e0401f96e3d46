"""Word vectors against dense matrices made by loops."""

import numpy as np
import pytest

from experiments.imdb.word_vectors import word_vectors

V, WINDOW = 9, 2


def positive_pmi_by_loops(sequences):
    counts = np.zeros((V, V))
    for ids in sequences:
        for i, word in enumerate(ids):
            for j, other in enumerate(ids):
                if i != j and abs(i - j) <= WINDOW:
                    counts[word, other] += 1
    counts = counts[2:, 2:]  # padding and unknown are no words
    word = counts.sum(axis=1)
    context = word**0.75 / (word**0.75).sum()
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(counts / (word[:, None] * context)), 0)


def test_the_best_approximation_of_positive_pmi(rng):
    sequences = [rng.integers(1, V, size=n).astype(np.int32) for n in (1, 30, 2, 45)]
    vectors = word_vectors(sequences, V, features=3, window=WINDOW, scale=0.5)
    assert vectors.dtype == np.float32
    assert not vectors[:2].any()
    assert np.sqrt(np.mean(vectors[2:] ** 2)) == pytest.approx(0.5, rel=1e-5)
    left, singular, _ = np.linalg.svd(positive_pmi_by_loops(sequences))
    expected = left[:, :3] * np.sqrt(singular[:3])
    # Singular vectors have no sign: products of vectors have. float32 and Lanczos.
    products = expected @ expected.T * 0.25 / np.mean(expected**2)
    np.testing.assert_allclose(vectors[2:] @ vectors[2:].T, products, atol=1e-4)
    again = word_vectors(sequences, V, features=3, window=WINDOW, scale=0.5)
    np.testing.assert_array_equal(again, vectors)


def test_too_few_words():
    with pytest.raises(ValueError, match="8 features need more than 8 words"):
        word_vectors([np.arange(9)], V, features=8)


def test_words_that_stand_alone():
    """No two words of a review are near each other: there is nothing to learn from."""
    with pytest.raises(ValueError, match="random vectors with --no-pretrain"):
        word_vectors([np.array([word]) for word in range(2, V)], V, features=3)
