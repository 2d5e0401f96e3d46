"""The linear classifier: features by loops, Newton's optimum, the sum of logits."""

import dataclasses
import itertools

import numpy as np
import pytest

from experiments.imdb.batches import Examples
from experiments.imdb.evaluation import cross_entropies
from experiments.imdb.linear import (
    EXPECTED_SCALES,
    EXPECTED_SCALES_PRETRAINED,
    PENALTY,
    SCALE_PENALTY,
    LinearClassifier,
)

VOCAB = 12


def some_examples(rng, number=40, classes=2):
    """Texts of words that tell the class, in part."""
    labels = rng.integers(classes, size=number)
    ids = [
        np.where(
            rng.random(size) < 0.3, label + 2, rng.integers(1, VOCAB, size)
        ).astype(np.int32)
        for size, label in zip(rng.integers(1, 15, number), labels, strict=True)
    ]
    return Examples(ids, labels)


def features(ids):
    """Words and pairs of a text, as tuples."""
    words = ids.tolist()
    return {(w,) for w in words} | set(itertools.pairwise(words))


def newton(x, y):
    """Weights and bias, last, of penalised logistic regression on a dense matrix."""
    x = np.c_[x, np.ones(len(x))]
    penalty = PENALTY * np.diag([*[1.0] * (x.shape[1] - 1), 0.0])
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x.T * (p * (1 - p))) @ x + penalty
        w -= np.linalg.solve(hessian, x.T @ (p - y) + penalty @ w)
    return w


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_logistic_regression_on_scaled_features(rng, classes):
    """By Newton's method on features made by loops."""
    examples = some_examples(rng, classes=classes)
    model = LinearClassifier.fit(examples, classes, VOCAB)
    others = some_examples(rng, classes=classes).ids
    sets = [features(ids) for ids in examples.ids]
    names = sorted(set.union(*sets))
    x = np.array([[float(name in found) for name in names] for found in sets])
    new = np.array([[float(n in features(ids)) for n in names] for ids in others])
    logits = model.logits(others)
    assert logits.shape == (40, 1 if classes == 2 else classes)
    for column, target in enumerate([1] if classes == 2 else range(classes)):
        y = examples.labels == target
        inside, outside = x[y].sum(axis=0) + 1, x[~y].sum(axis=0) + 1
        ratio = np.log(inside / inside.sum() / (outside / outside.sum()))
        *w, bias = newton(x * ratio, y)
        expected = new * ratio @ np.array(w) + bias
        assert expected.std() > 0.3
        # L-BFGS stops when the loss falls by less than 2e-9 of itself.
        np.testing.assert_allclose(logits[:, column], expected, atol=2e-3)


def test_contributions_add_up_to_the_logits(rng):
    examples = some_examples(rng, classes=3)
    model = LinearClassifier.fit(examples, 3, VOCAB)
    for ids in (*examples.ids, np.array([11, 11, 11, 3, 11]), np.array([5])):
        found = model.contributions(ids)
        assert found.shape == (ids.size, 3)
        np.testing.assert_allclose(
            found.sum(axis=0) + model.bias, model.logits([ids])[0], atol=1e-5
        )
    bare = dataclasses.replace(model, weights=np.zeros_like(model.weights))
    bare.weights[np.searchsorted(model.keys, 3)] = [1, 2, 3]  # the word 3 alone
    np.testing.assert_allclose(
        bare.contributions(np.array([4, 3, 3])),
        [[0, 0, 0], [0.5, 1, 1.5], [0.5, 1, 1.5]],
    )


def test_unknown_ngrams_and_empty_texts_have_the_bias(rng):
    model = LinearClassifier.fit(some_examples(rng), 2, VOCAB)
    np.testing.assert_allclose(
        model.logits([np.zeros(0, np.int32), np.array([0])]), [model.bias] * 2
    )
    with pytest.raises(ValueError, match="no text to train on has words"):
        LinearClassifier.fit(
            Examples([np.zeros(0, np.int32)] * 2, np.array([0, 1])), 2, VOCAB
        )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("expected", [EXPECTED_SCALES, EXPECTED_SCALES_PRETRAINED])
def test_scales_have_the_least_cross_entropy(rng, classes, expected):
    """No step away lowers the objective, and a useless model gets little weight."""
    model = LinearClassifier.fit(some_examples(rng, classes=classes), classes, VOCAB)
    held_out = some_examples(rng, number=300, classes=classes)
    noise = rng.normal(size=(300, model.bias.size)).astype(np.float32)
    fitted = model.fit_scales(noise, held_out, expected)
    assert fitted.scales[0] < 0.2 < fitted.scales[1]

    def objective(scales):
        found = dataclasses.replace(model, scales=np.float32(scales))
        nats = cross_entropies(found.add(noise, held_out.ids), held_out.labels)
        distance = ((np.array(scales) - expected) ** 2).sum()
        return nats.sum() + SCALE_PENALTY * distance

    best = objective(fitted.scales)
    for step in ([0.1, 0], [0, 0.1], [0, -0.1]):
        assert objective(fitted.scales + step) > best


def test_without_examples_to_speak_of_scales_are_the_expected_ones(rng):
    model = LinearClassifier.fit(some_examples(rng), 2, VOCAB)
    few = some_examples(rng, number=2)
    logits = np.zeros((2, 1), np.float32)
    for expected in (EXPECTED_SCALES, EXPECTED_SCALES_PRETRAINED):
        found = model.fit_scales(logits, few, expected).scales
        np.testing.assert_allclose(found, expected, atol=0.2)


def test_a_file_holds_all_of_it(rng, tmp_path):
    model = LinearClassifier.fit(some_examples(rng), 2, VOCAB)
    model = dataclasses.replace(model, scales=np.array([0.5, 2.0], np.float32))
    path = tmp_path / "linear.safetensors"
    model.save(path)
    found = LinearClassifier.load(path, 1, VOCAB)
    for name, value in vars(model).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    path.write_bytes(path.read_bytes()[:-7])
    remedy = r"linear\.safetensors is damaged .*remove results\.json"
    with pytest.raises(ValueError, match=remedy):
        LinearClassifier.load(path, 1, VOCAB)


def test_a_file_of_another_model_is_refused(rng, tmp_path):
    path = tmp_path / "linear.safetensors"
    LinearClassifier.fit(some_examples(rng), 2, VOCAB).save(path)
    for num_logits, words in ((3, VOCAB), (1, VOCAB + 1)):
        with pytest.raises(ValueError, match="of another model"):
            LinearClassifier.load(path, num_logits, words)
