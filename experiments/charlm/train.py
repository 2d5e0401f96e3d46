"""Language model of characters, bytes or words: trains on a text, then writes like it.

    python -m experiments.charlm
    python -m experiments.charlm --sample

Expected: 1.531 nats per character on the last tenth of tiny shakespeare, in
non-overlapping windows of 256 characters, state reset at each. That is the mean of
seeds 0, 1 and 2, from 1.524 to 1.538, after 40 seconds on 2 cores of an AMD EPYC.
With --preset best 1.381 (seed 0), or 1.360 with the state carried through the text,
after an hour on one core.

The same command started again continues the run. With the trained model --sample
generates text, --score prints the cross-entropy of a file, --neurons shows the
activations of the hidden units, --export writes files that JAX alone can run and
--serve opens a page to write with.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.charlm import dtype, inference
from experiments.charlm.awd import Regularization
from experiments.charlm.batches import Streams
from experiments.charlm.config import Settings, open_workdir
from experiments.charlm.datasets import Text
from experiments.charlm.dynamic import Rule, mean_nats, root_mean_squares
from experiments.charlm.evaluation import Evaluation
from experiments.charlm.generator import Writer
from experiments.charlm.model import (
    make_model,
    make_optimizer,
    make_schedule,
    make_state,
    make_train_step,
    shard_state,
)
from experiments.charlm.nt_asgd import (
    evaluated_params,
    is_averaging,
    is_triggered,
    start,
)
from experiments.charlm.options import (
    Options,
    continues,
    explicit_settings,
    load,
    load_training_part,
)
from experiments.charlm.options import (
    defaults as defaults,
)
from experiments.charlm.units import WORDS, Units, count_tokens, units_of
from experiments.harness import distributed, jax_setup
from experiments.harness.lr_range_test import STEPS, range_test, report, rising_rate
from experiments.harness.options import is_temporary, scratch_if_smoke
from experiments.harness.plots import plot_history
from experiments.harness.progress import describe_run
from experiments.harness.training_loop import TrainProgress, fit
from experiments.harness.workdir import ClaimError, WorkDir, fingerprint
from jaxrnn import metrics, placement
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import LanguageModel
from jaxrnn.text import UNK, Vocab
from jaxrnn.training import StatefulTrainState


def main(options: Options) -> None:
    """Do what the options ask for."""
    options.check()
    jax_setup.configure(options.devices, options.cluster.join)
    with scratch_if_smoke(options) as options:
        if options.uses_trained_model:
            use(options)
        elif options.sample:
            sample(options)
        elif options.lr_find:
            find_rate(options)
        else:
            train(options)


def use(options: Options) -> None:
    """Analyse files with the trained model, or export or serve it."""
    workdir = open_workdir(options.workdir)
    if workdir.settings is not None:
        workdir.require(explicit_settings(options))
    if options.export is not None:
        inference.export(options.workdir, options.export)
    elif options.serve:
        # Its imports are for those who serve.
        from experiments.charlm.serve import serve

        serve(options.workdir, options.port)
    else:
        skip, dynamic = options.unknown == "skip", None
        if options.dynamic.dynamic_evaluation:
            workdir.require_trained("charlm")
            rule = options.dynamic.rule(units_of(workdir))
            dynamic = rule, load_training_part(options, workdir)
        inference.analyse(options.workdir, options.analysis, skip=skip, dynamic=dynamic)


@dataclass(frozen=True)
class Run:
    """A training run: its data, model and devices."""

    text: Text
    units: Units
    vocab: Vocab
    settings: Settings
    model: LanguageModel
    mesh: Mesh
    workdir: WorkDir
    identity: dict[str, Any]
    """What settings.json has: all that the results depend on."""
    chosen: str = ""
    """What was chosen for the run, for its first line."""


def train(options: Options, ready: Callable[[Run], None] = lambda run: None) -> None:
    """Train from the last checkpoint to the end, and print the results.

    Before anything is written, `ready` may refuse the run.
    """
    text = distributed.in_turn(lambda: load(options))
    began = time.perf_counter()
    run = prepare(text, options)
    ready(run)
    with run.workdir.claimed(run.identity, options.typed):
        run.workdir.write_vocab(run.vocab)
        lacking = options.dynamic.dynamic_evaluation and (
            "validation_nats_dynamic" not in (run.workdir.results or {})
        )
        if lacking or not run.workdir.print_if_finished(summary):
            state, done = learn(run, began, options.tensorboard)
            if jax.process_index() == 0:
                plot_run(run, done.history)
            rule = None
            if options.dynamic.dynamic_evaluation:
                rule = options.dynamic.rule(run.units)
            results = conclude(run, state, done, began, rule)
            run.workdir.finish(results)
            print(summary(results))
    if not is_temporary(run.workdir.path):
        print(run.workdir.describe_outputs("python -m experiments.charlm --sample"))


def prepare(text: Text, options: Options) -> Run:
    """Return a run on the text; nothing is written yet."""
    units, wanted = options.units, options.effective_settings
    tokens = count_tokens(units, text)["train on"]
    vocab = units.make_vocab(text, options.vocabulary_size)
    settings = wanted.fit_to(tokens)
    if settings != wanted:
        print(
            f"the text is short: training on {tokens:,} {units.plural} with --batch "
            f"{settings.batch} --seq-len {settings.seq_len} instead of {wanted.batch} "
            f"and {wanted.seq_len}",
            file=sys.stderr,
        )
    mesh = placement.data_mesh(options.devices, batch_size=settings.batch)
    workdir, chosen = open_workdir(options.workdir), ""
    if settings.dtype == "auto":
        found = workdir.settings
        if found is not None and found.get("dtype") in ("float32", "bfloat16"):
            products = found["dtype"]
            chosen = f"; products in {products}, as chosen when the run began"
        else:
            products, told = dtype.choose(settings, len(vocab), mesh)
            chosen = f"; {told}"
        settings = dataclasses.replace(settings, dtype=products)
    identity = {
        "dataset": text.name,
        **text.identity,
        "vocabulary": fingerprint(vocab),
        "bytes": options.bytes,
        "words": units is WORDS,
        "vocabulary_size": options.vocabulary_size,
        **dataclasses.asdict(settings),
    }
    model = make_model(settings, len(vocab))
    return Run(text, units, vocab, settings, model, mesh, workdir, identity, chosen)


def find_rate(options: Options) -> None:
    """Do the learning-rate range test, with the text and settings of a run."""
    text = distributed.in_turn(lambda: load(options))
    run = prepare(text, options)
    settings, mesh = run.settings, run.mesh
    own = placement.local_batch_slice(settings.batch, mesh)
    ids = run.units.encode(text.split()[0], run.vocab)
    optimizer = make_optimizer(settings, STEPS, rising_rate)
    found = range_test(
        shard_state(make_state(run.model, optimizer, settings), mesh),
        Streams(ids, settings, own).epoch,
        make_run_step(run, optimizer),
    )
    report(found, text.name, run.workdir.path)


def make_run_step(run: Run, optimizer: optax.GradientTransformation) -> Callable:
    """Return the train step with the regularizers of the settings."""
    settings = run.settings
    return make_train_step(
        run.model,
        optimizer,
        run.mesh,
        settings.weight_drop,
        Regularization.of(settings),
    )


def learn(
    run: Run, began: float, tensorboard: bool, previews: bool = True
) -> tuple[StatefulTrainState, TrainProgress]:
    """Train to the end; with `previews` print a short sample after each epoch."""
    settings, model = run.settings, run.model
    train_ids, validation_ids = (
        run.units.encode(part, run.vocab) for part in run.text.split()
    )
    own = placement.local_batch_slice(settings.batch, run.mesh)
    streams = Streams(train_ids, settings, own)
    steps = settings.epochs * len(streams.epoch(0))
    optimizer = make_optimizer(settings, steps)
    train_step = make_run_step(run, optimizer)
    evaluation = Evaluation(model, validation_ids, run.mesh)

    state = shard_state(make_state(model, optimizer, settings), run.mesh)
    parts = {"train": train_ids.size, "validate": validation_ids.size}
    if run.text.held_out:
        parts["test"] = run.units.count(run.text.held_out)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.train.params))
    told = describe_run(run.text.name, parts, run.units.plural, parameters, run.mesh)
    print(f"{told}{run.chosen}")
    if run.units is WORDS:
        shares = (unknown_share(ids, run.vocab) for ids in (train_ids, validation_ids))
        trained, validated = (f"{share:.1%}" for share in shares)
        print(
            f"{len(run.vocab):,} words in the vocabulary; {trained} of those to train "
            f"are unknown, {validated} of those to validate"
        )

    def evaluate(state: StatefulTrainState) -> dict[str, float]:
        found = evaluation(evaluated_params(state.train))
        if run.units is WORDS:
            found["perplexity"] = float(metrics.perplexity(found["nats_stateful"]))
        return {f"validation_{name}": value for name, value in found.items()}

    def average(
        state: StatefulTrainState, history: Sequence[dict[str, float]]
    ) -> StatefulTrainState:
        losses = [line[criterion(run.units)] for line in history]
        opt_state = state.train.opt_state
        triggered = is_triggered(losses, settings.averaging_patience)
        if not triggered or is_averaging(opt_state):
            return state
        print(f"from epoch {len(history) + 1} on the parameters are averaged")
        return state.replace(train=state.train.replace(opt_state=start(opt_state)))

    def preview(state: StatefulTrainState) -> None:
        params = jax.device_get(evaluated_params(state.train))
        writer = Writer(model, params, run.vocab, run.units)
        text = inference.preview(writer, settings.seed)
        print(text, end="\n----\n", flush=True)

    return fit(
        state,
        epochs=settings.epochs,
        batches=streams.epoch,
        train_step=train_step,
        evaluate=evaluate,
        rate=make_schedule(settings, steps),
        best=criterion(run.units),
        units=run.units.plural,
        units_per_epoch=streams.tokens,
        workdir=run.workdir,
        checkpoints=Checkpoints(run.workdir.checkpoints),
        began=began,
        patience=settings.patience,
        after_epoch=preview if previews else None,
        after_evaluation=average if settings.optimizer == "nt-asgd" else None,
        tensorboard=run.workdir.path / "tensorboard" if tensorboard else None,
    )


def criterion(units: Units) -> str:
    """Return the metric that decides which epoch is the best.

    Published perplexities of words are with the state carried, and nats per character
    of transformers in windows.
    """
    return (
        "validation_nats_stateful" if units is WORDS else "validation_nats_window_256"
    )


def unknown_share(ids: np.ndarray, vocab: Vocab) -> float:
    """Return the share of words that are not in the vocabulary.

    >>> vocab = Vocab((UNK, "be"))
    >>> unknown_share(vocab.encode(["to", "be"]), vocab)
    0.5
    """
    return float(np.mean(ids == vocab.encode([UNK])))


def conclude(
    run: Run,
    state: StatefulTrainState,
    done: TrainProgress,
    began: float,
    rule: Rule | None = None,
) -> dict[str, Any]:
    """Return the content of results.json, with the cross-entropies of all parts.

    That of the training part is the mean over the steps of the best epoch, with
    dropout. The test part is read by the best epoch's parameters, here alone. With a
    `rule` validation and test part are also evaluated dynamically.
    """
    best = done.best_epoch(criterion(run.units), "min")
    # Of a loss with penalties the cross-entropy is a part.
    nats = {"train_nats": best.get("train_nats", best["train_loss"])}
    nats |= {k: v for k, v in best.items() if k.startswith("validation_nats")}
    train, validation = run.text.split()
    parts = {"validation": validation, "test": run.text.held_out}
    if run.text.held_out or rule:
        restored, _ = Checkpoints(run.workdir.checkpoints).restore(state, "best")
        params = evaluated_params(restored.train)
        encoded = {
            name: run.units.encode(part, run.vocab)
            for name, part in parts.items()
            if part
        }
        if run.text.held_out:
            tested = Evaluation(run.model, encoded["test"], run.mesh)(params)
            nats |= {f"test_{name}": value for name, value in tested.items()}
        if rule:
            params = jax.device_get(params)
            ids = run.units.encode(train, run.vocab)
            rms = root_mean_squares(run.model, params, ids, rule.segment)
            for name, ids in encoded.items():
                mean = mean_nats(run.model, params, rms, ids, rule)
                nats[f"{name}_nats_dynamic"] = mean
    unit, convert = (
        ("perplexity", metrics.perplexity)
        if run.units is WORDS
        else ("bits", metrics.nats_to_bits)
    )
    converted = {
        name.replace("nats", unit): float(convert(value))
        for name, value in nats.items()
    }
    found = done.results(
        best, run.text.name, state.train.params, run.mesh, run.settings, began
    )
    return found | nats | converted


def plot_run(run: Run, history: Sequence[dict[str, float]]) -> None:
    """Write curves.png."""
    names = [name for name in history[0] if name.startswith("validation_nats")]
    panels = {f"nats per {run.units.name}": ["train_loss", *names]}
    plot_history(run.workdir.path / "curves.png", run.text.name, history, panels)


def summary(results: dict[str, Any]) -> str:
    """Return the results of a run as a line."""
    parts = [_summary_of_part("validation", results)]
    if "test_nats_stateful" in results:
        parts.append(_summary_of_part("test", results))
    return (
        f"{results['dataset']}: {'; '.join(parts)}, epoch {results['best_epoch']}, "
        f"{results['seconds']:.0f} s"
    )


def _summary_of_part(part: str, results: dict[str, Any]) -> str:
    by_word = f"{part}_perplexity_stateful" in results
    values = []
    for name, label in (
        ("window_64", "windows of 64"),
        ("window_256", "windows of 256"),
        ("stateful", "stateful"),
        ("dynamic", "dynamic"),
    ):
        if f"{part}_nats_{name}" not in results and name == "dynamic":
            continue
        nats = results[f"{part}_nats_{name}"]
        if by_word:
            perplexity = results[f"{part}_perplexity_{name}"]
            values.append(f"{perplexity:,.2f} {label} ({nats:.4f} nats)")
        else:
            bits = results[f"{part}_bits_{name}"]
            values.append(f"{nats:.4f} {label} ({bits:.4f} bits)")
    measure = "perplexity per word" if by_word else "nats per character"
    return f"{part} {measure} {', '.join(values)}"


def sample(options: Options) -> None:
    """Print text by the trained model; train it first where there is none.

    An interrupted training is continued first.
    """
    sampling = options.sampling
    sampling.check()
    prompt = inference.read_prompt(sampling.prompt)
    workdir, skip = open_workdir(options.workdir), options.unknown == "skip"
    trained = bool(Checkpoints(workdir.checkpoints).steps())

    def ready(run: Run) -> None:
        writer = Writer(run.model, {}, run.vocab, run.units)
        inference.check_prompt(writer, sampling, prompt, skip=skip)
        if not trained:
            missing = f"there is no trained model in {workdir.path}: training one first"
            print(f"{missing} (the default takes about a minute)", file=sys.stderr)

    if not trained:
        train_to_stderr(options, ready)
    else:
        workdir.require(explicit_settings(options))
        if continues(options, workdir):
            try:
                train_to_stderr(options, ready)
            except ClaimError as error:
                # While another program trains, sample from its best checkpoint.
                print(f"training is not continued: {error}", file=sys.stderr)
    seed = options.settings.seed
    inference.sample(workdir.path, sampling, prompt, seed=seed, skip=skip)


def train_to_stderr(options: Options, ready: Callable[[Run], None]) -> None:
    """Train with standard output redirected: it is for the text only."""
    with contextlib.redirect_stdout(sys.stderr):
        train(options, ready)
