"""How each word of a review moved the decision of a sentiment model.

Integrated Gradients (Sundararajan, Taly and Yan, 2017, "Axiomatic Attribution for Deep
Networks", equation 1): the gradient of the logit by the vector of a word, averaged on
the straight way there from a baseline, times the difference. The baseline is as many
words with vectors of zeros: what word dropout makes of a word in training. Together the
words move the logit by all that it differs from the baseline's (proposition 1), but for
the residual of the finite sum that the average is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.imdb.batches import Examples
from experiments.imdb.predictor import Reader
from jaxrnn.models import SequenceClassifier
from jaxrnn.text import UNK, word_spans

TEMPLATE = Path(__file__).parent / "templates" / "attribution"
LONGEST_REVIEW, LONGEST_TEXT, MOST_REVIEWS = 1_000, 20_000, 20  # words, characters
CHUNK = 32  # points of the way at which gradients are taken at once
MOST = 1024  # points
TOLERANCE = 0.01  # of the residual: a logit is shown with two decimals
LENGTHS = 64  # reviews are padded to a multiple, so that few shapes are compiled


@dataclass(frozen=True)
class Explanation:
    """By how much each word moved the logit, and the logits at both ends of the way."""

    words: np.ndarray  # [t]
    baseline: float
    logit: float
    points: int

    @property
    def residual(self) -> float:
        """What the words fail to explain."""
        return self.logit - self.baseline - float(self.words.sum())


def describe(reader: Reader, reviews: Sequence[str]) -> list[dict[str, Any]]:
    """What the page shows of each review, as JSON has it.

    Raises:
        ValueError: there are too many for a page, or one is empty or too long.
    """
    if len(reviews) > MOST_REVIEWS:
        raise ValueError(
            f"{len(reviews):,} reviews are too many for a page: at most {MOST_REVIEWS}"
        )
    for number, review in enumerate(reviews, start=1):
        if len(review) > LONGEST_TEXT:
            raise ValueError(
                f"review {number} has {len(review):,} characters, a page takes at most "
                f"{LONGEST_TEXT:,}: {review.strip()[:40]!r}"
            )
    ids = reader.encode(reviews, LONGEST_REVIEW).ids
    explanations = explain(reader.model, reader.variables, ids)
    readings = running(reader, ids)
    [unknown] = reader.vocab.encode([UNK])
    return [
        {
            **_cut(review.strip()),
            "unknown": (words == unknown).tolist(),
            "words": explanation.words.round(6).tolist(),
            "baseline": explanation.baseline,
            "logit": explanation.logit,
            "residual": explanation.residual,
            "points": explanation.points,
            "probability": float(forward[-1]),
            "forward": forward.round(6).tolist(),
            "backward": backward.round(6).tolist(),
        }
        for review, words, explanation, (forward, backward) in zip(
            reviews, ids, explanations, readings, strict=True
        )
    ]


def _cut(review: str) -> dict[str, Any]:
    """Every word with what stands before it, and the rest."""
    pieces, end = [], 0
    for start, stop in word_spans(review):
        pieces.append([review[end:start], review[start:stop]])
        end = stop
    return {"pieces": pieces, "rest": review[end:]}


def explain(
    model: SequenceClassifier, variables: Any, reviews: Sequence[np.ndarray]
) -> list[Explanation]:
    """The explanation of the logit of each review, given as word ids [t].

    The points on the way are doubled until the residual is within `TOLERANCE`, or there
    are `MOST` of them.
    """
    on_the_way = _make_gradients(model, variables)
    embedding = np.asarray(variables["params"]["embed"]["embedding"])

    def one(ids: np.ndarray) -> Explanation:
        vectors = np.pad(embedding[ids], [(0, -ids.size % LENGTHS), (0, 0)])

        def at(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits, gradient = on_the_way(np.float32(shares), vectors, ids.size)
            return np.asarray(logits, float), np.asarray(gradient, float)

        (baseline, *_, logit), _ = at(np.linspace(0, 1, CHUNK))
        points = CHUNK
        while True:
            middles = (np.arange(points) + 0.5) / points
            gradient = sum(at(part)[1] for part in middles.reshape(-1, CHUNK)) / points
            words = (gradient * vectors).sum(axis=-1)[: ids.size]
            found = Explanation(words, float(baseline), float(logit), points)
            if abs(found.residual) <= TOLERANCE or points >= MOST:
                return found
            points *= 2

    return [one(ids) for ids in reviews]


def _make_gradients(model: SequenceClassifier, variables: Any) -> Callable:
    """A compiled function of shares of the way [n], vectors [t d] and a length: the
    logits there, and the sum over the shares of the gradients by the vectors [t d]."""

    @jax.jit
    def on_the_way(shares: jax.Array, vectors: jax.Array, length: jax.Array):
        shape = (*shares.shape, *vectors.shape)
        points, time, features = shape
        # A model whose vocabulary are the words of the reviews at all points, in their
        # order: the gradient by its embedding is that by the words.
        spelled = model.clone(vocab_size=points * time)
        tokens = jnp.arange(points * time).reshape(points, time)

        def total(embedding: jax.Array):
            params = variables["params"] | {"embed": {"embedding": embedding}}
            lengths = jnp.full(points, length)
            logits: Any = spelled.apply({"params": params}, tokens, lengths=lengths)
            return logits.sum(), logits.squeeze(-1)

        embedding = shares[:, None, None] * vectors[None]
        gradient, logits = jax.grad(total, has_aux=True)(
            embedding.reshape(-1, features)
        )
        return logits, gradient.reshape(shape).sum(axis=0)

    return on_the_way


def running(
    reader: Reader, reviews: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the model makes of each review as it is read in both directions: for every
    word of it the probability of being positive up to there, and from there on.

    Each is the whole model's, of a review that ends, or begins, with the word.
    """
    cuts = [
        cut
        for ids in reviews
        for cut in (
            *(ids[: k + 1] for k in range(ids.size)),
            *(ids[k:] for k in range(ids.size)),
        )
    ]
    found = reader.probabilities(Examples(cuts, np.zeros(len(cuts), np.float32)))
    ends = np.cumsum([ids.size for ids in reviews for _ in range(2)])
    parts = np.split(found, ends[:-1])
    return list(zip(parts[::2], parts[1::2], strict=True))
