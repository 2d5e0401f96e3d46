"""Metrics of a classifier from its logits or its confusion matrix, in NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, softmax


def classification_report(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Macro F1, and precision, recall, F1 and support of each class.

    `counts[truth, prediction]` is the confusion matrix. A precision, recall or F1
    without a denominator is 0, as in scikit-learn; a class without examples counts in
    the macro average.

    >>> report = classification_report(np.array([[5, 1], [0, 2]]), ["ham", "spam"])
    >>> report["classes"]["spam"]["recall"], round(report["macro_f1"], 4)
    (1.0, 0.8545)
    """
    right = np.diag(counts).astype(float)
    truths, predictions = counts.sum(axis=1), counts.sum(axis=0)
    columns = {
        "precision": right / np.maximum(predictions, 1),
        "recall": right / np.maximum(truths, 1),
        "f1": 2 * right / np.maximum(truths + predictions, 1),
    }
    return {
        "macro_f1": float(columns["f1"].mean()),
        "classes": {
            name: {score: float(values[k]) for score, values in columns.items()}
            | {"support": int(truths[k])}
            for k, name in enumerate(classes)
        },
    }


def measure_logits(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Loss, accuracy and confusion matrix: counts, [truth, prediction].

    >>> found = measure_logits(np.array([[2.0], [-1.0], [3.0]]), np.array([1, 0, 0]))
    >>> round(found["accuracy"], 3), found["confusion"].tolist()
    (0.667, [[1, 1], [0, 1]])
    """
    classes = max(logits.shape[1], 2)
    predicted = logits.argmax(axis=1) if classes > 2 else (logits[:, 0] > 0).astype(int)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predicted), 1)
    return {
        "loss": float(cross_entropies(logits, labels).mean()),
        "accuracy": float((predicted == labels).mean()),
        "confusion": counts,
    }


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Nats of each example; logits [n, 1] are those of the second of two classes.

    >>> cross_entropies(np.array([[0.0], [np.log(3)]]), np.array([1, 1])).round(3)
    array([0.693, 0.288])
    """
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return -log_softmax(logits, axis=1)[np.arange(labels.size), labels]


def class_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of each class, float64 [n, c]; logits [n, 1] are those of the second of two.

    >>> class_probabilities(np.array([[np.log(3)]])).round(3)
    array([[0.25, 0.75]])
    """
    logits = logits.astype(np.float64)
    if logits.shape[1] == 1:
        return np.concatenate([expit(-logits), expit(logits)], axis=1)
    return softmax(logits, axis=1)
