"""Pre-training: a language model on the texts that a classifier will start from.

    python -m experiments.imdb.pretraining --workdir runs/forward
    python -m experiments.imdb.pretraining --workdir runs/backward --direction backward

A language model reads the training texts, with a label or without, in one direction and
predicts the next word; validation and test texts are left out. `experiments.imdb
--encoder DIR` classifies with what it has learned. The same command started again in
the same --workdir continues where it was stopped.
"""

import sys

if __name__ == "__main__":  # before the imports, which take seconds
    from experiments.harness.launch import launch

    sys.exit(launch("imdb", "pretraining"))

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from experiments.harness import distributed, jax_setup
from experiments.harness.options import CommonOptions, is_temporary, scratch_if_smoke
from experiments.harness.plots import plot_history
from experiments.harness.progress import describe_run
from experiments.harness.training_loop import fit
from experiments.harness.workdir import WorkDir, fingerprint
from experiments.imdb import datasets
from experiments.imdb.datasets import Reviews
from experiments.imdb.language_model import (
    LanguageSettings,
    make_language_model,
    make_loss,
    make_metrics,
    make_optimizer,
    make_sampler,
    make_schedule,
    make_state,
)
from experiments.imdb.streams import TextStreams, packed_chunks
from jaxrnn import metrics, placement, training
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import LanguageModel
from jaxrnn.text import Vocab, word_tokens
from jaxrnn.training import StatefulTrainState

HELD_OUT = 100  # every so many texts one is held out, to measure the perplexity
SAVED_EVERY = 200  # steps, of about half a second each
# Rows and words of a batch in evaluation, which has the logits of the whole vocabulary.
ROWS, TIME = 32, 32
SMOKE = LanguageSettings(
    embed=8, hidden=8, epochs=3, batch=4, seq_len=8, vocab=100, candidates=16
)


@dataclass(frozen=True)
class Options(CommonOptions):
    """The options of the command line."""

    workdir: Path = Path("runs/imdb-encoder")
    smoke: bool = False
    """Try everything in seconds: a tiny model on generated data.
    Of the settings only --cell, --seed and --direction are yours."""
    settings: LanguageSettings = field(default_factory=LanguageSettings)

    @property
    def effective_settings(self) -> LanguageSettings:
        """The settings to train with."""
        if not self.smoke:
            return self.settings
        smoke = self.smoke_settings(SMOKE, self.settings)
        return dataclasses.replace(smoke, direction=self.settings.direction)


def main(options: Options) -> None:
    """Trains a language model on IMDB's texts."""
    if options.lr_find:
        raise ValueError("--lr-find is for classifiers: leave it out")
    options.settings.check()
    jax_setup.configure(options.devices, options.cluster.join)
    with scratch_if_smoke(options) as options:
        settings = options.effective_settings
        data = distributed.in_turn(lambda: _load(options))
        workdir = WorkDir(options.workdir)
        pretrain(
            data,
            settings,
            workdir,
            options.devices,
            typed=options.typed,
            tensorboard=options.tensorboard,
        )
        if not is_temporary(workdir.path):
            print(f"next: python -m experiments.imdb --encoder {workdir.path}")


def _load(options: Options) -> Reviews:
    if options.smoke:
        return datasets.generate(seed=options.settings.seed)
    return datasets.load_imdb(options.data_dir, options.download_dir)


@dataclass(frozen=True)
class Run:
    """Texts, settings, devices and work directory of a language model's training."""

    name: str
    vocab: Vocab
    train: list[np.ndarray]
    held_out: list[np.ndarray]
    settings: LanguageSettings
    mesh: Mesh
    workdir: WorkDir
    identity: dict[str, Any]
    """What settings.json has: all that the results depend on."""


def pretrain(
    data: Reviews,
    settings: LanguageSettings,
    workdir: WorkDir,
    devices: int | None = None,
    *,
    typed: Sequence[str] = (),
    tensorboard: bool = False,
) -> None:
    """Trains from the last checkpoint, if any, to the end, and prints the results."""
    began = time.perf_counter()
    run = prepare(data, settings, workdir, devices)
    with workdir.claimed(run.identity, typed):
        workdir.write_vocab(run.vocab)
        if not workdir.print_if_finished(summary):
            results = learn(run, began, tensorboard)
            workdir.finish(results)
            print(summary(results), flush=True)


def prepare(
    data: Reviews,
    settings: LanguageSettings,
    workdir: WorkDir,
    devices: int | None = None,
) -> Run:
    """Builds the vocabulary and encodes the texts; writes nothing.

    The batch is smaller than in the settings where there are few words.
    """
    texts = training_texts(data)
    with Console(stderr=True).status("building the vocabulary (a minute for IMDB)"):
        tokenized = [word_tokens(text) for text in texts]
        vocab = Vocab.build(tokenized, max_size=settings.vocab)
        ids = [vocab.encode(tokens) for tokens in tokenized if tokens]
    settings = settings.fit_to(sum(text.size for text in ids))
    if settings.direction == "backward":
        ids = [text[::-1] for text in ids]
    identity = {
        "dataset": data.name,
        "texts": text_fingerprint(texts),
        "vocabulary": fingerprint(vocab),
        **dataclasses.asdict(settings),
    }
    held_out = ids[::HELD_OUT]
    train = [text for k, text in enumerate(ids) if k % HELD_OUT]
    mesh = placement.data_mesh(devices, batch_size=settings.batch)
    return Run(data.name, vocab, train, held_out, settings, mesh, workdir, identity)


def training_texts(data: Reviews) -> list[str]:
    """The texts with and without labels that are in no other part of the data.

    >>> data = datasets.generate(100)
    >>> len(training_texts(data)) <= len(data.train.texts)
    True
    """
    others = {*data.validation.texts, *data.test.texts}
    return [t for t in [*data.train.texts, *data.unlabelled] if t not in others]


def text_fingerprint(texts: Sequence[str]) -> str:
    """Their number and the beginning of a hash of them."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return f"{len(texts)} texts, {digest[:12]}"


def learn(run: Run, began: float, tensorboard: bool) -> dict[str, Any]:
    """Trains, and returns the content of results.json."""
    settings, mesh = run.settings, run.mesh
    own = placement.local_batch_slice(settings.batch, mesh)
    streams = TextStreams(
        run.train, settings.batch, settings.seq_len, settings.seed, own
    )
    steps = settings.epochs * len(streams.epoch(0))
    model = make_language_model(settings, len(run.vocab))
    optimizer = make_optimizer(settings, steps)
    sampler = make_sampler(settings, run.train, len(run.vocab))
    step = training.make_stateful_train_step(
        make_loss(model, settings, sampler), optimizer, mesh
    )
    perplexity = Perplexity(model, run.held_out, mesh)
    state = make_state(model, optimizer, settings)
    state = StatefulTrainState(
        placement.replicate(state.train, mesh),
        placement.shard_leading_axis(
            jax.tree.map(lambda leaf: leaf[own], state.carry), mesh, "carry"
        ),
    )
    if jax.process_index() == 0:
        sizes = {
            "train": sum(text.size for text in run.train),
            "validate": sum(text.size for text in run.held_out),
        }
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.train.params))
        print(describe_run(run.name, sizes, "words", parameters, mesh), flush=True)

    def train_step(state: StatefulTrainState, batch: training.Batch):
        train, carry, measured = step(state.train, state.carry, batch)
        return StatefulTrainState(train, carry), measured

    state, done = fit(
        state,
        epochs=settings.epochs,
        batches=streams.epoch,
        train_step=train_step,
        evaluate=lambda state: perplexity(state.train.params),
        rate=make_schedule(settings, steps),
        best="validation_nats",
        units="words",
        units_per_epoch=streams.words,
        workdir=run.workdir,
        checkpoints=Checkpoints(run.workdir.checkpoints),
        began=began,
        patience=settings.patience,
        tensorboard=run.workdir.path / "tensorboard" if tensorboard else None,
        saved_every=SAVED_EVERY,
    )
    if jax.process_index() == 0:
        panels = {"nats per word": ["train_loss", "validation_nats"]}
        title = f"{run.name}: {settings.direction} language model"
        plot_history(run.workdir.path / "curves.png", title, done.history, panels)
    best = done.best_epoch("validation_nats", "min")
    params = state.train.params
    return done.results(best, run.name, params, mesh, settings, began)


class Perplexity:
    """The exact perplexity of a language model on texts, each from a fresh state."""

    def __init__(self, model: LanguageModel, texts: Sequence[np.ndarray], mesh: Mesh):
        """Prepare to evaluate on the texts by their ids; compiles nothing."""
        self._chunks = packed_chunks(texts, ROWS, TIME, mesh.size)
        rows = len(self._chunks[0]["inputs"])
        self._own = placement.local_batch_slice(rows, mesh)
        self._zeros = model.initial_state((self._own.stop - self._own.start,))
        self._step = training.make_stateful_eval_step(make_metrics(model), mesh)

    def __call__(self, params: Any) -> dict[str, float]:
        """Return nats and perplexity per word, the end of a text counting as one."""
        state, measured = self._zeros, []
        for chunk in self._chunks:
            own = {name: array[self._own] for name, array in chunk.items()}
            state, found = self._step(params, state, own)
            measured.append(jax.device_get(found))
        nats = metrics.merge(measured)["nats"].value
        return {
            "validation_nats": float(nats),
            "validation_perplexity": float(metrics.perplexity(nats)),
        }


def summary(results: dict[str, Any]) -> str:
    """The results of a finished run, in a line."""
    return (
        f"{results['dataset']}: {results['direction']} language model, perplexity "
        f"{results['validation_perplexity']:.1f} on held-out training texts (epoch "
        f"{results['best_epoch']}), {results['seconds']:.0f} s"
    )
