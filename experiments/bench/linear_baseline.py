"""Linear classifiers on words and word pairs, to compare `experiments.imdb` with.

    python -m experiments.bench.linear_baseline
    python -m experiments.bench.linear_baseline --csv mine.csv

prints test accuracy, macro F1 and seconds of two, on the parts that `experiments.imdb`
has. scikit-learn fits them to the training part with several strengths of the L2
penalty, and with the one that is best in validation to the training and the validation
part. The features of a text are its words and word pairs, each 1 where it occurs.

- Logistic regression.
- The same with naive Bayes weights: the features are scaled by the log-count ratio of a
  class against the others. Wang and Manning (2012), "Baselines and Bigrams: Simple,
  Good Sentiment and Topic Classification", equation 1, with logistic regression in
  place of their SVM; several classes are one against the rest.

Expect 90.05% and 91.46% on IMDB's official test part, after a minute and a half.
"""

import sys

if __name__ == "__main__":  # before the imports, which take seconds
    from experiments.harness.launch import launch

    sys.exit(launch("bench", "linear_baseline"))

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.sparse import csr_matrix

from experiments.harness.options import DatasetOptions
from experiments.imdb import datasets
from experiments.imdb.datasets import Reviews, load_imdb
from experiments.imdb.evaluation import classification_report
from experiments.imdb.options import CsvOptions
from jaxrnn.text import word_tokens

SMOOTHING = 1.0  # added to the counts of the ratio
INVERSE_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C


@dataclass(frozen=True)
class Options(DatasetOptions, CsvOptions):
    """The options of the command line."""

    seed: int = 0
    """Seed of how a --csv is split."""

    def check(self) -> None:
        """Check that the options do not contradict each other.

        Raises:
            ValueError: they do; one is named.
        """
        for name in ("test_csv", "text_column", "label_column"):
            if getattr(self, name) is not None and not self.csv:
                raise ValueError(f"--{name.replace('_', '-')} needs --csv")


def main(options: Options) -> None:
    """Prints a line for each classifier."""
    options.check()
    require_sklearn()
    if options.csv:
        data = datasets.read_csv(
            options.csv,
            test=options.test_csv,
            text_column=options.text_column,
            label_column=options.label_column,
            seed=options.seed,
        )
    else:
        data = load_imdb(options.data_dir, options.download_dir)
    print(data.describe(), flush=True)
    for found in baselines(data):
        print(
            f"{found.name}: test accuracy {found.accuracy:.2%}, macro F1 "
            f"{found.macro_f1:.4f} (C {found.c:g}), {found.seconds:.1f} s",
            flush=True,
        )


class Baseline(NamedTuple):
    """What a linear classifier reaches on the test part.

    Attributes:
        name: of the classifier.
        accuracy: share of the texts whose class is predicted.
        macro_f1: mean F1 of the classes.
        c: the inverse penalty that was chosen.
        seconds: for features, choice, fit and test, those of the features included.
    """

    name: str
    accuracy: float
    macro_f1: float
    c: float
    seconds: float


def baselines(data: Reviews) -> Iterator[Baseline]:
    """Yield what each linear classifier reaches, when it is known."""
    began = time.perf_counter()
    x, labels, x_test = features(data)
    seconds = time.perf_counter() - began
    for name, fit in (
        ("logistic regression", fit_logistic),
        ("with naive Bayes weights", fit_naive_bayes),
    ):
        began = time.perf_counter()
        best = choose(fit, x, labels, len(data.train.texts), len(data.classes))
        predicted = fit(x, labels, len(data.classes), best)(x_test)
        spent = seconds + time.perf_counter() - began
        accuracy = float((predicted == data.test.labels).mean())
        counts = np.zeros((len(data.classes),) * 2, int)
        np.add.at(counts, (data.test.labels, predicted), 1)
        macro_f1 = classification_report(counts, data.classes)["macro_f1"]
        yield Baseline(name, accuracy, macro_f1, best, spent)


def require_sklearn() -> None:
    """Check that scikit-learn is installed.

    Raises:
        ValueError: it is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            'scikit-learn is not installed: run `pip install ".[bench]"`'
        ) from error


def features(data: Reviews) -> tuple[csr_matrix, np.ndarray, csr_matrix]:
    """Words and word pairs of what is fitted to, [n, f], its labels, and of the test.

    The texts of training come first, then those of validation. What only the test part
    has is left out.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    make: Any = CountVectorizer  # its types are of its defaults alone
    count = make(analyzer=ngrams, binary=True, dtype=np.float32)
    x = count.fit_transform([*data.train.texts, *data.validation.texts])
    labels = np.concatenate([data.train.labels, data.validation.labels])
    return x, labels, count.transform(data.test.texts)


def ngrams(text: str) -> list[str]:
    """The words of a text and their pairs.

    >>> ngrams("Not so bad!")
    ['not', 'so', 'bad', 'not so', 'so bad']
    """
    words = word_tokens(text)
    return [*words, *map(" ".join, pairwise(words))]


Predict = Callable[[csr_matrix], np.ndarray]
Fit = Callable[[csr_matrix, np.ndarray, int, float], Predict]


def choose(
    fit: Fit, x: csr_matrix, labels: np.ndarray, number: int, num_classes: int
) -> float:
    """The C that, fitted to the first `number` texts, is the best for the others.

    The smallest of equally good ones.
    """

    def accuracy(c: float) -> float:
        predict = fit(x[:number], labels[:number], num_classes, c)
        return float((predict(x[number:]) == labels[number:]).mean())

    return max(INVERSE_PENALTIES, key=accuracy)


def fit_logistic(
    x: csr_matrix, labels: np.ndarray, num_classes: int, c: float
) -> Predict:
    """A function that predicts the classes of texts, by logistic regression."""
    from sklearn.linear_model import LogisticRegression

    # On IMDB it converges after some 100 iterations; 100 is scikit-learn's limit.
    model = LogisticRegression(C=c, max_iter=1_000).fit(x, labels)
    return cast(Predict, model.predict)


def fit_naive_bayes(
    x: csr_matrix, labels: np.ndarray, num_classes: int, c: float
) -> Predict:
    """A function that predicts the classes of texts, with naive Bayes weights."""
    from sklearn.linear_model import LogisticRegression

    weights, biases = [], []
    for target in [1] if num_classes == 2 else range(num_classes):
        ratio = log_count_ratio(x, labels == target)
        model: Any = LogisticRegression(C=c, max_iter=1_000)
        model.fit(x.multiply(ratio[None]).tocsr(), labels == target)
        weights.append(ratio * model.coef_[0])
        biases.append(model.intercept_[0])

    def predict(x: csr_matrix) -> np.ndarray:
        scores = x @ np.stack(weights, axis=1) + np.array(biases)
        if num_classes == 2:
            return (scores[:, 0] > 0).astype(int)
        return scores.argmax(axis=1)

    return predict


def log_count_ratio(x: csr_matrix, chosen: np.ndarray) -> np.ndarray:
    """The logarithm of how much more frequent features [f] are in the chosen texts.

    Equation 1, with the shares of the binary features of texts [n, f].

    >>> x = csr_matrix([[1, 1, 0], [1, 0, 0], [0, 0, 1.0]])
    >>> log_count_ratio(x, np.array([True, True, False])).round(3)  # 3 2 1 / 1 1 2
    array([ 0.693,  0.288, -1.099])
    """
    inside, outside = (
        np.asarray(x[some].sum(axis=0)).ravel() + SMOOTHING
        for some in (np.flatnonzero(chosen), np.flatnonzero(~chosen))
    )
    return np.log(inside / inside.sum()) - np.log(outside / outside.sum())
