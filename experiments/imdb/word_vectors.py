"""Word vectors from the company that words keep, with no labels.

Positive pointwise mutual information of words within a few steps of each other, and the
singular vectors of that matrix: Levy, Goldberg and Dagan (2015), "Improving
Distributional Similarity with Lessons Learned from Word Embeddings", with smoothed
contexts and the square root of the singular values, as they recommend.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.linalg import ArpackError, svds

SPECIALS = 2  # Ids 0 and 1, padding and unknown, are no words.
SMOOTHING = 0.75


def word_vectors(
    sequences: Sequence[np.ndarray],
    vocab_size: int,
    features: int,
    *,
    window: int = 4,
    scale: float = 0.5,
) -> np.ndarray:
    """A float32 vector for each id [v, d], with root mean square `scale` over words.

    Words that occur near the same words are near each other. Padding, unknown words
    and words that never occur have vectors of zeros.

    Raises:
        ValueError: there are not more words than `features`, or too few of them stand
            beside each other.

    >>> ids = [np.array([2, 3, 2, 4, 2, 3]), np.array([3, 4, 3, 2])]
    >>> word_vectors(ids, vocab_size=5, features=2).shape
    (5, 2)
    """
    words = vocab_size - SPECIALS
    if words <= features:
        raise ValueError(
            f"{features} features need more than {features} words, there are {words}: "
            "lower --embed, or start from random vectors with --no-pretrain"
        )
    pmi = _positive_pmi(_cooccurrences(sequences, vocab_size, window))
    # From a given start, so that the same words give the same vectors.
    start = np.random.default_rng(0).normal(size=words).astype(np.float32)
    try:
        left, singular, _ = svds(pmi, k=features, v0=start)
    except ArpackError as error:
        raise ValueError(
            "too few words stand beside each other in the reviews to learn vectors of "
            f"them ({error}): start from random ones with --no-pretrain"
        ) from error
    vectors = left * np.sqrt(singular)
    vectors *= scale / np.sqrt(np.mean(vectors**2))
    return np.concatenate([np.zeros((SPECIALS, features)), vectors]).astype(np.float32)


def _cooccurrences(
    sequences: Sequence[np.ndarray], vocab_size: int, window: int
) -> coo_matrix:
    """How often each two words stand at most `window` steps apart, in either order."""
    gap = np.zeros(window, np.int32)  # Sequences do not see each other.
    text = np.concatenate([part for ids in sequences for part in (ids, gap)])
    counts = csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, window + 1):
        pairs = (text[:-distance], text[distance:])
        ones = np.ones(text.size - distance, np.float32)
        counts = counts + csr_matrix((ones, pairs), shape=counts.shape)
    return (counts + counts.T)[SPECIALS:, SPECIALS:].tocoo()


def _positive_pmi(counts: coo_matrix) -> csr_matrix:
    """log P(word, context) / P(word) P(context) where that is positive."""
    word = np.asarray(counts.sum(axis=1)).ravel()
    context = word**SMOOTHING / max(np.sum(word**SMOOTHING), 1.0)  # there may be none
    pmi = np.log(counts.data / (word[counts.row] * context[counts.col]))
    positive = pmi > 0
    places = (counts.row[positive], counts.col[positive])
    return csr_matrix((pmi[positive], places), shape=counts.shape)
