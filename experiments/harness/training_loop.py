"""The training loop of both programs: epochs, progress, checkpoints, stopping.

A run that is stopped at any step and started again ends with the same bits as one that
never stopped: a checkpoint has all that is needed, and the batches of an epoch are a
function of the epoch alone. States, batches and metrics are the caller's.

The host runs one step ahead of the devices: it makes and dispatches the next batch
while a step runs, and reads metrics in groups, never of the step that is running.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.harness.preemption import Interrupt
from experiments.harness.progress import events, progress_bar, table_header, table_row
from experiments.harness.workdir import WorkDir
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.training import Batch, Metrics

EpochMetrics = dict[str, float]
SAVED_EVERY = 2_000  # steps
# Metrics are fetched from the devices after so many steps or seconds.
READ_EVERY, READ_SECONDS = 50, 0.2


class NotFiniteError(ValueError):
    """A loss, gradient or evaluation is not finite."""


@dataclass
class TrainProgress:
    """What was done so far; JSON keeps it beside each checkpoint."""

    spent: float = 0.0  # seconds, by the processes before this one
    planned: int = 0  # epochs; 0 in checkpoints of earlier versions
    epochs: int = 0
    steps: int = 0  # of the running epoch, as all below but the history
    seconds: float = 0.0
    totals: dict[str, list[float]] = field(default_factory=dict)
    history: list[EpochMetrics] = field(default_factory=list)

    def count(self, metrics: Metrics) -> None:
        """Add the metrics of a step to the running epoch."""
        for name, mean in metrics.items():
            total = self.totals.setdefault(name, [0.0, 0.0])
            total[0] += float(mean.total)
            total[1] += float(mean.weight)
        self.steps += 1

    def end_epoch(self, found: EpochMetrics, units: str, units_per_epoch: int) -> None:
        """Close the running epoch with its means and the metrics `found`."""
        means = {
            f"train_{name}": total / weight
            for name, (total, weight) in self.totals.items()
        }
        line = {"epoch": self.epochs + 1, **means, **found, "seconds": self.seconds}
        line[f"{units}_per_second"] = units_per_epoch / self.seconds
        self.history.append(line)
        self.epochs += 1
        self.steps, self.seconds, self.totals = 0, 0.0, {}

    def best_epoch(self, name: str, mode: Literal["min", "max"]) -> EpochMetrics:
        """Return the metrics of the epoch with the best value of `name`.

        Of equal ones the latest, as the checkpoints have it.

        >>> done = TrainProgress(history=[{"loss": 0.5}, {"loss": 0.2}, {"loss": 0.4}])
        >>> done.best_epoch("loss", "min")
        {'loss': 0.2}
        """
        best = min if mode == "min" else max
        return best(reversed(self.history), key=lambda line: line[name])

    def results(
        self,
        epoch: EpochMetrics,
        dataset: str,
        params: PyTree,
        mesh: Mesh,
        settings: Any,
        began: float,
    ) -> dict[str, Any]:
        """Return what results.json says of every run, with the metrics of `epoch`.

        `settings` is a dataclass; `began` is when this process began with the run.
        """
        last = self.history[-1].items()
        return {
            "dataset": dataset,
            **{k: v for k, v in epoch.items() if k.startswith("validation_")},
            "best_epoch": epoch["epoch"],
            "seconds": self.spent + time.perf_counter() - began,
            **{k: v for k, v in last if k.endswith("_per_second")},
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "devices": mesh.size,
            **dataclasses.asdict(settings),
        }

    def epochs_since_best(self, name: str, mode: Literal["min", "max"]) -> int:
        """Return the number of epochs since the first with the best `name`."""
        values = [line[name] for line in self.history]
        if not values:
            return 0
        return len(values) - 1 - values.index((min if mode == "min" else max)(values))


def fit(
    state: PyTree,
    *,
    epochs: int,
    batches: Callable[[int], Sequence[Callable[[], Batch]]],
    train_step: Callable[[PyTree, Batch], tuple[PyTree, Metrics]],
    evaluate: Callable[[PyTree], EpochMetrics],
    rate: Callable[[int], Any],
    best: str,
    units: str,
    units_per_epoch: int,
    workdir: WorkDir,
    checkpoints: Checkpoints,
    began: float,
    patience: int | None = None,
    after_epoch: Callable[[PyTree], None] | None = None,
    after_evaluation: Callable[[PyTree, Sequence[EpochMetrics]], PyTree] | None = None,
    tensorboard: Path | None = None,
    saved_every: int | None = None,
) -> tuple[PyTree, TrainProgress]:
    """Train to the last epoch; return the state after it and what was done.

    Training goes on from the last of `checkpoints`, if there is one. If that run was
    planned for another number of epochs, the learning rate follows the schedule of the
    new number from here on, and a line says so.

    Metrics are checked a few steps late, but before every save: a checkpoint never has
    a state whose loss, gradient or evaluation was not finite.

    Args:
        state: Has a `step`; a checkpoint is restored into its structure.
        epochs: How many to train for in all.
        batches: Returns the batches of an epoch, each made when it is called.
        train_step: As `jaxrnn.training.make_train_step` returns it.
        evaluate: Returns the metrics of a state at the end of an epoch.
        rate: The learning rate as a function of the step.
        best: The entry of `evaluate` that decides which checkpoint is the best.
        units: What the speed is measured in, such as "words".
        units_per_epoch: How many of them an epoch has.
        workdir: Where metrics.jsonl is written.
        checkpoints: Where states are saved, with the mode of `best`.
        began: `time.perf_counter()` when this process began with the run.
        patience: Early stopping: epochs in a row without a better `best`.
        after_epoch: Called with the state when an epoch is reported and saved.
        after_evaluation: Called with the state and the metrics of all epochs; what it
            returns is saved, and trained on.
        tensorboard: Directory for TensorBoard logs of every step and epoch.
        saved_every: Steps between checkpoints within an epoch: what a killed run loses
            at most (2,000 if None).

    Raises:
        NotFiniteError: A metric is not finite. Checkpoints are from before it.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when all is saved.
    """
    done = TrainProgress()
    step = int(state.step)
    if checkpoints.steps():
        state, info = checkpoints.restore(state, "last")
        done = TrainProgress(**info)
        step = int(state.step)
        print(f"continuing in {workdir.path} after step {step:,}")
        if done.planned not in (0, epochs):
            print(
                f"now {epochs} epochs, planned were {done.planned}: the learning rate "
                f"goes on as scheduled over {epochs} epochs, at {float(rate(step)):.4g}"
            )
    done.planned = epochs

    def save(metric: float) -> None:
        info = dataclasses.asdict(done)
        info["spent"] += time.perf_counter() - began
        checkpoints.save(step, state, info=info, metric=metric)

    def require_finite(measured: EpochMetrics, step: int, batch: int) -> None:
        """Check loss, gradient and evaluation: the state of any may be damaged."""
        for name, value in measured.items():
            if not math.isfinite(value):
                kept = (
                    f"the checkpoints in {workdir.path} are from before it"
                    if checkpoints.steps()
                    else "there is no checkpoint yet"
                )
                raise NotFiniteError(
                    f"{name} at step {step:,} (batch {batch:,} of epoch "
                    f"{done.epochs + 1}, learning rate {float(rate(step - 1)):.4g}) is "
                    f"{value}: lower --learning-rate and start again in another "
                    f"--workdir; {kept}"
                )

    steps = len(batches(0))
    unread: list[tuple[int, Metrics]] = []  # steps that were dispatched
    read_at = time.perf_counter()

    def read(steps_left: int = 0) -> None:
        """Wait for all dispatched steps but the last `steps_left`, and count them."""
        nonlocal read_at
        ready = unread[: len(unread) - steps_left]
        del unread[: len(ready)]
        values = jax.device_get([metrics for _, metrics in ready])
        now = time.perf_counter()
        done.seconds += now - read_at
        read_at = now
        for (number, _), metrics in zip(ready, values, strict=True):
            measured = {name: float(mean.value) for name, mean in metrics.items()}
            require_finite(measured, number, done.steps + 1)
            done.count(metrics)
            log("step", number, measured)
            advance(number, running(measured["loss"]))

    def running(loss: float | None = None) -> str:
        told = f"epoch {done.epochs + 1}/{epochs}"
        if loss is None:
            return told
        speed = units_per_epoch * done.steps / steps / done.seconds
        return f"{told}  loss {loss:.3f}  {speed:,.0f} {units}/second"

    if tensorboard:
        print(
            f"TensorBoard logs: pip install tensorboard, then tensorboard --logdir "
            f"{tensorboard}"
        )
    titled = False
    bar = progress_bar("training", epochs * steps)
    logs = events(tensorboard, step)
    with Interrupt() as interrupt, logs as log, bar as advance:
        while done.epochs < epochs:
            if patience and done.epochs_since_best(best, checkpoints.mode) >= patience:
                print(
                    f"stopped after epoch {done.epochs}: {_words(best)} was not better "
                    f"for {patience} epochs"
                )
                break
            advance(step, running())
            read_at = time.perf_counter()
            for make_batch in batches(done.epochs)[done.steps :]:
                state, metrics = train_step(state, make_batch())
                step += 1
                unread.append((step, metrics))
                if interrupt.stops_after(step):
                    break
                if (
                    step % (saved_every or SAVED_EVERY) == 0
                    and done.steps + len(unread) < steps
                ):
                    read()
                    save(metric=checkpoints.worst)
                    read_at = time.perf_counter()
                elif len(unread) > 1:
                    # No further ahead: memory for batches, and Ctrl-C takes effect.
                    jax.block_until_ready(unread[-2][1])
                    late = time.perf_counter() - read_at > READ_SECONDS
                    if late or len(unread) > READ_EVERY:
                        read(steps_left=1)
            read()
            if done.steps < steps:
                save(metric=checkpoints.worst)
            else:
                found = evaluate(state)
                require_finite(found, step, done.steps)
                done.end_epoch(found, units, units_per_epoch)
                if after_evaluation:
                    state = after_evaluation(state, done.history)
                workdir.write_metrics(done.history)
                save(metric=found[best])
                line = done.history[-1]
                log("epoch", step, line)
                if not titled or after_epoch:  # which may print between the rows
                    print(table_header(line))
                    titled = True
                print(table_row(line), flush=True)
                if after_epoch:
                    after_epoch(state)
            if interrupt.stops_after(step):
                raise KeyboardInterrupt(
                    f"stopped after step {step:,}, all is saved in {workdir.path}: the "
                    "same command continues"
                )
    return state, done


def _words(name: str) -> str:
    return name.replace("_", " ")
