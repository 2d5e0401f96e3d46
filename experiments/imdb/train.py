"""Sentiment of IMDB reviews with a bidirectional LSTM.

    python -m experiments.imdb

Expect a test accuracy of 90.0% (mean of the seeds 0, 1 and 2; 89.76% to 90.20%) after 2
minutes and 46 seconds, on 2 cores of an AMD EPYC with 178 GFLOP/s in float32.
Trained again in the same --workdir it continues; --predict asks the trained model,
--explain shows on a page why it decides so.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from experiments.harness import distributed, jax_setup
from experiments.harness.options import scratch_if_smoke
from experiments.harness.plots import plot_confusion, plot_history
from experiments.harness.progress import progress_bar
from experiments.harness.training_loop import fit
from experiments.harness.workdir import WorkDir, fingerprint
from experiments.imdb import datasets, inference
from experiments.imdb.batches import Batches, Examples
from experiments.imdb.inference import LABELS
from experiments.imdb.model import (
    Settings,
    evaluate_classifier,
    make_loss,
    make_metrics,
    make_model,
    make_optimizer,
    make_schedule,
    make_state,
)
from experiments.imdb.options import Options, explicit_settings, load
from experiments.imdb.word_vectors import word_vectors
from jaxrnn import placement, training
from jaxrnn.batching import bucket_lengths, epoch_rng
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.text import Vocab, word_tokens


def main(options: Options) -> None:
    options.check()
    jax_setup.configure(options.devices, options.cluster.join)
    if options.asks:
        answer(options)
    else:
        with scratch_if_smoke(options) as options:
            train(options)


def answer(options: Options) -> None:
    """Judges, or explains, with the trained model."""
    workdir = WorkDir(options.workdir)
    if workdir.settings is not None:
        workdir.require(explicit_settings(options))
    if options.predict:
        inference.predict(options.predict, options.workdir, options.devices)
    elif options.explain:
        page = options.html or Path("explanation.html")
        inference.explain(options.explain, options.workdir, options.devices, page)


@dataclass(frozen=True)
class Run:
    """What a training run is about."""

    data: datasets.Reviews
    vocab: Vocab
    train: Examples
    validation: Examples
    test: Examples
    settings: Settings
    mesh: Mesh
    workdir: WorkDir

    @property
    def identity(self) -> dict[str, Any]:
        """What its work directory must be of."""
        return {
            "dataset": self.data.name,
            "reviews": self.data.fingerprint,
            "vocabulary": fingerprint(self.vocab),
            **dataclasses.asdict(self.settings),
        }

    def batches(
        self, examples: Examples, boundaries: tuple[int, ...] | None = None
    ) -> Batches:
        settings = self.settings
        return Batches(
            examples, settings.batch, settings.buckets, self.mesh, boundaries
        )


def train(options: Options) -> None:
    """Trains from the last checkpoint to the end, then tests the best."""
    data = distributed.in_turn(lambda: load(options))
    began = time.perf_counter()
    workdir, mesh = WorkDir(options.workdir), placement.data_mesh(options.devices)
    run = prepare(data, options.effective_settings, workdir, mesh)
    with run.workdir.claimed(run.identity):
        if run.workdir.print_if_finished(summary):
            return
        run.workdir.write_vocab(run.vocab)
        results = learn(run, began, options.tensorboard)
        run.workdir.finish(results)
    print(summary(results))


def prepare(
    data: datasets.Reviews, settings: Settings, workdir: WorkDir, mesh: Mesh
) -> Run:
    """A run on these reviews, about which nothing is written yet."""
    with Console(stderr=True).status("learning the words"):
        tokenized = [word_tokens(text) for text in data.train.texts]
        vocab = Vocab.build(tokenized, max_size=settings.vocab)
        train_ids = [vocab.encode(tokens) for tokens in tokenized]
    validation, test = (
        Examples.encode(split.texts, split.labels, vocab)
        for split in (data.validation, data.test)
    )
    train = Examples(train_ids, data.train.labels)
    return Run(data, vocab, train, validation, test, settings, mesh, workdir)


def learn(run: Run, began: float, tensorboard: bool) -> dict[str, Any]:
    """Trains to the end, and tests the best: what results.json says."""
    settings, mesh = run.settings, run.mesh
    model = make_model(settings, len(run.vocab))
    train_batches = run.batches(run.train.cut(settings.max_words))
    steps_per_epoch = len(train_batches.epoch())
    steps = settings.epochs * steps_per_epoch
    optimizer = make_optimizer(settings, steps)
    checkpoints = Checkpoints(run.workdir.checkpoints, mode="max")
    vectors = None
    if settings.pretrain and not checkpoints.steps():
        vectors = learn_vectors(run)
    state = make_state(model, optimizer, settings.seed, vectors)
    eval_step = training.make_eval_step(make_metrics(model), mesh)
    # Of the same shapes, both compile once.
    lengths = [ids.size for part in (run.validation, run.test) for ids in part.ids]
    boundaries = bucket_lengths(lengths, settings.buckets)
    validation_batches = run.batches(run.validation, boundaries)
    test_batches = run.batches(run.test, boundaries)

    def evaluate(state: training.TrainState) -> dict[str, float]:
        found = evaluate_classifier(eval_step, state.params, validation_batches)
        return {f"validation_{name}": found[name] for name in ("loss", "accuracy")}

    state, done = fit(
        placement.replicate(state, mesh),
        epochs=settings.epochs,
        batches=lambda epoch: train_batches.epoch(epoch_rng(settings.seed, epoch)),
        train_step=training.make_train_step(make_loss(model), optimizer, mesh),
        evaluate=evaluate,
        rate=make_schedule(settings, steps),
        best="validation_accuracy",
        units="words",
        units_per_epoch=train_batches.words,
        workdir=run.workdir,
        checkpoints=checkpoints,
        began=began,
        patience=settings.patience,
        tensorboard=run.workdir.path / "tensorboard" if tensorboard else None,
    )

    best, _ = checkpoints.restore(state, "best")
    with progress_bar("testing", len(test_batches.epoch())) as advance:
        found = evaluate_classifier(eval_step, best.params, test_batches, advance)
    shares = np.array([[found[f"confusion_{t}{p}"] for p in (0, 1)] for t in (0, 1)])
    counts = (len(run.test.labels) * shares).round().astype(int)
    if jax.process_index() == 0:
        plot_run(run.workdir.path, run.data.name, done.history, counts)
    chosen = done.history[int(best.step) // steps_per_epoch - 1]
    return {
        "test_accuracy": found["accuracy"],
        "test_loss": found["loss"],
        "confusion": counts.tolist(),
        **done.results(chosen, run.data.name, best.params, mesh, settings, began),
    }


def learn_vectors(run: Run) -> np.ndarray:
    """Word vectors of all reviews, those without a label too."""
    with Console(stderr=True).status(
        "learning word vectors from all reviews (half a minute)"
    ):
        unlabelled = map(run.vocab.encode, map(word_tokens, run.data.unlabelled))
        return word_vectors(
            [*run.train.ids, *unlabelled], len(run.vocab), run.settings.embed
        )


def plot_run(
    path: Path, title: str, history: list[dict[str, float]], counts: np.ndarray
) -> None:
    """Writes curves.png and confusion.png."""
    panels = {
        quantity: [f"{part}_{quantity}" for part in ("train", "validation")]
        for quantity in ("loss", "accuracy")
    }
    plot_history(path / "curves.png", title, history, panels)
    plot_confusion(path / "confusion.png", f"{title}: test", counts, LABELS)


def summary(results: dict[str, Any]) -> str:
    """What a finished run found, in a line."""
    return (
        f"{results['dataset']}: test accuracy {results['test_accuracy']:.2%} "
        f"(validation {results['validation_accuracy']:.2%}, epoch "
        f"{results['best_epoch']}), {results['seconds']:.0f} s"
    )
