"""A trained sentiment model at work: judging reviews.

Knows reviews and the model; printing and command lines are others' business.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.harness.workdir import WorkDir
from experiments.imdb.batches import Batches, Examples
from experiments.imdb.model import (
    Settings,
    make_model,
    make_optimizer,
    make_state,
    predict_probabilities,
)
from jaxrnn import placement
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import SequenceClassifier
from jaxrnn.text import Vocab

LONGEST_REVIEW = 100_000  # words; IMDB's longest has 2,470


class Reader:
    """A model with its weights and the words it knows."""

    def __init__(
        self,
        model: SequenceClassifier,
        variables: Any,
        vocab: Vocab,
        settings: Settings,
        mesh: Mesh,
    ):
        self.model, self.variables, self.vocab = model, variables, vocab
        self._settings, self._mesh = settings, mesh

    @classmethod
    def load(cls, path: str | Path, devices: int | None = None) -> "Reader":
        """The model of the run in `path` as its best checkpoint has it.

        Raises:
            ValueError: there is none, or a file of the run is damaged.
        """
        workdir = WorkDir(path)
        workdir.require_trained("imdb")
        settings, vocab = workdir.settings_as(Settings), workdir.vocab
        model = make_model(settings, len(vocab))
        optimizer = make_optimizer(settings, steps=1)
        template = jax.eval_shape(lambda: make_state(model, optimizer, seed=0))
        checkpoints = Checkpoints(workdir.checkpoints, mode="max")
        state, _ = checkpoints.restore(template, "best")
        return cls(model, state.params, vocab, settings, placement.data_mesh(devices))

    def encode(self, reviews: Sequence[str], longest: int = LONGEST_REVIEW) -> Examples:
        """The reviews as examples without labels.

        Raises:
            TypeError: they are one text, not several.
            ValueError: one has no words, or more than `longest`.
        """
        if isinstance(reviews, str):
            raise TypeError(f"reviews must be a list of texts, got {reviews!r:.40}")
        labels = np.zeros(len(reviews), np.float32)
        examples = Examples.encode(reviews, labels, self.vocab)
        for number, ids in enumerate(examples.ids, start=1):
            if not 1 <= ids.size <= longest:
                raise ValueError(
                    f"review {number} has {ids.size:,} words, not 1 to "
                    f"{longest:,}: {reviews[number - 1].strip()[:40]!r}"
                )
        return examples

    def probabilities(self, examples: Examples) -> np.ndarray:
        """The probability that each example is positive."""
        batches = Batches(
            examples, self._settings.batch, self._settings.buckets, self._mesh
        )
        return predict_probabilities(self.model, self.variables, batches, self._mesh)
