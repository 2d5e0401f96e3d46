"""Scores from a confusion matrix."""

import numpy as np
import pytest

from experiments.imdb.evaluation import classification_report


def test_scores_are_those_counted_one_by_one(rng):
    """By loops over examples; the last class is never true, the third never said."""
    truths = rng.integers(0, 3, size=40)
    said = rng.choice([0, 1, 3], size=40)
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (truths, said), 1)
    report = classification_report(counts, "abcd")
    f1 = []
    for k, name in enumerate("abcd"):
        both = sum(t == s == k for t, s in zip(truths, said, strict=True))
        true, told = sum(t == k for t in truths), sum(s == k for s in said)
        found = report["classes"][name]
        assert found["support"] == true
        precision, recall = (both / told if told else 0), (both / true if true else 0)
        assert found["precision"] == pytest.approx(precision)
        assert found["recall"] == pytest.approx(recall)
        scale = precision + recall
        f1.append(2 * precision * recall / scale if scale else 0.0)
        assert found["f1"] == pytest.approx(f1[-1])
    assert report["macro_f1"] == pytest.approx(np.mean(f1))
    assert f1[0] > 0.2
    assert f1[2] == f1[3] == 0
