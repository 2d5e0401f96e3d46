"""Calibration of a classifier: its error, and temperature scaling.

A classifier is calibrated if of the texts that it classifies with probability p a share
of p is classified correctly. Guo, Pleiss, Sun and Weinberger (2017), "On Calibration of
Modern Neural Networks": the expected calibration error (equations 2, 3 and 5), and one
temperature that all logits are divided by (equation 9). It changes no label.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from experiments.imdb.evaluation import cross_entropies

BINS = 15  # as in the paper
PENALTY = 1.0  # of the squared distance of 1 / temperature from 1
COLDEST, HOTTEST = 0.05, 100.0


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> float:
    """The mean distance of confidence and accuracy, over bins of equal width.

    The confidence of an example is the probability of its predicted class.

    Args:
        probabilities: of each class, [n, c].
        labels: the true classes, [n].
        bins: number of bins that the interval from 0 to 1 is divided into.

    >>> shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    >>> round(expected_calibration_error(shares, np.array([0, 1, 1, 1])), 3)
    0.3
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    places = np.maximum(np.ceil(confidence * bins).astype(int) - 1, 0)
    # |accuracy - confidence| of a bin, times the share of examples in it.
    gaps = np.bincount(places, correct - confidence)
    return float(np.abs(gaps).sum() / labels.size)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the cross-entropy of `logits / temperature`.

    The examples must be none of those that the model was trained on. A penalty keeps
    the temperature near 1 where they are few: without it, it would be 0 if all of them
    were classified correctly.

    >>> logits = np.array([[6.0], [6.0], [6.0], [6.0]] * 99)
    >>> round(fit_temperature(logits, np.array([1, 1, 1, 0] * 99)), 1)  # 6 / log(3.03)
    5.4
    """

    def objective(scale: float) -> float:
        nats = cross_entropies(scale * logits.astype(np.float64), labels)
        return nats.sum() + PENALTY * (scale - 1) ** 2

    bounds = (1 / HOTTEST, 1 / COLDEST)
    found: Any = minimize_scalar(objective, bounds=bounds, method="bounded")
    return float(1 / found.x)
