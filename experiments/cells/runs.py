"""The runs of the comparison: each has a work directory and is made once.

    CELL/rate-R/     the first tenth of a training with the learning rate R
    CELL/seed-S/     a whole training, as `python -m experiments.charlm` has it

A run that has results.json is finished. One that was stopped goes on where it was; the
first tenths begin again.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax

from experiments.cells.sizes import count_parameters, fit_hidden
from experiments.charlm import train as charlm
from experiments.charlm.batches import Streams
from experiments.charlm.config import Settings
from experiments.charlm.datasets import Text
from experiments.charlm.evaluation import Evaluation
from experiments.charlm.model import (
    make_optimizer,
    make_state,
    make_train_step,
    shard_state,
)
from experiments.charlm.options import Options as CharlmOptions
from experiments.harness.cells import CellName
from experiments.harness.files import write_json
from experiments.harness.preemption import Interrupt
from experiments.harness.progress import progress_bar
from experiments.harness.training_loop import NotFiniteError
from experiments.harness.workdir import WorkDir

RATES = (3e-3, 1e-2, 3e-2)
TENTH = 10
METRIC = "validation_nats_window_256"
DIVERGED = "diverged.json"  # in the directory of a run that cannot be finished


@dataclass(frozen=True)
class Comparison:
    """What all runs have in common."""

    text: Text
    base: Settings
    """Of the cell whose number of parameters the others get."""
    path: Path
    devices: int | None = None

    def settings(self, cell: CellName) -> Settings:
        """Return the settings of a cell, with the hidden size that it gets."""
        wanted = count_parameters(self.base, self.vocab_size)
        settings = dataclasses.replace(self.base, cell=cell)
        return fit_hidden(settings, wanted, self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """The number of different characters."""
        return len(set(self.text.content))

    def prepare(self, name: str, settings: Settings) -> charlm.Run:
        """Return the run in the directory `CELL/name`; nothing is written yet."""
        options = CharlmOptions(
            workdir=self.path / settings.cell / name,
            devices=self.devices,
            settings=settings,
        )
        return charlm.prepare(self.text, options)


def results(path: Path, cell: CellName, seed: int) -> dict[str, Any] | None:
    """Return what a finished training found, None if it is not finished."""
    return WorkDir(path / cell / f"seed-{seed}").results


def has_diverged(path: Path, cell: CellName, seed: int) -> bool:
    """Return whether a training ended with a loss that is not finite."""
    return (path / cell / f"seed-{seed}" / DIVERGED).exists()


def ranked(path: Path, cells: Iterable[CellName], seed: int) -> list[CellName]:
    """Return the cells whose training with a seed is finished, the best first."""
    found: dict[CellName, dict[str, Any] | None] = {
        cell: results(path, cell, seed) for cell in cells
    }
    nats: list[tuple[float, CellName]] = [
        (done[METRIC], cell) for cell, done in found.items() if done
    ]
    return [cell for _, cell in sorted(nats)]


def choose_rate(comparison: Comparison, cell: CellName, seed: int) -> float:
    """Return the best of `RATES` after the first tenth of a training.

    That is the one with the lowest nats per character of the validation part, in
    windows of 256 characters. The warmup and the cosine are those of a whole training.
    What is in the work directory is not trained again.
    """
    settings = dataclasses.replace(comparison.settings(cell), seed=seed)
    found: dict[float, float] = {}
    trial: Callable[[float], float] | None = None
    for rate in RATES:
        run = comparison.prepare(
            f"rate-{rate:g}", dataclasses.replace(settings, learning_rate=rate)
        )
        with run.workdir.claimed(run.identity):
            done = run.workdir.results
            if done is None:
                trial = trial or _make_trial(run)
                nats = trial(rate)
                done = {METRIC: nats if math.isfinite(nats) else None}
                run.workdir.finish(done)
                print(f"{cell}: learning rate {rate:g}: {nats:.4f} nats after a tenth")
        nats = done[METRIC]
        found[rate] = math.inf if nats is None else nats
    return best_rate(found)


def best_rate(nats: Mapping[float, float]) -> float:
    """Return the learning rate with the fewest nats; of equal ones the first.

    >>> best_rate({3e-3: 2.1, 1e-2: 1.9, 3e-2: float("inf")})
    0.01
    """
    return min(nats, key=lambda rate: nats[rate])


def _make_trial(run: charlm.Run) -> Callable[[float], float]:
    """Return a function of a learning rate that trains for a tenth and validates.

    It is compiled once for all of them.
    """
    settings = dataclasses.replace(run.settings, learning_rate=1.0)
    train_ids, validation_ids = (
        run.units.encode(part, run.vocab) for part in run.text.split()
    )
    streams = Streams(train_ids, settings)
    steps = settings.epochs * len(streams.epoch(0))
    tenth = math.ceil(steps / TENTH)

    def make(rate: Any) -> optax.GradientTransformation:
        return optax.chain(make_optimizer(settings, steps), optax.scale(rate))

    # The rate is part of the optimizer's state, and so an argument of the step.
    make_traced = optax.inject_hyperparams(make)
    train_step = make_train_step(
        run.model, make_traced(rate=1.0), run.mesh, settings.weight_drop
    )
    evaluation = Evaluation(run.model, validation_ids, run.mesh)
    batches = [
        make_batch
        for epoch in range(math.ceil(tenth / len(streams.epoch(0))))
        for make_batch in streams.epoch(epoch)
    ][:tenth]

    def trial(rate: float) -> float:
        optimizer = make_traced(rate=rate)
        state = shard_state(make_state(run.model, optimizer, settings), run.mesh)
        description = f"{settings.cell}, learning rate {rate:g}"
        with Interrupt() as interrupt, progress_bar(description, tenth) as advance:
            for step, make_batch in enumerate(batches, start=1):
                state, metrics = train_step(state, make_batch())
                loss = float(metrics["loss"].value)
                if not math.isfinite(loss):
                    return math.inf
                advance(step, f"{description}: loss {loss:.3f}")
                if interrupt.requested:
                    raise KeyboardInterrupt("stopped: the same command continues")
        return evaluation.windows(state.train.params, 256)

    return trial


def train(comparison: Comparison, cell: CellName, seed: int, rate: float) -> None:
    """Train a cell to the end; what is finished is not trained again.

    Where the loss is not finite that is noted, and the training is not tried again.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when all is saved.
    """
    settings = dataclasses.replace(
        comparison.settings(cell), seed=seed, learning_rate=rate
    )
    run = comparison.prepare(f"seed-{seed}", settings)
    with run.workdir.claimed(run.identity):
        path = run.workdir.path / DIVERGED
        if run.workdir.results is not None or path.exists():
            return
        began = time.perf_counter()
        run.workdir.write_vocab(run.vocab)
        try:
            state, done = charlm.learn(run, began, tensorboard=False, previews=False)
        except NotFiniteError as error:
            write_json(path, {"error": str(error)}, "--workdir")
            print(f"{cell}, seed {seed}: {error}")
            return
        found = charlm.conclude(run, state, done, began)
        run.workdir.finish(found)
        print(f"{cell}, seed {seed}: {charlm.summary(found)}", flush=True)
