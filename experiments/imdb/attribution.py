"""Word attributions for one text: what each word adds to the score of a class.

Integrated Gradients (Sundararajan, Taly and Yan, 2017, "Axiomatic Attribution for Deep
Networks", equation 1): the gradient of the score by the vector of a word, averaged on
the straight path from a baseline, times the difference. The baseline is as many words
with vectors of zeros: what word dropout makes of a word in training. The attributions
add up to the difference between score and baseline score (completeness, proposition 1),
up to the error of the Riemann sum that the average is.

The score of two classes is the logit, the log-odds of the second class; of more it is
the log-odds of the predicted class against all others. Where texts may have several
labels it is the logit of the most probable one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.imdb.batches import Examples
from experiments.imdb.linear import LinearClassifier
from experiments.imdb.predictor import Reader
from jaxrnn.models import SequenceClassifier
from jaxrnn.text import UNK, word_spans

TEMPLATE = Path(__file__).parent / "templates" / "attribution"
LONGEST_TEXT, LONGEST_CHARACTERS, MOST_TEXTS = 1_000, 20_000, 20  # words, characters
CHUNK = 32  # steps of the Riemann sum whose gradients are computed at once
MOST_STEPS = 1024
TOLERANCE = 0.01  # of the residual: a score is shown with two decimals
LENGTHS = 64  # texts are padded to a multiple, so that few shapes are compiled


@dataclass(frozen=True)
class Explanation:
    """The attribution of each word, and the scores of baseline and text."""

    attributions: np.ndarray  # [t]
    baseline: float
    score: float
    steps: int

    @property
    def residual(self) -> float:
        """The part of the difference of scores that is in no attribution."""
        return self.score - self.baseline - float(self.attributions.sum())


def describe(reader: Reader, texts: Mapping[int, str]) -> list[dict[str, Any]]:
    """What the page shows of each text, as JSON has it; `texts` are by their numbers.

    Raises:
        ValueError: there are too many for a page, or one is too long.
    """
    if len(texts) > MOST_TEXTS:
        raise ValueError(
            f"{len(texts):,} texts are too many for a page: at most {MOST_TEXTS}"
        )
    ids = reader.encode(list(texts.values())).ids
    for (number, text), words in zip(texts.items(), ids, strict=True):
        for size, most, unit in (
            (len(text), LONGEST_CHARACTERS, "characters"),
            (words.size, LONGEST_TEXT, "words"),
        ):
            if size > most:
                raise ValueError(
                    f"text {number} has {size:,} {unit}, a page takes at most "
                    f"{most:,}: {text.strip()[:40]!r}"
                )
    probabilities = reader.probabilities(Examples(ids, np.zeros(len(ids), np.int32)))
    predicted = probabilities.argmax(axis=1)
    targets = [reader.target(k) for k in predicted]
    explanations = explain(
        reader.model,
        reader.variables,
        ids,
        targets,
        reader.linear,
        multi_label=reader.multi_label,
    )
    paths = running(reader, ids, targets)
    [unknown] = reader.vocab.encode([UNK])
    rows = zip(texts.items(), ids, predicted, targets, explanations, paths, strict=True)
    return [
        {
            **cut(text.strip()),
            "number": number,
            "label": reader.classes[label],
            "probability": float(probabilities[k, label]),
            "target": reader.classes[target],
            "against": reader.against(target),
            "score": f"log-odds of {reader.classes[target]!r}",
            "unknown": (words == unknown).tolist(),
            "attributions": explanation.attributions.round(6).tolist(),
            "baseline": explanation.baseline,
            "logit": explanation.score,
            "residual": explanation.residual,
            "steps": explanation.steps,
            "forward": forward.round(6).tolist(),
            "backward": backward.round(6).tolist(),
        }
        for k, (
            (number, text),
            words,
            label,
            target,
            explanation,
            (forward, backward),
        ) in enumerate(rows)
    ]


def cut(review: str) -> dict[str, Any]:
    """Every word with the characters before it, and those after the last word."""
    pieces, end = [], 0
    for start, stop in word_spans(review):
        pieces.append([review[end:start], review[start:stop]])
        end = stop
    return {"pieces": pieces, "rest": review[end:]}


def explain(
    model: SequenceClassifier,
    variables: Any,
    texts: Sequence[np.ndarray],
    targets: Sequence[int] | np.ndarray | None = None,
    linear: LinearClassifier | None = None,
    *,
    multi_label: bool = False,
) -> list[Explanation]:
    """The explanation of the score of each text, given as word ids [t].

    With more than two classes, or several labels of a text, `targets` has the class of
    each text whose score is explained, by default class 1.
    """
    one = make_explainer(model, variables, linear, multi_label=multi_label)
    if targets is None:
        targets = np.ones(len(texts), int)
    return [one(ids, target) for ids, target in zip(texts, targets, strict=True)]


def make_explainer(
    model: SequenceClassifier,
    variables: Any,
    linear: LinearClassifier | None = None,
    *,
    multi_label: bool = False,
) -> Callable[[np.ndarray, int], Explanation]:
    """A function that explains one text [t], by its target; it keeps what it compiles.

    The contributions of words to the logits of `linear`, which are added to the
    model's, grow in proportion on the path. The steps are doubled until the residual
    is within `TOLERANCE`, or there are `MOST_STEPS` of them.
    """
    scale = 1.0 if linear is None else float(linear.scales[0])
    gradients = _make_gradients(model, variables, scale, multi_label)
    outputs = model.num_classes or 1
    embedding = np.asarray(variables["params"]["embed"]["embedding"])

    def one(ids: np.ndarray, target: int) -> Explanation:
        vectors = np.pad(embedding[ids], [(0, -ids.size % LENGTHS), (0, 0)])
        added, bias = np.zeros((ids.size, outputs)), np.zeros(outputs)
        if linear is not None:
            added = linear.scales[1] * linear.contributions(ids)
            bias = linear.scales[1] * linear.bias

        def at(alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """The scores at positions on the path, and the sum of word gradients."""
            others = bias + alphas[:, None] * added.sum(axis=0)
            scores, gradient, by_logits = gradients(
                np.float32(alphas),
                vectors,
                np.float32(others),
                ids.size,
                np.int32(target),
            )
            products = (np.asarray(gradient, float) * vectors).sum(axis=-1)[: ids.size]
            products += added @ np.asarray(by_logits, float)
            return np.asarray(scores, float), products

        (baseline, *_, score), _ = at(np.linspace(0, 1, CHUNK))
        steps = CHUNK
        while True:
            middles = (np.arange(steps) + 0.5) / steps
            parts = [at(part)[1] for part in middles.reshape(-1, CHUNK)]
            attributions = np.sum(parts, axis=0) / steps
            found = Explanation(attributions, float(baseline), float(score), steps)
            if abs(found.residual) <= TOLERANCE or steps >= MOST_STEPS:
                return found
            steps *= 2

    return one


def _make_gradients(
    model: SequenceClassifier, variables: Any, scale: float, multi_label: bool
) -> Callable:
    """A compiled function of positions on the path, vectors, logits, length and class.

    Of the positions alpha [n], from 0 at the baseline to 1, vectors [t d], and logits
    [n k] to be added to the model's, which are scaled, it returns the scores there [n],
    and the sums over alpha of the gradients by the vectors [t d] and by the logits [k].
    """

    @jax.jit
    def on_the_path(
        alphas: jax.Array,
        vectors: jax.Array,
        others: jax.Array,
        length: jax.Array,
        target: jax.Array,
    ):
        shape = (*alphas.shape, *vectors.shape)
        steps, time, features = shape
        # A model whose vocabulary is the words of the texts at all positions, in their
        # order: the gradient by its embedding is the gradient by the words' vectors.
        spelled = model.clone(vocab_size=steps * time)
        tokens = jnp.arange(steps * time).reshape(steps, time)

        def total(embedding: jax.Array, others: jax.Array):
            params = variables["params"] | {"embed": {"embedding": embedding}}
            lengths = jnp.full(steps, length)
            logits: Any = spelled.apply({"params": params}, tokens, lengths=lengths)
            logits = scale * logits.reshape(steps, -1) + others
            if multi_label:
                scores = jnp.take(logits, target, axis=-1)
            else:
                scores = _scores(logits, target)
            return scores.sum(), scores

        embedding = alphas[:, None, None] * vectors[None]
        (by_vectors, by_logits), scores = jax.grad(total, (0, 1), has_aux=True)(
            embedding.reshape(-1, features), others
        )
        return scores, by_vectors.reshape(shape).sum(axis=0), by_logits.sum(axis=0)

    return on_the_path


def _scores(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The logits [n 1] of two classes; of more [n c] the log-odds of the target."""
    if logits.shape[-1] == 1:
        return logits[:, 0]
    others = jnp.where(jnp.arange(logits.shape[-1])[None] == target, -jnp.inf, logits)
    return jnp.take(logits, target, axis=-1) - jax.nn.logsumexp(others, axis=-1)


def running(
    reader: Reader,
    texts: Sequence[np.ndarray],
    targets: Sequence[int] | np.ndarray | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The probability of a class for all beginnings and all endings of each text.

    For every word the probability of the target, by default class 1, given the text up
    to it, and given the text from it on: the whole model's of that part.
    """
    cuts = [
        cut
        for ids in texts
        for cut in (
            *(ids[: k + 1] for k in range(ids.size)),
            *(ids[k:] for k in range(ids.size)),
        )
    ]
    found = reader.probabilities(Examples(cuts, np.zeros(len(cuts), np.int32)))
    if targets is None:
        targets = np.ones(len(texts), int)
    sizes = [ids.size for ids in texts for _ in range(2)]
    parts = np.split(found, np.cumsum(sizes)[:-1])
    return [
        (forward[:, target], backward[:, target])
        for forward, backward, target in zip(
            parts[::2], parts[1::2], targets, strict=True
        )
    ]
