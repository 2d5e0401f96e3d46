"""Word vectors from unlabelled texts: PPMI and SVD.

Positive pointwise mutual information (PPMI) of words that co-occur within a window, and
the truncated singular value decomposition (SVD) of that matrix: Levy, Goldberg and
Dagan (2015), "Improving Distributional Similarity with Lessons Learned from Word
Embeddings", with context distribution smoothing and the square root of the singular
values, as they recommend.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.linalg import ArpackError, svds

SPECIALS = 2  # ids 0 and 1 are padding and unknown words
SMOOTHING = 0.75  # exponent of the context distribution


def word_vectors(
    sequences: Sequence[np.ndarray],
    vocab_size: int,
    features: int,
    *,
    window: int = 4,
    scale: float = 0.5,
) -> np.ndarray:
    """PPMI-SVD word vectors, float32 [v, d], with root mean square `scale`.

    Words with similar contexts have similar vectors. Padding, unknown words and words
    that never occur have vectors of zeros.

    Args:
        sequences: texts as word ids.
        vocab_size: v, specials included.
        features: d.
        window: co-occurrences are counted up to so many words apart, in either order.
        scale: the root mean square of the vectors of words.

    Raises:
        ValueError: there are not more words than `features`, or too few of them
            co-occur.

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
    # A fixed initial vector makes the result a function of the texts.
    start = np.random.default_rng(0).normal(size=words).astype(np.float32)
    try:
        left, singular, _ = svds(pmi, k=features, v0=start)
    except ArpackError as error:
        raise ValueError(
            f"too few words co-occur in the training texts for word vectors ({error}): "
            "start from random vectors with --no-pretrain"
        ) from error
    vectors = left * np.sqrt(singular)
    vectors *= scale / np.sqrt(np.mean(vectors**2))
    return np.concatenate([np.zeros((SPECIALS, features)), vectors]).astype(np.float32)


def _cooccurrences(
    sequences: Sequence[np.ndarray], vocab_size: int, window: int
) -> coo_matrix:
    """Counts of pairs of words at most `window` words apart, in either order."""
    gap = np.zeros(window, np.int32)  # no pairs across sequences
    text = np.concatenate([part for ids in sequences for part in (ids, gap)])
    counts = csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, window + 1):
        pairs = (text[:-distance], text[distance:])
        ones = np.ones(text.size - distance, np.float32)
        counts = counts + csr_matrix((ones, pairs), shape=counts.shape)
    return (counts + counts.T)[SPECIALS:, SPECIALS:].tocoo()


def _positive_pmi(counts: coo_matrix) -> csr_matrix:
    """The log of P(word, context) / P(word) P(context) where that is positive."""
    word = np.asarray(counts.sum(axis=1)).ravel()
    context = word**SMOOTHING / max(np.sum(word**SMOOTHING), 1.0)  # there may be none
    pmi = np.log(counts.data / (word[counts.row] * context[counts.col]))
    positive = pmi > 0
    places = (counts.row[positive], counts.col[positive])
    return csr_matrix((pmi[positive], places), shape=counts.shape)
