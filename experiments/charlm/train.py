"""Character language model: trains on a text, then generates text like it.

    python -m experiments.charlm
    python -m experiments.charlm --sample

Expected: 1.531 nats per character on the last tenth of tiny shakespeare, in
non-overlapping windows of 256 characters, state reset at each. That is the mean of
seeds 0, 1 and 2, from 1.524 to 1.538, after 40 seconds on 2 cores of an AMD EPYC.
With --preset best 1.398 (1.396 to 1.399), or 1.379 with the state carried through
the text, after 68 minutes on one core.

The same command started again continues the run. With the trained model --sample
generates text, --score prints the cross-entropy of a file, --neurons shows the
activations of the hidden units, --export writes files that JAX alone can run and
--serve opens a page to write with.
"""

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.charlm import datasets, inference
from experiments.charlm.batches import Streams, encode
from experiments.charlm.config import Settings, open_workdir
from experiments.charlm.datasets import Text
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
from experiments.charlm.options import (
    Options,
    continues,
    explicit_settings,
    load,
)
from experiments.harness import distributed, jax_setup
from experiments.harness.options import is_temporary, scratch_if_smoke
from experiments.harness.plots import plot_history
from experiments.harness.progress import describe_run
from experiments.harness.training_loop import TrainProgress, fit
from experiments.harness.workdir import ClaimError, WorkDir, fingerprint
from jaxrnn import metrics, placement
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import LanguageModel
from jaxrnn.text import Vocab, char_tokens
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
        skip = options.unknown == "skip"
        inference.analyse(options.workdir, options.analysis, skip=skip)


@dataclass(frozen=True)
class Run:
    """A training run: its data, model and devices."""

    text: Text
    vocab: Vocab
    settings: Settings
    model: LanguageModel
    mesh: Mesh
    workdir: WorkDir
    identity: dict[str, Any]
    """What settings.json has: all that the results depend on."""


def train(options: Options, ready: Callable[[Run], None] = lambda run: None) -> None:
    """Train from the last checkpoint to the end, and print the results.

    Before anything is written, `ready` may refuse the run.
    """
    text = distributed.in_turn(lambda: load(options))
    began = time.perf_counter()
    run = prepare(text, options)
    ready(run)
    with run.workdir.claimed(run.identity, options.typed):
        if not run.workdir.print_if_finished(summary):
            run.workdir.write_vocab(run.vocab)
            state, done = learn(run, began, options.tensorboard)
            if jax.process_index() == 0:
                plot_run(run, done.history)
            results = conclude(run, state, done, began)
            run.workdir.finish(results)
            print(summary(results))
    if not is_temporary(run.workdir.path):
        print(run.workdir.describe_outputs("python -m experiments.charlm --sample"))


def prepare(text: Text, options: Options) -> Run:
    """Return a run on the text; nothing is written yet."""
    wanted, characters = options.effective_settings, len(text.split()[0])
    settings = wanted.fit_to(characters)
    if settings != wanted:
        print(
            f"the text is short: training on {characters:,} characters with --batch "
            f"{settings.batch} --seq-len {settings.seq_len} instead of {wanted.batch} "
            f"and {wanted.seq_len}",
            file=sys.stderr,
        )
    if options.bytes:
        vocab = Vocab(tuple(map(chr, range(256))))
    else:
        parts = filter(None, (text.content, text.validation, text.test))
        pieces = itertools.chain.from_iterable(map(datasets.pieces, parts))
        vocab = Vocab.build(map(char_tokens, pieces), specials=())
    mesh = placement.data_mesh(options.devices, batch_size=settings.batch)
    identity = {
        "dataset": text.name,
        **text.identity,
        "vocabulary": fingerprint(vocab),
        "bytes": options.bytes,
        **dataclasses.asdict(settings),
    }
    model = make_model(settings, len(vocab))
    workdir = open_workdir(options.workdir)
    return Run(text, vocab, settings, model, mesh, workdir, identity)


def learn(
    run: Run, began: float, tensorboard: bool, previews: bool = True
) -> tuple[StatefulTrainState, TrainProgress]:
    """Train to the end; with `previews` print a short sample after each epoch."""
    settings, model = run.settings, run.model
    train_ids, validation_ids = (encode(part, run.vocab) for part in run.text.split())
    own = placement.local_batch_slice(settings.batch, run.mesh)
    streams = Streams(train_ids, settings, own)
    steps = settings.epochs * len(streams.epoch(0))
    optimizer = make_optimizer(settings, steps)
    train_step = make_train_step(model, optimizer, run.mesh, settings.weight_drop)
    evaluation = Evaluation(model, validation_ids, run.mesh)

    state = shard_state(make_state(model, optimizer, settings), run.mesh)
    parts = {"train": train_ids.size, "validate": validation_ids.size}
    if run.text.held_out:
        parts["test"] = len(run.text.held_out)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.train.params))
    print(describe_run(run.text.name, parts, "characters", parameters, run.mesh))

    def evaluate(state: StatefulTrainState) -> dict[str, float]:
        found = evaluation(state.train.params)
        return {f"validation_{name}": nats for name, nats in found.items()}

    def preview(state: StatefulTrainState) -> None:
        writer = Writer(model, jax.device_get(state.train.params), run.vocab)
        text = inference.preview(writer, settings.seed, run.identity["bytes"])
        print(text, end="\n----\n", flush=True)

    return fit(
        state,
        epochs=settings.epochs,
        batches=streams.epoch,
        train_step=train_step,
        evaluate=evaluate,
        rate=make_schedule(settings, steps),
        best="validation_nats_window_256",
        units="characters",
        units_per_epoch=streams.characters,
        workdir=run.workdir,
        checkpoints=Checkpoints(run.workdir.checkpoints),
        began=began,
        patience=settings.patience,
        after_epoch=preview if previews else None,
        tensorboard=run.workdir.path / "tensorboard" if tensorboard else None,
    )


def conclude(
    run: Run, state: StatefulTrainState, done: TrainProgress, began: float
) -> dict[str, Any]:
    """Return the content of results.json, with the cross-entropies of all parts.

    That of the training part is the mean over the steps of the best epoch, with
    dropout. The test part is read by the best epoch's parameters, here alone.
    """
    best = done.best_epoch("validation_nats_window_256", "min")
    nats = {"train_nats": best["train_loss"]}
    nats |= {k: v for k, v in best.items() if k.startswith("validation_nats")}
    if run.text.held_out:
        restored, _ = Checkpoints(run.workdir.checkpoints).restore(state, "best")
        ids = encode(run.text.held_out, run.vocab)
        tested = Evaluation(run.model, ids, run.mesh)(restored.train.params)
        nats |= {f"test_{name}": value for name, value in tested.items()}
    bits = {
        name.replace("nats", "bits"): float(metrics.nats_to_bits(value))
        for name, value in nats.items()
    }
    found = done.results(
        best, run.text.name, state.train.params, run.mesh, run.settings, began
    )
    return found | nats | bits


def plot_run(run: Run, history: Sequence[dict[str, float]]) -> None:
    """Write curves.png."""
    names = [name for name in history[0] if name.startswith("validation_nats")]
    panels = {"nats per character": ["train_loss", *names]}
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
    values = []
    for name, label in (
        ("window_64", "windows of 64"),
        ("window_256", "windows of 256"),
        ("stateful", "stateful"),
    ):
        nats, bits = (results[f"{part}_{unit}_{name}"] for unit in ("nats", "bits"))
        values.append(f"{nats:.4f} {label} ({bits:.4f} bits)")
    return f"{part} nats per character {', '.join(values)}"


def sample(options: Options) -> None:
    """Print text by the trained model; train it first where there is none.

    An interrupted training is continued first.
    """
    sampling, by_byte = options.sampling, options.bytes
    sampling.check()
    prompt = inference.read_prompt(sampling.prompt)
    workdir, skip = open_workdir(options.workdir), options.unknown == "skip"
    trained = bool(Checkpoints(workdir.checkpoints).steps())

    def ready(run: Run) -> None:
        writer = Writer(run.model, {}, run.vocab)
        inference.check_prompt(writer, sampling, prompt, by_byte=by_byte, skip=skip)
        if not trained:
            missing = f"there is no trained model in {workdir.path}: training one first"
            print(f"{missing} (the default takes a minute or two)", file=sys.stderr)

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
