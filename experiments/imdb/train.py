"""Text classification with a bidirectional LSTM: sentiment of IMDB reviews.

    python -m experiments.imdb
    python -m experiments.imdb --predict "A moving film." "A waste of time."
    python -m experiments.imdb --csv mine.csv --workdir runs/mine

Expect a test accuracy of 92.1% (mean of the seeds 0, 1 and 2; 91.95% to 92.19%) after
two minutes, on 2 cores of an AMD EPYC with AVX-512 and the C++ kernels compiled.

The first command trains, the second one uses the trained model, the third one trains on
your own texts with any labels. The same command started again in the same --workdir
continues where it was stopped.

    python -m experiments.imdb --preset best

trains language models on the texts first, in both directions, and fine-tunes them.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from experiments.harness import distributed, jax_setup
from experiments.harness.files import replace_file
from experiments.harness.lr_range_test import STEPS, range_test, report, rising_rate
from experiments.harness.options import is_temporary, scratch_if_smoke
from experiments.harness.plots import plot_bars, plot_confusion, plot_history
from experiments.harness.progress import progress_bar
from experiments.harness.training_loop import fit
from experiments.harness.workdir import WorkDir, fingerprint
from experiments.imdb import datasets, inference, pretraining
from experiments.imdb.batches import Batches, Examples
from experiments.imdb.calibration import expected_calibration_error, fit_temperature
from experiments.imdb.encoder import (
    DIRECTIONS,
    Encoder,
    encoder_settings,
    load_encoders,
)
from experiments.imdb.evaluation import (
    as_decisions,
    class_probabilities,
    classification_report,
    label_report,
    measure_label_sets,
    measure_logits,
)
from experiments.imdb.finetuning import Finetuning, Plan, plan_finetuning
from experiments.imdb.language_model import LanguageSettings
from experiments.imdb.linear import (
    EXPECTED_SCALES,
    EXPECTED_SCALES_PRETRAINED,
    LinearClassifier,
)
from experiments.imdb.model import (
    FEWEST_EPOCHS,
    Settings,
    balanced_weights,
    make_loss,
    make_model,
    make_optimizer,
    make_predictor,
    make_schedule,
    make_state,
)
from experiments.imdb.options import (
    Options,
    explicit_settings,
    load,
)
from experiments.imdb.options import (
    defaults as defaults,
)
from experiments.imdb.predictor import LINEAR
from experiments.imdb.vector_files import VectorFile, read_vectors
from experiments.imdb.word_vectors import word_vectors
from jaxrnn import placement, training
from jaxrnn.batching import bucket_lengths, epoch_rng
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import SequenceClassifier
from jaxrnn.text import Vocab, word_tokens

PLOTTED = 20  # labels in a picture


def main(options: Options) -> None:
    """Trains, or answers with a trained model, as the options say."""
    options.check()
    jax_setup.configure(options.devices, options.cluster.join)
    if options.uses_trained_model:
        answer(options)
    else:
        with scratch_if_smoke(options) as options:
            if options.lr_find:
                find_rate(options)
            else:
                train(options)


def answer(options: Options) -> None:
    """Predicts or explains with the trained model, or exports or serves it."""
    workdir = WorkDir(options.workdir)
    if workdir.settings is not None:
        workdir.require(explicit_settings(options))
    if options.predict:
        inference.predict(options.predict, options.workdir, options.devices)
    elif options.predict_csv:
        name = f"{options.predict_csv.stem}.predicted.csv"
        inference.predict_csv(
            options.predict_csv,
            options.text_column,
            options.workdir,
            options.devices,
            options.out or options.workdir / name,
        )
    elif options.explain:
        page = options.html or options.workdir / "explanation.html"
        inference.explain(options.explain, options.workdir, options.devices, page)
    elif options.export:
        inference.export(options.workdir, options.export)
    elif options.serve:
        # Its imports are for those who serve.
        from experiments.imdb.serve import serve

        serve(options.workdir, options.devices, options.port)


@dataclass(frozen=True)
class Run:
    """Data, settings, devices and work directory of a training run."""

    data: datasets.Reviews
    vocab: Vocab
    train: Examples
    validation: Examples
    test: Examples
    settings: Settings
    mesh: Mesh
    workdir: WorkDir
    vectors: VectorFile | None
    encoders: Sequence[Encoder] = ()
    finetuning: Finetuning | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The content of settings.json, which a run that is continued must match."""
        entries = {
            "dataset": self.data.name,
            "reviews": self.data.fingerprint,
            "classes": self.data.classes,
            "vocabulary": fingerprint(self.vocab),
            "vectors": self.vectors and self.vectors.fingerprint,
            **dataclasses.asdict(self.settings),
        }
        if self.finetuning:
            entries["encoders"] = [encoder.fingerprint for encoder in self.encoders]
            entries |= dataclasses.asdict(self.finetuning)
        return entries

    @property
    def scores(self) -> tuple[str, ...]:
        """The metrics of an evaluation; the last decides which epoch is the best."""
        if self.data.multi_label:
            return "loss", "subset_accuracy", "micro_f1"
        return "loss", "accuracy"

    def measure(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """The metrics of `scores`, and the confusion matrix, or that of each label."""
        if self.data.multi_label:
            return measure_label_sets(logits, labels)
        return measure_logits(logits, labels)

    def batches(
        self, examples: Examples, boundaries: tuple[int, ...] | None = None
    ) -> Batches:
        """Batches of the settings; `boundaries` as in `Batches`."""
        settings = self.settings
        buckets = cast(int, settings.buckets)  # resolved
        return Batches(examples, settings.batch, buckets, self.mesh, boundaries)


def train(options: Options) -> None:
    """Trains from the last checkpoint, if any, then tests the best one."""
    data = distributed.in_turn(lambda: load(options))
    began = time.perf_counter()
    workdir, mesh = WorkDir(options.workdir), placement.data_mesh(options.devices)
    run = prepare(data, options, workdir, mesh)
    with run.workdir.claimed(run.identity, options.typed):
        run.workdir.write_vocab(run.vocab)
        if not run.workdir.print_if_finished(summary):
            results = learn(run, began, options.tensorboard)
            run.workdir.finish(results)
            print(summary(results))
    if not is_temporary(run.workdir.path):
        print(run.workdir.describe_outputs("python -m experiments.imdb --predict -"))


def prepare(
    data: datasets.Reviews, options: Options, workdir: WorkDir, mesh: Mesh
) -> Run:
    """Resolves settings, builds the vocabulary, encodes the texts.

    It writes nothing but the language models, where they are to be trained; their
    vocabulary and sizes are then the classifier's.

    Raises:
        ValueError: --vectors or --encoder cannot be used.
    """
    fewest = options.finetuning.fewest_epochs if options.finetunes else FEWEST_EPOCHS
    settings = options.effective_settings.resolve(len(data.train.texts), fewest)
    encoders, tuning = (), None
    if options.finetunes:
        encoders = load_encoders(options.encoder or pretrain(options, data))
        warn_of_other_texts(encoders, data)
        settings, tuning = encoder_settings(settings, encoders), options.finetuning
    with Console(stderr=True).status("building the vocabulary"):
        tokenized = [word_tokens(text) for text in data.train.texts]
        if not any(tokenized):
            raise ValueError(f"{data.name}: no text to train on has words")
        if encoders:
            vocab = encoders[0].vocab
        else:
            vocab = Vocab.build(tokenized, max_size=settings.vocab)
        train = Examples.of_tokens(tokenized, data.train.labels, vocab)
    validation, test = (
        Examples.encode(split.texts, split.labels, vocab)
        for split in (data.validation, data.test)
    )
    vectors = None
    if options.vectors:
        with Console(stderr=True).status("reading word vectors"):
            vectors = read_vectors(options.vectors, vocab, seed=settings.seed)
        width = vectors.table.shape[1]
        if "embed" in options.typed and settings.embed != width:
            raise ValueError(
                f"--embed {settings.embed} does not fit {options.vectors}, whose "
                f"vectors have {width:,} numbers: leave --embed out"
            )
        settings = dataclasses.replace(settings, embed=width)
    parts = (train, validation, test)
    return Run(data, vocab, *parts, settings, mesh, workdir, vectors, encoders, tuning)


def pretrain(options: Options, data: datasets.Reviews) -> list[Path]:
    """Trains the language models of the work directory; returns where they are."""
    settings = LanguageSettings()
    if options.smoke:
        cell = options.effective_settings.cell
        settings = dataclasses.replace(pretraining.SMOKE, cell=cell)
    paths = []
    for direction in DIRECTIONS if options.settings.bidirectional else DIRECTIONS[:1]:
        paths.append(options.workdir / direction)
        wanted = dataclasses.replace(
            settings, direction=direction, seed=options.settings.seed
        )
        wanted.check()
        pretraining.pretrain(data, wanted, WorkDir(paths[-1]), options.devices)
    return paths


def warn_of_other_texts(encoders: Sequence[Encoder], data: datasets.Reviews) -> None:
    """Warn where a text to validate or test on may have been one to pre-train on."""
    texts = pretraining.text_fingerprint(pretraining.training_texts(data))
    for encoder in encoders:
        seen = encoder.trained_on
        if seen.dataset == data.name and seen.texts != texts:
            warnings.warn(
                f"{encoder.path} was trained on other texts of {data.name}: those to "
                "validate and test on may be among them, unless --seed, --test-csv and "
                "--unlabelled are the same",
                stacklevel=2,
            )


def find_rate(options: Options) -> None:
    """Does the learning-rate range test, with the run's data and settings."""
    data = distributed.in_turn(lambda: load(options))
    workdir, mesh = WorkDir(options.workdir), placement.data_mesh(options.devices)
    run = prepare(data, options, workdir, mesh)
    settings = run.settings
    model = make_model(settings, len(run.vocab), len(data.classes))
    batches = run.batches(run.train.cut(settings.max_words))
    optimizer = make_optimizer(settings, STEPS, rising_rate)
    state = make_state(model, optimizer, settings.seed, initial_vectors(run))
    found = range_test(
        placement.replicate(state, mesh),
        lambda epoch: batches.epoch(epoch_rng(settings.seed, epoch)),
        training.make_train_step(run_loss(run, model), optimizer, mesh),
    )
    report(found, data.name, workdir.path)


def learn(run: Run, began: float, tensorboard: bool) -> dict[str, Any]:
    """Trains, tests the best checkpoint, and returns the content of results.json."""
    settings, mesh = run.settings, run.mesh
    model = make_model(settings, len(run.vocab), len(run.data.classes))
    checkpoints = Checkpoints(run.workdir.checkpoints, mode="max")
    plan = make_plan(run, model, begun=bool(checkpoints.steps()))
    state = plan.state
    if jax.process_index() == 0:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        told = run.data.describe()
        if run.vectors:
            told += f"\n{run.vectors.describe()}"
        print(
            f"{told}\n{parameters:,} parameters, vocabulary of "
            f"{len(run.vocab):,} words; {mesh.size} {jax.default_backend()} devices",
            flush=True,
        )
    predict = make_predictor(model, mesh)
    # Of the same shapes, both compile once.
    lengths = [ids.size for part in (run.validation, run.test) for ids in part.ids]
    boundaries = bucket_lengths(lengths, cast(int, settings.buckets))
    validation_batches = run.batches(run.validation, boundaries)
    test_batches = run.batches(run.test, boundaries)

    def evaluate(state: training.TrainState) -> dict[str, float]:
        logits = predict(state.params, validation_batches)
        found = run.measure(logits, run.validation.labels)
        return {f"validation_{name}": found[name] for name in run.scores}

    state, done = fit(
        placement.replicate(state, mesh),
        epochs=cast(int, settings.epochs),  # resolved
        batches=lambda epoch: plan.batches(epoch_rng(settings.seed, epoch)),
        train_step=plan.train_step,
        evaluate=evaluate,
        rate=plan.rate,
        best=f"validation_{run.scores[-1]}",
        units="words",
        units_per_epoch=plan.words,
        workdir=run.workdir,
        checkpoints=checkpoints,
        began=began,
        patience=settings.patience,
        tensorboard=run.workdir.path / "tensorboard" if tensorboard else None,
        saved_every=plan.saved_every,
    )

    best, _ = checkpoints.restore(state, "best")
    validation = predict(best.params, validation_batches)
    with progress_bar("testing", len(test_batches.epoch())) as advance:
        test = predict(best.params, test_batches, advance)
    calibrate = add_linear if settings.linear == "on" else scale_by_temperature
    logits, unscaled, told = calibrate(run, validation, test)
    labels = run.test.labels
    found = run.measure(logits, labels)
    report_on = label_report if run.data.multi_label else classification_report
    report = report_on(found["confusion"], run.data.classes)
    errors = [
        calibration_error(logits, labels),
        calibration_error(unscaled, labels),
    ]
    if jax.process_index() == 0:
        plot_run(run, done.history, found["confusion"], report["classes"])
    chosen = done.history[int(best.step) // plan.steps_per_epoch - 1]
    return {
        **{f"test_{name}": found[name] for name in run.scores},
        "test_macro_f1": report["macro_f1"],
        "test_calibration_error": errors[0],
        "test_calibration_error_unscaled": errors[1],
        **told,
        "test_classes": report["classes"],
        "confusion": found["confusion"].tolist(),
        **done.results(chosen, run.data.name, best.params, mesh, settings, began),
    }


def make_plan(run: Run, model: SequenceClassifier, begun: bool) -> Plan:
    """How the run is trained; a run that has `begun` needs no word vectors."""
    settings = run.settings
    train = run.train.cut(settings.max_words)
    if run.finetuning:
        with Console(stderr=True).status("encoding the texts without labels"):
            words = map(word_tokens, run.data.unlabelled)
            unlabelled = [run.vocab.encode(tokens) for tokens in words]
        return plan_finetuning(
            model,
            settings,
            run.finetuning,
            run.encoders,
            train,
            unlabelled,
            run.mesh,
            class_weights(run),
        )
    batches = run.batches(train)
    steps_per_epoch = len(batches.epoch())
    steps = cast(int, settings.epochs) * steps_per_epoch
    optimizer = make_optimizer(settings, steps)
    vectors = None if begun else initial_vectors(run)
    return Plan(
        make_state(model, optimizer, settings.seed, vectors),
        training.make_train_step(run_loss(run, model), optimizer, run.mesh),
        batches.epoch,
        make_schedule(settings, steps),
        steps_per_epoch,
        batches.words,
    )


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error of what is decided by the logits."""
    logits, labels = as_decisions(logits, labels)
    return expected_calibration_error(class_probabilities(logits), labels)


def scale_by_temperature(
    run: Run, validation: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The test logits divided by a temperature, themselves, and entries of the results.

    The temperature is fitted on the logits of the validation part.
    """
    temperature = fit_temperature(*as_decisions(validation, run.validation.labels))
    return test / temperature, test, {"temperature": temperature}


def add_linear(
    run: Run, validation: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The test logits added to those of a linear classifier, which it fits and saves.

    Returned are the scaled sum, the sum with scales of 1, and entries of the results.
    The scales are fitted on the validation part, with a linear classifier that has not
    seen it, and a temperature beside them would be nothing more. The saved classifier
    is fitted on training and validation part.
    """
    num_classes, vocab_size = len(run.data.classes), len(run.vocab)
    with Console(stderr=True).status("fitting the linear classifier"):
        linear = LinearClassifier.fit(run.train, num_classes, vocab_size)
        expected = EXPECTED_SCALES_PRETRAINED if run.encoders else EXPECTED_SCALES
        scales = linear.fit_scales(validation, run.validation, expected).scales
        every = Examples(
            [*run.train.ids, *run.validation.ids],
            np.concatenate([run.train.labels, run.validation.labels]),
        )
        linear = LinearClassifier.fit(every, num_classes, vocab_size)
    unscaled = linear.add(test, run.test.ids)
    linear = dataclasses.replace(linear, scales=scales)
    if jax.process_index() == 0:
        replace_file(run.workdir.path / LINEAR, linear.save, "--workdir")
    labels, score = run.test.labels, run.scores[-1]
    alone = run.measure(linear.logits(run.test.ids), labels)
    return (
        linear.add(test, run.test.ids),
        unscaled,
        {
            "temperature": 1.0,
            "linear_scales": scales.tolist(),
            f"linear_test_{score}": alone[score],
            f"recurrent_test_{score}": run.measure(test, labels)[score],
        },
    )


def run_loss(run: Run, model: SequenceClassifier) -> Callable[..., training.Metrics]:
    """The loss of the model's training, with the class weights of the settings."""
    return make_loss(model, class_weights=class_weights(run))


def class_weights(run: Run) -> np.ndarray | None:
    """The weights of the classes in the loss; None for equal ones."""
    if run.settings.class_weights == "balanced":
        return balanced_weights(run.train.labels)
    return None


def initial_vectors(run: Run) -> np.ndarray | None:
    """The embedding to start from; None for a random one.

    Those of a file, or from all training texts, those without a label too.
    """
    if not run.settings.pretrain:
        return None
    if run.vectors:
        return run.vectors.table
    with Console(stderr=True).status("computing word vectors (up to half a minute)"):
        unlabelled = map(run.vocab.encode, map(word_tokens, run.data.unlabelled))
        return word_vectors(
            [*run.train.ids, *unlabelled], len(run.vocab), run.settings.embed
        )


def plot_run(
    run: Run,
    history: list[dict[str, float]],
    counts: np.ndarray,
    report: dict[str, dict[str, float]],
) -> None:
    """Writes curves.png and confusion.png.

    Where texts may have several labels, labels.png is in place of the latter: the
    scores of the `PLOTTED` most frequent ones.
    """
    path, title = run.workdir.path, run.data.name
    panels = {
        quantity.replace("_", " "): [
            name
            for name in (f"train_{quantity}", f"validation_{quantity}")
            if name in history[0]
        ]
        for quantity in run.scores
    }
    plot_history(path / "curves.png", title, history, panels)
    if not run.data.multi_label:
        plot_confusion(
            path / "confusion.png", f"{title}: test", counts, run.data.classes
        )
        return
    frequent = sorted(report, key=lambda name: -report[name]["support"])[:PLOTTED]
    bars = {
        name: {score: report[name][score] for score in ("precision", "recall", "f1")}
        for name in frequent
    }
    plot_bars(path / "labels.png", title, {"test": bars})


def summary(results: dict[str, Any]) -> str:
    """The results of a finished run, in a line."""
    macro_f1 = f", macro F1 {results['test_macro_f1']:.4f}"
    if "test_micro_f1" in results:
        score, spelling = "micro_f1", ".4f"
        found = (
            f"micro F1 {results['test_micro_f1']:.4f}{macro_f1}, subset accuracy "
            f"{results['test_subset_accuracy']:.2%}"
        )
    else:
        score, spelling = "accuracy", ".2%"
        found = f"accuracy {results['test_accuracy']:.2%}"
        found += macro_f1 if len(results["confusion"]) > 2 else ""
    trained = f"validation {results[f'validation_{score}']:{spelling}}"
    # What an epoch validates is the recurrent part alone.
    alone = results.get(f"recurrent_test_{score}")
    if alone is not None:
        trained = f"recurrent part alone: test {alone:{spelling}}, {trained}"
    return (
        f"{results['dataset']}: test {found}, calibration error "
        f"{results['test_calibration_error']:.2%} ({trained}, epoch "
        f"{results['best_epoch']}), {results['seconds']:.0f} s"
    )
