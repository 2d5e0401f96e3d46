"""A linear classifier on word n-grams, to be added to the recurrent one's logits.

The features of a text are its words and word pairs, each 1 where it occurs, scaled by
the log-count ratio of a class against the others (naive Bayes); their weights are those
of logistic regression. Wang and Manning (2012), "Baselines and Bigrams: Simple, Good
Sentiment and Topic Classification", equations 2 and 3, with logistic regression in
place of the SVM; several classes are one against the rest, and so are the labels of
texts that may have several. A sum of logits of a linear
and a deep model is Wide & Deep (Cheng et al., 2016, "Wide & Deep Learning for
Recommender Systems", equation 3), except that here each is trained alone, and the
weights of the sum are fitted on the validation part.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from experiments.imdb.batches import Examples
from experiments.imdb.evaluation import as_decisions, cross_entropies

SMOOTHING = 1.0  # added to the counts of the naive Bayes ratio
PENALTY = 1.0  # of the squared weights, relative to the total loss
# The weights of the sum are pulled to these, which matters where the validation part
# has some 50 texts: the recurrent classifier of few texts is overconfident.
EXPECTED_SCALES = (0.3, 1.0)
# A pre-trained one is the better of the two: of 100 to 22,500 texts.
EXPECTED_SCALES_PRETRAINED = (0.5, 0.2)
SCALE_PENALTY = 10.0  # of the squared distance from them


@dataclass(frozen=True)
class LinearClassifier:
    """Weights of n-grams, and how their logits are added to those of another model.

    k is 1 for two classes, whose logit is that of the second, else their number, or
    that of the labels where a text may have several.

    Attributes:
        keys: the n-grams, sorted, int64 [f]: a word's id, or (1 + id) * base + id of a
            pair.
        weights: float32 [f, k].
        bias: float32 [k].
        base: vocabulary size.
        scales: float32 [2]: of the other model's logits and of these in the sum.
    """

    keys: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    base: np.ndarray
    scales: np.ndarray

    @classmethod
    def fit(
        cls, examples: Examples, num_classes: int, vocab_size: int
    ) -> "LinearClassifier":
        """Logistic regression on the examples; the scales are 1.

        Raises:
            ValueError: no example has words.

        >>> ids = [np.array(text) for text in ([2, 3], [3, 2], [2, 4], [4, 3])] * 5
        >>> examples = Examples(ids, np.array([0, 1, 0, 1] * 5))
        >>> model = LinearClassifier.fit(examples, num_classes=2, vocab_size=5)
        >>> (model.logits(ids)[:4, 0] > 0).tolist()
        [False, True, False, True]
        """
        rows, grams = _ngrams(examples.ids, vocab_size)
        keys = np.unique(grams)
        if not keys.size:
            raise ValueError("no text to train on has words")
        x = _indicators(rows, grams, keys, len(examples.ids))
        labels = examples.labels
        if labels.ndim == 2:
            columns = [column == 1 for column in labels.T]
        else:
            targets = [1] if num_classes == 2 else range(num_classes)
            columns = [labels == target for target in targets]
        fitted = [_regression(x, column) for column in columns]
        weights = np.stack([weights for weights, _ in fitted], axis=1)
        return cls(
            keys,
            weights.astype(np.float32),
            np.array([bias for _, bias in fitted], np.float32),
            np.array(vocab_size),
            np.ones(2, np.float32),
        )

    def logits(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """The logits of texts given as word ids, float32 [n, k]."""
        x = _indicators(*_ngrams(ids, int(self.base)), self.keys, len(ids))
        return (x @ self.weights + self.bias).astype(np.float32)

    def contributions(self, ids: np.ndarray) -> np.ndarray:
        """What each word adds to the logits of one text, float64 [t, k].

        Each n-gram counts once, shared equally by its words wherever it occurs. With
        the bias they add up to the logits.
        """
        base = int(self.base)
        words = ids.astype(np.int64)
        grams = [words, (words[:-1] + 1) * base + words[1:]]
        found = np.zeros((ids.size, self.bias.size))
        for size, keys in enumerate(grams, start=1):
            known, places, counts = np.unique(
                keys, return_inverse=True, return_counts=True
            )
            shares = (self._weights(known) / (size * counts[:, None]))[places]
            for offset in range(size):
                found[offset : offset + keys.size] += shares
        return found

    def _weights(self, keys: np.ndarray) -> np.ndarray:
        """The weights of n-grams, zeros where they are unknown."""
        places, known = _find(keys, self.keys)
        return np.where(known[:, None], self.weights[places], 0.0)

    def add(self, logits: np.ndarray, ids: Sequence[np.ndarray]) -> np.ndarray:
        """The scaled sum of another model's logits [n, k] and these."""
        return self.scales[0] * logits + self.scales[1] * self.logits(ids)

    def fit_scales(
        self,
        logits: np.ndarray,
        examples: Examples,
        expected: tuple[float, float] = EXPECTED_SCALES,
    ) -> "LinearClassifier":
        """The same weights, with scales that minimise the cross-entropy of the sum.

        `logits` are the other model's of the examples, which neither was trained on.
        With few examples the scales stay close to those `expected`.
        """
        own = self.logits(examples.ids)
        both = [as_decisions(some, examples.labels) for some in (logits, own)]
        parts = np.stack([some for some, _ in both]).astype(np.float64)
        labels = both[0][1]

        def objective(scales: np.ndarray) -> float:
            nats = cross_entropies(np.tensordot(scales, parts, 1), labels)
            distance = ((scales - np.array(expected)) ** 2).sum()
            return nats.sum() + SCALE_PENALTY * distance

        bounds = [(0.0, None)] * 2
        found = minimize(objective, np.ones(2), method="L-BFGS-B", bounds=bounds)
        return dataclasses.replace(self, scales=found.x.astype(np.float32))

    def save(self, path: Path) -> None:
        """Writes the file that `load` reads."""
        path.write_bytes(save(vars(self)))

    @classmethod
    def load(cls, path: Path, num_logits: int, vocab_size: int) -> "LinearClassifier":
        """The classifier in a file, of so many logits and words.

        Raises:
            ValueError: the file is damaged or missing, or of another model.
        """
        try:
            found = cls(**load_file(path))
            shapes = found.weights.shape, found.bias.shape, int(found.base)
            if shapes != ((found.keys.size, num_logits), (num_logits,), vocab_size):
                raise ValueError("it is of another model")
        except (TypeError, ValueError, OSError, SafetensorError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): remove results.json beside it, and the "
                "command that trained the model makes both again"
            ) from error
        return found


def _ngrams(ids: Sequence[np.ndarray], base: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct words and word pairs of each text: row and key of each."""
    lengths = [text.size for text in ids]
    words = np.concatenate([*ids, np.zeros(0, np.int64)]).astype(np.int64)
    rows = np.repeat(np.arange(len(ids)), lengths)
    inside = rows[1:] == rows[:-1]
    pairs = ((words[:-1] + 1) * base + words[1:])[inside]
    rows = np.concatenate([rows, rows[1:][inside]])
    keys = np.concatenate([words, pairs])
    order = np.lexsort((keys, rows))
    rows, keys = rows[order], keys[order]
    new = np.ones(rows.size, bool)
    new[1:] = (rows[1:] != rows[:-1]) | (keys[1:] != keys[:-1])
    return rows[new], keys[new]


def _find(keys: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of keys among the known ones, and whether they are there."""
    places = np.minimum(np.searchsorted(known, keys), known.size - 1)
    return places, known[places] == keys


def _indicators(
    rows: np.ndarray, grams: np.ndarray, keys: np.ndarray, number: int
) -> csr_matrix:
    """The features of `number` texts: 1 where an n-gram occurs, float32 [n, f]."""
    places, known = _find(grams, keys)
    rows, places = rows[known], places[known]
    ones = np.ones(rows.size, np.float32)
    return csr_matrix((ones, (rows, places)), shape=(number, keys.size))


def _regression(x: csr_matrix, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias of the features for the logit of `y`, bool [n]."""
    inside = np.asarray(x[y].sum(axis=0)).ravel() + SMOOTHING
    outside = np.asarray(x[~y].sum(axis=0)).ravel() + SMOOTHING
    ratio = np.log(inside / inside.sum()) - np.log(outside / outside.sum())
    sign = np.where(y, 1.0, -1.0)

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ (ratio * w[:-1]) + w[-1])
        pull = -sign / (1 + np.exp(np.minimum(margin, 50)))
        value = np.logaddexp(0, -margin).sum() + PENALTY / 2 * (w[:-1] @ w[:-1])
        gradient = ratio * (x.T @ pull) + PENALTY * w[:-1]
        return value, np.append(gradient, pull.sum())

    start = np.zeros(ratio.size + 1)
    found = minimize(objective, start, jac=True, method="L-BFGS-B")
    return ratio * found.x[:-1], float(found.x[-1])
