"""Inference with a trained classifier: texts in, class probabilities out."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.harness.progress import progress_bar
from experiments.harness.workdir import WorkDir
from experiments.imdb.batches import Batches, Examples
from experiments.imdb.combined import combine
from experiments.imdb.datasets import SENTIMENT
from experiments.imdb.evaluation import class_probabilities, label_probabilities
from experiments.imdb.linear import LinearClassifier
from experiments.imdb.model import (
    Settings,
    divide_logits,
    make_model,
    make_optimizer,
    make_predictor,
    make_state,
)
from jaxrnn import placement, serving
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import SequenceClassifier
from jaxrnn.text import PAD, UNK, Vocab

LINEAR = "linear.safetensors"  # in the work directory
LONGEST_TEXT = 100_000  # words; IMDB's longest review has 2,470


@dataclass(frozen=True)
class Classes:
    """What the settings of a run say of its classes."""

    classes: tuple[str, ...]


class Reader:
    """A classifier with its weights, vocabulary and classes.

    Attributes:
        model: the network.
        variables: its variables.
        vocab: the words that it knows.
        linear: the linear classifier whose logits are added to the model's, or None.
        classes: the names of the classes, in the order of the probabilities.
        separator: of the labels of a text, which may have several; None where each
            has one.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        variables: Any,
        vocab: Vocab,
        settings: Settings,
        mesh: Mesh,
        classes: Sequence[str] = SENTIMENT,
        linear: LinearClassifier | None = None,
    ):
        """Prepares inference on the devices of `mesh`; see `load` for a run's model."""
        self.model, self.variables, self.vocab = model, variables, vocab
        self.classes, self.linear = tuple(classes), linear
        self.separator = settings.multi_label
        self._settings, self._mesh = settings, mesh

    @classmethod
    def load(cls, path: str | Path, devices: int | None = None) -> "Reader":
        """The model of the run in `path`, from its best checkpoint.

        The temperature of a finished run divides the weights of the output layer, so
        that all that is made of the logits is calibrated.

        Raises:
            ValueError: there is none, or a file of the run is damaged.
        """
        workdir = WorkDir(path)
        workdir.require_trained("imdb")
        settings, vocab = workdir.settings_as(Settings), workdir.vocab
        settings.check()
        classes = workdir.settings_as(Classes).classes
        model = make_model(settings, len(vocab), len(classes))
        optimizer = make_optimizer(settings, steps=1)
        template = jax.eval_shape(lambda: make_state(model, optimizer, seed=0))
        checkpoints = Checkpoints(workdir.checkpoints, mode="max")
        state, _ = checkpoints.restore(template, "best")
        mesh = placement.data_mesh(devices)
        # A run that is not finished has no linear part yet.
        linear = None
        if settings.linear == "on" and workdir.results is not None:
            linear = LinearClassifier.load(
                workdir.path / LINEAR, model.num_classes or 1, len(vocab)
            )
        variables = divide_logits(state.params, _temperature(workdir))
        return cls(model, variables, vocab, settings, mesh, classes, linear)

    def encode(self, texts: Sequence[str]) -> Examples:
        """The texts as examples without labels.

        Raises:
            TypeError: they are one text, not several.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of texts, got {texts!r:.40}")
        return Examples.encode(texts, np.zeros(len(texts), np.int32), self.vocab)

    def probabilities(
        self, examples: Examples, *, progress: bool = False
    ) -> np.ndarray:
        """The probability of each class for each example, float64 [n, c].

        Where texts may have several labels, they do not sum to 1. They are NaN for
        those without words, and for those with more than `LONGEST_TEXT`. With
        `progress` it is shown on standard error.
        """
        sizes = np.array([ids.size for ids in examples.ids], int)
        usable = np.flatnonzero((sizes > 0) & (sizes <= LONGEST_TEXT))
        found = np.full((sizes.size, len(self.classes)), np.nan)
        if usable.size:
            ids = [examples.ids[k] for k in usable]
            batches = Batches(
                Examples(ids, examples.labels[usable]),
                self._settings.batch,
                cast(int, self._settings.buckets),  # resolved in a run's settings
                self._mesh,
            )
            predict = make_predictor(self.model, self._mesh)
            number = len(batches.epoch())
            silent = nullcontext(lambda done: None)
            with progress_bar("predicting", number) if progress else silent as advance:
                logits = predict(self.variables, batches, advance)
            found[usable] = self.from_logits(logits, ids)
        return found

    def from_logits(self, logits: np.ndarray, ids: Sequence[np.ndarray]) -> np.ndarray:
        """The probabilities of texts from their ids and the network's logits [n, k].

        float64 [n, c]; the linear classifier's logits are added here.
        """
        if self.linear is not None:
            logits = self.linear.add(logits, ids)
        if self.multi_label:
            return label_probabilities(logits)
        return class_probabilities(logits)

    @property
    def multi_label(self) -> bool:
        """Whether texts may have several labels."""
        return self.separator is not None

    def labels(self, probabilities: np.ndarray) -> list[str]:
        """The labels of a text with these probabilities [c].

        One; where it may have several those with more than 0.5, and there may be none.
        """
        if not self.multi_label:
            return [self.classes[int(probabilities.argmax())]]
        return [self.classes[k] for k in np.flatnonzero(probabilities > 0.5)]

    def target(self, predicted: int) -> int:
        """The class whose log-odds explain that this one is predicted.

        Of two classes the second, else the predicted one.
        """
        return 1 if self._has_one_logit else predicted

    def against(self, target: int) -> str:
        """The name of what the log-odds of a class are against."""
        if self._has_one_logit:
            return self.classes[1 - target]
        return f"not {self.classes[target]}"

    @property
    def _has_one_logit(self) -> bool:
        return len(self.classes) == 2 and not self.multi_label

    def export(self, path: str | Path) -> None:
        """Writes the classifier into a new directory, from which JAX alone runs it.

        Raises:
            OSError: there is something at `path`, or it cannot be written.
        """
        model, variables = self.model, self.variables
        if self.linear is not None:
            model, variables = combine(model, variables, self.linear)
        serving.export(
            model,
            variables,
            path,
            vocabulary=self.vocab.tokens,
            labels=self.classes,
            multi_label=self.multi_label,
            tokenizer={
                "kind": "words",
                "lower": True,
                "normalization": "NFC",
                "padding": PAD,
                "unknown": UNK,
            },
        )


def _temperature(workdir: WorkDir) -> float:
    """That of the results; 1 where a run is not finished.

    Raises:
        ValueError: it is no temperature.
    """
    found = (workdir.results or {}).get("temperature", 1.0)
    if not isinstance(found, float) or not 0 < found < math.inf:
        raise ValueError(
            f"{workdir.path}/results.json is damaged (temperature {found!r:.40}): "
            "remove it"
        )
    return found
