"""The linear baseline: features and weights by loops, and its numbers by hand."""

import csv
import itertools
import sys

import numpy as np
import pytest

from experiments.bench import linear_baseline
from experiments.harness import cli
from experiments.imdb import datasets
from jaxrnn.text import word_tokens

pytest.importorskip("sklearn")


def test_features_are_the_words_and_pairs_of_each_text():
    data = datasets.generate(60, seed=3)
    x, labels, x_test = linear_baseline.features(data)
    texts = data.train.texts + data.validation.texts
    sets = []
    for text in texts + data.test.texts:
        words = word_tokens(text)
        sets.append({*words} | set(itertools.pairwise(words)))
    known = set().union(*sets[: len(texts)])
    assert x.shape == (len(texts), len(known))
    assert x.max() == x_test.max() == 1
    counts = np.asarray(x.sum(axis=1)).ravel()
    assert counts.tolist() == [len(some) for some in sets[: len(texts)]]
    counts = np.asarray(x_test.sum(axis=1)).ravel()
    assert counts.tolist() == [len(some & known) for some in sets[len(texts) :]]
    assert counts.tolist() != [len(some) for some in sets[len(texts) :]]
    assert labels.tolist() == [*data.train.labels, *data.validation.labels]


@pytest.mark.parametrize("classes", [2, 3])
def test_naive_bayes_weights_are_those_of_the_equation(rng, classes):
    """Counts by loops; the regression by a descent on its own objective."""
    from scipy.optimize import minimize
    from scipy.sparse import csr_matrix

    x = (rng.random((60, 6)) < 0.4).astype(np.float32)
    noise = rng.normal(0, 0.5, (60, classes))
    labels = (x[:, :classes] - x[:, 3 : 3 + classes] + noise).argmax(axis=1)
    scores = []
    for target in [1] if classes == 2 else range(classes):
        inside, outside = [1.0] * 6, [1.0] * 6
        for row, label in zip(x, labels, strict=True):
            for k in range(6):
                (inside if label == target else outside)[k] += row[k]
        ratio = [
            np.log(a / sum(inside) / (b / sum(outside)))
            for a, b in zip(inside, outside, strict=True)
        ]
        scaled, sign = np.float64(x) * ratio, np.where(labels == target, 1, -1)

        def objective(w, scaled=scaled, sign=sign):
            margins = sign * (scaled @ w[:-1] + w[-1])
            return w[:-1] @ w[:-1] / 2 + 0.5 * np.log1p(np.exp(-margins)).sum()

        w = minimize(objective, np.zeros(7), tol=1e-10).x
        scores.append(scaled @ w[:-1] + w[-1])
    if classes == 2:
        expected, margin = (scores[0] > 0).astype(int), np.abs(scores[0])
    else:
        expected = np.argmax(scores, axis=0)
        margin = np.diff(np.sort(scores, axis=0)[-2:], axis=0)[0]
    found = linear_baseline.fit_naive_bayes(csr_matrix(x), labels, classes, 0.5)(
        csr_matrix(x)
    )
    clear = margin > 0.01  # scikit-learn stops at a tolerance of 1e-4
    assert clear.sum() > 50
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert len({*expected}) == classes


def test_the_penalty_is_the_best_of_those_in_validation():
    """Of a classifier that is right of the last 4 of 10 texts as often as it is said;
    it must be fitted to the first 6 alone."""
    right = {0.01: 1, 0.03: 2, 0.1: 4, 0.3: 4, 1.0: 3}
    x, labels = np.arange(10)[:, None], np.arange(10) % 2

    def fit(x, labels, num_classes, c):
        assert x.ravel().tolist() == [0, 1, 2, 3, 4, 5]
        assert labels.tolist() == [0, 1, 0, 1, 0, 1]

        def predict(x):
            assert x.ravel().tolist() == [6, 7, 8, 9]
            return (x.ravel() + (np.arange(4) >= right[c])) % 2

        return predict

    assert linear_baseline.choose(fit, x, labels, 6, 2) == 0.1


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["linear_baseline", *map(str, arguments)])
    code = cli.run(
        linear_baseline.main, linear_baseline.Options, "bench.linear_baseline", None
    )
    return code, *capsys.readouterr()


def test_it_tests_on_the_part_that_the_program_tests_on(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.csv"
    generated = datasets.generate(200, seed=5)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for part in generated.parts.values():
            writer.writerows(zip(part.texts, part.labels, strict=True))
    code, out, err = run(monkeypatch, capsys, "--csv", path, "--seed", 2)
    assert (code, err) == (0, "")
    data = datasets.read_csv(path, seed=2)
    x, labels, x_test = linear_baseline.features(data)
    assert out.startswith(f"{data.describe()}\n")
    lines = out.splitlines()[-2:]
    for line, name, fit in zip(
        lines,
        ("logistic regression", "with naive Bayes weights"),
        (linear_baseline.fit_logistic, linear_baseline.fit_naive_bayes),
        strict=True,
    ):
        best = linear_baseline.choose(fit, x, labels, len(data.train.texts), 2)
        said = fit(x, labels, 2, best)(x_test)
        right = sum(a == b for a, b in zip(said, data.test.labels, strict=True))
        accuracy = right / len(data.test.texts)
        assert accuracy > 0.8
        assert line.startswith(f"{name}: test accuracy {accuracy:.2%}, macro F1 ")
        assert f" (C {best:g}), " in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test-csv", "x"], "--test-csv needs --csv"),
        (["--label-column", "x"], "--label-column needs --csv"),
        (["--csv", "none.csv"], "none.csv: cannot be read: No such file"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, arguments, message):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_without_scikit_learn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, _, err = run(monkeypatch, capsys)
    assert code == 2
    assert err == (
        'error: scikit-learn is not installed: run `pip install ".[bench]"`\n'
    )
