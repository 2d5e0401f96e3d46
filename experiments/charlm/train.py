"""A character language model: trains on a text, then writes like it.

    python -m experiments.charlm
    python -m experiments.charlm --sample

Expect 1.528 nats per character of tiny shakespeare on cold windows of 256 (mean of the
seeds 0, 1 and 2; 1.523 to 1.532) after 80 seconds, on 2 cores of an AMD EPYC.
The preset best reaches 1.398 (1.396 to 1.399), 1.379 with the state carried,
in 68 minutes on one of them.
Trained again it continues. With the trained model --sample writes, --score judges a
text and --neurons shows what its units do.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.charlm import datasets, inference
from experiments.charlm.batches import Streams, encode
from experiments.charlm.config import Settings
from experiments.charlm.datasets import Text
from experiments.charlm.evaluation import Evaluation
from experiments.charlm.generator import Writer
from experiments.charlm.model import (
    Carried,
    make_model,
    make_optimizer,
    make_schedule,
    make_state,
    make_train_step,
    place,
)
from experiments.charlm.options import (
    Options,
    continues,
    explicit_settings,
    load,
)
from experiments.harness import distributed, jax_setup
from experiments.harness.options import scratch_if_smoke
from experiments.harness.plots import plot_history
from experiments.harness.training_loop import TrainProgress, fit
from experiments.harness.workdir import ClaimError, WorkDir, fingerprint
from jaxrnn import metrics, placement
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import LanguageModel
from jaxrnn.text import Vocab, char_tokens


def main(options: Options) -> None:
    options.check()
    jax_setup.configure(options.devices, options.cluster.join)
    with scratch_if_smoke(options) as options:
        work(options)


def work(options: Options) -> None:
    """Trains, writes, judges or shows."""
    if options.reading.requested:
        skip, workdir = options.unknown == "skip", WorkDir(options.workdir)
        if workdir.settings is not None:
            workdir.require(explicit_settings(options))
        inference.read(options.workdir, options.reading, skip=skip)
    elif options.sample:
        sample(options)
    else:
        train(options)


@dataclass(frozen=True)
class Run:
    """What a training run is about."""

    text: Text
    vocab: Vocab
    settings: Settings
    model: LanguageModel
    mesh: Mesh
    workdir: WorkDir
    identity: dict[str, Any]
    """What its work directory must be of."""


def train(options: Options, ready: Callable[[Run], None] = lambda run: None) -> None:
    """Trains from the last checkpoint to the end, and tells what the best one found.
    Before anything is written, `ready` may refuse the run."""
    text = distributed.in_turn(lambda: load(options))
    began = time.perf_counter()
    run = prepare(text, options)
    ready(run)
    with run.workdir.claimed(run.identity):
        if run.workdir.print_if_finished(summary):
            return
        run.workdir.write_vocab(run.vocab)
        state, done = learn(run, began, options.tensorboard)
        if jax.process_index() == 0:
            plot_run(run, done.history)
        results = conclude(run, state, done, began)
        run.workdir.finish(results)
    print(summary(results))


def prepare(text: Text, options: Options) -> Run:
    """A run on the text, about which nothing is written yet."""
    wanted, characters = options.effective_settings, len(text.split()[0])
    settings = wanted.fit_to(characters)
    if settings != wanted:
        print(
            f"{characters:,} characters to train on fill --batch {settings.batch} "
            f"--seq-len {settings.seq_len}, not {wanted.batch} and {wanted.seq_len}",
            file=sys.stderr,
        )
    if options.bytes:
        vocab = Vocab(tuple(map(chr, range(256))))
    else:
        parts = map(char_tokens, datasets.pieces(text.content))
        vocab = Vocab.build(parts, specials=())
    mesh = placement.data_mesh(options.devices, batch_size=settings.batch)
    identity = {
        "dataset": text.name,
        "text": text.fingerprint,
        "vocabulary": fingerprint(vocab),
        "bytes": options.bytes,
        **dataclasses.asdict(settings),
    }
    model = make_model(settings, len(vocab))
    workdir = WorkDir(options.workdir)
    return Run(text, vocab, settings, model, mesh, workdir, identity)


def learn(run: Run, began: float, tensorboard: bool) -> tuple[Carried, TrainProgress]:
    """Trains to the end, with a glimpse of what the model writes after each epoch."""
    settings, model = run.settings, run.model
    train_ids, validation_ids = (encode(part, run.vocab) for part in run.text.split())
    own = placement.local_batch_slice(settings.batch, run.mesh)
    streams = Streams(train_ids, settings, own)
    steps = settings.epochs * len(streams.epoch(0))
    optimizer = make_optimizer(settings, steps)
    train_step = make_train_step(model, optimizer, run.mesh, settings.weight_drop)
    evaluation = Evaluation(model, validation_ids, run.mesh)

    def evaluate(state: Carried) -> dict[str, float]:
        found = evaluation(state.train.params)
        return {f"validation_{name}": nats for name, nats in found.items()}

    def glimpse(state: Carried) -> None:
        writer = Writer(model, jax.device_get(state.train.params), run.vocab)
        text = inference.glimpse(writer, settings.seed, run.identity["bytes"])
        print(text, end="\n----\n", flush=True)

    return fit(
        place(make_state(model, optimizer, settings), run.mesh),
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
        after_epoch=glimpse,
        tensorboard=run.workdir.path / "tensorboard" if tensorboard else None,
    )


def conclude(
    run: Run, state: Carried, done: TrainProgress, began: float
) -> dict[str, Any]:
    """What results.json says."""
    best = done.best_epoch("validation_nats_window_256", "min")
    bits = {
        name.replace("nats", "bits"): float(metrics.nats_to_bits(x))
        for name, x in best.items()
        if name.startswith("validation_nats")
    }
    found = done.results(
        best, run.text.name, state.train.params, run.mesh, run.settings, began
    )
    return found | bits


def plot_run(run: Run, history: Sequence[dict[str, float]]) -> None:
    """Write curves.png."""
    names = [name for name in history[0] if name.startswith("validation_nats")]
    panels = {"nats per character": ["train_loss", *names]}
    plot_history(run.workdir.path / "curves.png", run.text.name, history, panels)


def summary(results: dict[str, Any]) -> str:
    """What a finished run found, in a line."""
    parts = []
    for name in ("window_64", "window_256", "stateful"):
        nats, bits = (results[f"validation_{unit}_{name}"] for unit in ("nats", "bits"))
        parts.append(f"{name.replace('_', ' ')} {nats:.4f} ({bits:.4f} bits)")
    return (
        f"{results['dataset']}: validation nats per character {', '.join(parts)}, "
        f"epoch {results['best_epoch']}, {results['seconds']:.0f} s"
    )


def sample(options: Options) -> None:
    """Prints what the trained model writes; where there is none, trains it first, and
    goes on with a training that was interrupted."""
    drawing, by_byte = options.drawing, options.bytes
    drawing.check()
    prompt = inference.read_prompt(drawing.prompt)
    workdir, skip = WorkDir(options.workdir), options.unknown == "skip"
    trained = bool(Checkpoints(workdir.checkpoints).steps())

    def ready(run: Run) -> None:
        writer = Writer(run.model, {}, run.vocab)
        inference.begin(writer, drawing, prompt, by_byte=by_byte, skip=skip)
        if not trained:
            missing = f"there is no trained model in {workdir.path}: training one first"
            print(f"{missing} (the default takes a minute or two)", file=sys.stderr)

    if not trained:
        train_aside(options, ready)
    else:
        workdir.require(explicit_settings(options))
        if continues(options, workdir):
            try:
                train_aside(options, ready)
            except ClaimError as error:
                # Where another program trains, there is still what it has so far.
                print(f"training does not go on: {error}", file=sys.stderr)
    seed = options.settings.seed
    inference.write(workdir.path, drawing, prompt, seed=seed, skip=skip)


def train_aside(options: Options, ready: Callable[[Run], None]) -> None:
    """Trains, and leaves standard output to the text."""
    with contextlib.redirect_stdout(sys.stderr):
        train(options, ready)
