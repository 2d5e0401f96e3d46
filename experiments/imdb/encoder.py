"""Pre-trained encoders: read from work directories, and put into a classifier.

A classifier has one embedding and one recurrent layer that reads in both directions;
the language models of the two directions have one each. Their embeddings stand side by
side, and the weights of each direction for the other's embedding start from zero, so
that the layer computes what both language models do.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.workdir import WorkDir
from experiments.imdb.language_model import (
    LanguageSettings,
    make_language_model,
    make_optimizer,
    make_state,
)
from experiments.imdb.model import Settings
from jaxrnn.adversarial import normalize_embeddings
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.text import Vocab

DIRECTIONS = ("forward", "backward")
# Settings that both directions must have in common, and a classifier takes over.
SHARED = ("cell", "embed", "hidden", "layers", "dtype")


@dataclass(frozen=True)
class TrainedOn:
    """What the settings of a run say of its texts."""

    dataset: str
    texts: str
    """The beginning of a hash of those that it was trained on."""


@dataclass(frozen=True)
class Encoder:
    """A language model that was trained in one direction."""

    path: Path
    settings: LanguageSettings
    vocab: Vocab
    embedding: np.ndarray
    """A row for each word."""
    layers: dict[str, dict[str, np.ndarray]]
    """The weights of the recurrent layers, by the names l0, l1, ..."""
    trained_on: TrainedOn

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """The language model of the run in `path`, from its best checkpoint.

        Raises:
            ValueError: there is none, or a file of the run is damaged.
        """
        workdir = WorkDir(path)
        settings, vocab = workdir.settings_as(LanguageSettings), workdir.vocab
        settings.check()
        workdir.tell_unfinished("starting")
        model = make_language_model(settings, len(vocab))
        optimizer = make_optimizer(settings, steps=1)
        template = jax.eval_shape(lambda: make_state(model, optimizer, settings))
        state, _ = Checkpoints(workdir.checkpoints).restore(template, "best")
        params = jax.device_get(state.train.params["params"])
        return cls(
            path,
            settings,
            vocab,
            params["embed"]["embedding"],
            params["encoder"],
            workdir.settings_as(TrainedOn),
        )

    @property
    def fingerprint(self) -> str:
        """The direction and the beginning of a hash of the weights."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((self.embedding, self.layers)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return f"{self.settings.direction} {digest.hexdigest()[:12]}"


def load_encoders(paths: Sequence[Path]) -> list[Encoder]:
    """The encoders in these directories, forward first.

    A directory is that of a run of `experiments.imdb.pretraining`, or has such
    directories by the names of the directions, as `--preset best` makes them.

    Raises:
        ValueError: there is none for the forward direction, there are two of one
            direction, or they do not fit together.
    """
    found: dict[str, Encoder] = {}
    for path in paths:
        for run in _runs(path):
            encoder = Encoder.load(run)
            direction = encoder.settings.direction
            if direction in found:
                raise ValueError(
                    f"{found[direction].path} and {run} both read {direction}: give "
                    "one --encoder of each direction"
                )
            found[direction] = encoder
    encoders = [found[name] for name in DIRECTIONS if name in found]
    if "forward" not in found:
        raise ValueError(f"{encoders[0].path} reads backward: give a forward one, too")
    for encoder in encoders[1:]:
        _require_alike(encoders[0], encoder)
    return encoders


def _runs(path: Path) -> list[Path]:
    if "direction" in (WorkDir(path).settings or {}):
        return [path]
    runs = [path / name for name in DIRECTIONS if WorkDir(path / name).settings]
    if not runs:
        raise ValueError(
            f"there is no pre-trained encoder in {path}: make one with "
            f"`python -m experiments.imdb.pretraining --workdir {path}`"
        )
    return runs


def _require_alike(one: Encoder, other: Encoder) -> None:
    different = [
        f"{name} {getattr(one.settings, name)} and {getattr(other.settings, name)}"
        for name in SHARED
        if getattr(one.settings, name) != getattr(other.settings, name)
    ]
    if one.vocab != other.vocab:
        different.append("vocabularies")
    if different:
        raise ValueError(
            f"the encoders in {one.path} and {other.path} do not fit together: they "
            f"have different {', '.join(different)}"
        )


def encoder_settings(settings: Settings, encoders: Sequence[Encoder]) -> Settings:
    """The settings of a classifier with those that the encoders decide."""
    shared = {name: getattr(encoders[0].settings, name) for name in SHARED}
    shared["embed"] *= len(encoders)
    both, pooling = len(encoders) > 1, settings.pooling
    if not both:  # At the first step a forward layer has read one word.
        pooling = tuple(how for how in pooling if how != "first") or ("last",)
    return replace(
        settings,
        **shared,
        vocab=encoders[0].settings.vocab,
        bidirectional=both,
        pooling=pooling,
    )


def initial_params(
    params: Any, encoders: Sequence[Encoder], frequencies: np.ndarray
) -> Any:
    """The parameters of a classifier with those of the encoders in their places.

    Each feature of the embedding gets mean 0 and variance 1 over the words of the
    training texts, so that a perturbation of a given norm means the same for any
    encoder; the weights behind it make up for that, and nothing changes otherwise.

    Args:
        params: of the classifier, initialized.
        encoders: as `load_encoders` returns them.
        frequencies: of the words in the training texts.
    """
    frequencies = np.maximum(frequencies, 1)
    tables, layers = [], {}
    for k, encoder in enumerate(encoders):
        raw = np.float64(encoder.embedding)
        table = normalize_embeddings(jnp.asarray(encoder.embedding), frequencies)
        mean = np.average(raw, axis=0, weights=frequencies)
        scale = np.sqrt(np.average((raw - mean) ** 2, axis=0, weights=frequencies))
        tables.append(np.asarray(table))
        suffix = "_reverse" if encoder.settings.direction == "backward" else ""
        for name, weights in encoder.layers.items():
            weights = dict(weights)
            if name == "l0":
                w_x = np.float64(weights["w_x"])
                weights["w_x"] = (scale[:, None] * w_x).astype(np.float32)
                weights["b"] = (weights["b"] + mean @ w_x).astype(np.float32)
            weights["w_x"] = _beside_zeros(weights["w_x"], k, len(encoders))
            layers[name + suffix] = weights
    expected = jax.tree.map(np.shape, params["encoder"])
    if jax.tree.map(np.shape, layers) != expected:
        raise ValueError(
            f"the encoders have weights {jax.tree.map(np.shape, layers)}, but the "
            f"classifier {expected}"
        )
    embedding = np.concatenate(tables, axis=1)
    return {**params, "embed": {"embedding": embedding}, "encoder": layers}


def _beside_zeros(w_x: np.ndarray, place: int, places: int) -> np.ndarray:
    """The weights for the inputs of one direction, among those of all.

    >>> _beside_zeros(np.ones((1, 2)), 1, 2).tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    rows = len(w_x)
    return np.pad(w_x, ((place * rows, (places - 1 - place) * rows), (0, 0)))


def depth(path: str, layers: int) -> int:
    """How far a parameter is below the output: 0 for the output itself.

    >>> [depth(x, 2) for x in ("output/bias", "encoder/l1/b", "encoder/l0_reverse/b")]
    [0, 1, 2]
    >>> depth("embed/embedding", 2)
    3
    """
    if "embed/" in path:
        return layers + 1
    found = re.search(r"encoder/l(\d+)", path)
    return layers - int(found[1]) if found else 0
