"""Metrics of a classifier from its logits or its confusion matrix, in NumPy.

Labels are the indices of classes, [n], or, where texts may have several, a 1 in the
column of each label that a text has, [n, c].
"""

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
    right = np.diag(counts)
    truths, predictions = counts.sum(axis=1), counts.sum(axis=0)
    rest = counts.sum() - truths - predictions + right
    one_by_one = [[rest, predictions - right], [truths - right, right]]
    return label_report(np.moveaxis(np.array(one_by_one), -1, 0), classes)


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


def measure_label_sets(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Loss, subset accuracy and micro F1, where texts may have several labels.

    A label is predicted where its logit is above 0. The loss is the mean binary
    cross-entropy over texts and labels; the subset accuracy is the share of texts all
    of whose labels are right and not one too many; the micro F1 is that of all texts
    and labels together. Each label has a confusion matrix: counts, [truth, prediction].

    >>> logits = np.array([[2.0, -1.0], [3.0, 1.0]])
    >>> found = measure_label_sets(logits, np.array([[1, 0], [0, 1]]))
    >>> found["subset_accuracy"], round(found["micro_f1"], 3)
    (0.5, 0.8)
    >>> found["confusion"].tolist()
    [[[0, 1], [0, 1]], [[1, 0], [0, 1]]]
    """
    truths, predicted = labels.astype(bool), logits > 0
    counts = np.zeros((labels.shape[1], 2, 2), int)
    of_label = np.arange(labels.shape[1])
    np.add.at(counts, (of_label, truths.astype(int), predicted.astype(int)), 1)
    return {
        "loss": float(cross_entropies(*as_decisions(logits, labels)).mean()),
        "subset_accuracy": float((truths == predicted).all(axis=1).mean()),
        "micro_f1": float(_scores(counts.sum(axis=0)[None])["f1"][0]),
        "confusion": counts,
    }


def label_report(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Macro F1, and precision, recall, F1 and support of each label.

    `counts[label, truth, prediction]` is the confusion matrix of each. A score without
    a denominator is 0.

    >>> counts = np.array([[[0, 1], [0, 1]], [[1, 0], [0, 1]]])
    >>> report = label_report(counts, ["law", "sport"])
    >>> report["classes"]["law"]["precision"], round(report["macro_f1"], 4)
    (0.5, 0.8333)
    """
    columns = _scores(counts)
    return {
        "macro_f1": float(columns["f1"].mean()),
        "classes": {
            name: {score: float(values[k]) for score, values in columns.items()}
            | {"support": int(counts[k, 1].sum())}
            for k, name in enumerate(classes)
        },
    }


def _scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of confusion matrices [c, truth, prediction]."""
    right = counts[:, 1, 1].astype(float)
    truths, predictions = counts[:, 1].sum(axis=1), counts[:, :, 1].sum(axis=1)
    return {
        "precision": right / np.maximum(predictions, 1),
        "recall": right / np.maximum(truths, 1),
        "f1": 2 * right / np.maximum(truths + predictions, 1),
    }


def as_decisions(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [m, k] and labels [m] of decisions for one of several classes each.

    Where texts may have several labels, each of them is a decision for or against it.

    >>> as_decisions(np.array([[2.0, -1.0]]), np.array([[1, 0]]))
    (array([[ 2.],
           [-1.]]), array([1, 0]))
    """
    if labels.ndim == 1:
        return logits, labels
    return logits.reshape(-1, 1), labels.reshape(-1)


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Nats of each example; logits [n, 1] are those of the second of two classes.

    >>> cross_entropies(np.array([[0.0], [np.log(3)]]), np.array([1, 1])).round(3)
    array([0.693, 0.288])
    """
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return -log_softmax(logits, axis=1)[np.arange(labels.size), labels]


def label_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of each label where texts may have several, float64 [n, c].

    >>> label_probabilities(np.log([[3.0, 1.0]])).round(3)
    array([[0.75, 0.5 ]])
    """
    return expit(logits.astype(np.float64))


def class_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of each class, float64 [n, c]; logits [n, 1] are those of the second of two.

    >>> class_probabilities(np.array([[np.log(3)]])).round(3)
    array([[0.25, 0.75]])
    """
    logits = logits.astype(np.float64)
    if logits.shape[1] == 1:
        return np.concatenate([expit(-logits), expit(logits)], axis=1)
    return softmax(logits, axis=1)
