"""Sentiment of IMDB reviews with a bidirectional LSTM.

    python -m experiments.imdb

Expect a test accuracy of 90.3% (mean of the seeds 0, 1 and 2; 89.88% to 90.52%) after 4
minutes and 46 seconds, on 2 cores of an AMD EPYC with 178 GFLOP/s in float32.
Trained again in the same --workdir it continues; --predict asks the trained model,
--explain shows on a page why it decides so.
"""

import dataclasses
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from rich.console import Console

from experiments import cluster, judging, program, reviews, runtime, sentiment
from experiments.cluster import Cluster
from experiments.examples import Batches, Examples
from experiments.fit import fit, progress_bar
from experiments.imdb_reviews import load_imdb
from experiments.judging import LABELS
from experiments.plots import plot_confusion, plot_curves
from experiments.sentiment import SMOKE, Settings
from experiments.word_vectors import word_vectors
from experiments.workdir import WorkDir, fingerprint
from jaxrnn import placement, training
from jaxrnn.batching import bucket_boundaries, epoch_rng
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.text import Vocab, word_tokens

WORKDIR = Path("runs/imdb")


@dataclass(frozen=True)
class Options:
    """Everything the command line says."""

    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(
        default_factory=Settings
    )
    workdir: Path = WORKDIR
    """Directory of the run: the same command started again goes on there."""
    csv: Path | None = None
    """Your own reviews: a UTF-8 file with the columns text and label."""
    data_dir: Path = Path("~/tensorflow_datasets")
    """Where tensorflow-datasets keeps the prepared reviews."""
    download_dir: Path | None = None
    """Where the archive of the reviews is, or is downloaded to."""
    devices: int | None = None
    """Devices of each process, default all; a CPU counts as one device per core."""
    cluster: Annotated[Cluster, tyro.conf.arg(name="")] = field(default_factory=Cluster)
    predict: Annotated[tuple[str, ...] | None, program.several(str, "TEXT")] = None
    """Classify these texts with the trained model; - reads one per line from stdin."""
    explain: Annotated[tuple[str, ...] | None, program.several(str, "TEXT")] = None
    """Show on a page how each word of these texts moves the trained model; - as with
    --predict."""
    html: Path | None = None
    """With --explain: the page to write, default explanation.html."""
    tensorboard: bool = False
    """Write logs for TensorBoard into the work directory, too."""
    smoke: bool = False
    """Try everything in seconds, on generated reviews with a tiny model."""

    def check(self) -> None:
        """Whether they make sense together.

        Raises:
            ValueError: they do not; the option is named.
        """
        self.settings.check()
        for name in ("predict", "explain"):
            if getattr(self, name) == ():
                raise ValueError(f"--{name} needs at least one text, or -")
        if self.predict and self.explain:
            raise ValueError("give either --predict or --explain, not both")
        if self.html and not self.explain:
            raise ValueError("--html needs --explain")
        if self.smoke and self.csv:
            raise ValueError("give either --smoke or --csv, not both")

    @property
    def wanted(self) -> Settings:
        """The settings to train with."""
        if self.smoke:
            return dataclasses.replace(SMOKE, seed=self.settings.seed)
        return self.settings


def main(options: Options) -> None:
    options.check()
    runtime.configure(options.devices, options.cluster.join)
    if options.predict:
        judging.predict(options.predict, options.workdir, options.devices)
    elif options.explain:
        page = options.html or Path("explanation.html")
        judging.explain(options.explain, options.workdir, options.devices, page)
    elif options.smoke and options.workdir == WORKDIR:
        with tempfile.TemporaryDirectory() as scratch:
            train(dataclasses.replace(options, workdir=Path(scratch)))
    else:
        train(options)


@dataclass(frozen=True)
class Run:
    """What a training run is about."""

    data: reviews.Reviews
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
    data = cluster.in_turn(lambda: load(options))
    began = time.perf_counter()
    workdir, mesh = WorkDir(options.workdir), placement.data_mesh(options.devices)
    run = prepare(data, options.wanted, workdir, mesh)
    with run.workdir.claimed(run.identity):
        if run.workdir.tells(summary):
            return
        run.workdir.write_vocab(run.vocab)
        results = learn(run, began, options.tensorboard)
        run.workdir.finish(results)
    print(summary(results))


def prepare(
    data: reviews.Reviews, settings: Settings, workdir: WorkDir, mesh: Mesh
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
    model = sentiment.make_model(settings, len(run.vocab))
    train_batches = run.batches(run.train.cut(settings.max_words))
    steps_per_epoch = len(train_batches.epoch())
    steps = settings.epochs * steps_per_epoch
    optimizer = sentiment.make_optimizer(settings, steps)
    checkpoints = Checkpoints(run.workdir.checkpoints, mode="max")
    vectors = None
    if settings.pretrain and not checkpoints.steps():
        vectors = learn_vectors(run)
    state = sentiment.make_state(model, optimizer, settings.seed, vectors)
    eval_step = training.make_eval_step(sentiment.make_metrics(model), mesh)
    # Of the same shapes, both compile once.
    lengths = [ids.size for part in (run.validation, run.test) for ids in part.ids]
    boundaries = bucket_boundaries(lengths, settings.buckets)
    validation_batches = run.batches(run.validation, boundaries)
    test_batches = run.batches(run.test, boundaries)

    def evaluate(state: training.TrainState) -> dict[str, float]:
        found = sentiment.evaluate(eval_step, state.params, validation_batches)
        return {f"validation_{name}": found[name] for name in ("loss", "accuracy")}

    state, done = fit(
        placement.replicate(state, mesh),
        epochs=settings.epochs,
        batches=lambda epoch: train_batches.epoch(epoch_rng(settings.seed, epoch)),
        train_step=training.make_train_step(
            sentiment.make_loss(model), optimizer, mesh
        ),
        evaluate=evaluate,
        rate=sentiment.make_schedule(settings, steps),
        best="validation_accuracy",
        units="words",
        units_per_epoch=train_batches.words,
        workdir=run.workdir,
        checkpoints=checkpoints,
        began=began,
        tensorboard=run.workdir.path / "tensorboard" if tensorboard else None,
    )

    best, _ = checkpoints.restore(state, "best")
    with progress_bar("testing", len(test_batches.epoch())) as advance:
        found = sentiment.evaluate(eval_step, best.params, test_batches, advance)
    shares = np.array([[found[f"confusion_{t}{p}"] for p in (0, 1)] for t in (0, 1)])
    counts = (len(run.test.labels) * shares).round().astype(int)
    if jax.process_index() == 0:
        plot_run(run.workdir.path, run.data.name, done.history, counts)
    chosen = done.history[int(best.step) // steps_per_epoch - 1]
    return {
        "dataset": run.data.name,
        "test_accuracy": found["accuracy"],
        "test_loss": found["loss"],
        "confusion": counts.tolist(),
        "validation_accuracy": chosen["validation_accuracy"],
        "best_epoch": chosen["epoch"],
        "seconds": done.spent + time.perf_counter() - began,
        "words_per_second": done.history[-1]["words_per_second"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(best.params)),
        "devices": mesh.size,
        **dataclasses.asdict(settings),
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


def load(options: Options) -> reviews.Reviews:
    """The reviews that the options ask for."""
    if options.smoke:
        return reviews.generate(seed=options.settings.seed)
    if options.csv:
        return reviews.read_csv(options.csv, seed=options.settings.seed)
    return load_imdb(options.data_dir, options.download_dir)


def plot_run(
    path: Path, title: str, history: list[dict[str, float]], counts: np.ndarray
) -> None:
    """Writes curves.png and confusion.png."""
    panels = {
        quantity: {
            part: [(line["epoch"], line[f"{part}_{quantity}"]) for line in history]
            for part in ("train", "validation")
        }
        for quantity in ("loss", "accuracy")
    }
    plot_curves(path / "curves.png", title, "epoch", panels)
    plot_confusion(path / "confusion.png", f"{title}: test", counts, LABELS)


def summary(results: dict[str, Any]) -> str:
    """What a finished run found, in a line."""
    return (
        f"{results['dataset']}: test accuracy {results['test_accuracy']:.2%} "
        f"(validation {results['validation_accuracy']:.2%}, epoch "
        f"{results['best_epoch']}), {results['seconds']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(program.run(main, Options, "imdb", __doc__))
