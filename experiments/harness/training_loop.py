"""The training loop that the programs share: epochs, progress, checkpoints, stopping.

A run that is stopped anywhere and started again ends as if it had never been stopped:
all that it goes on with is in the checkpoint, and the batches of an epoch are a
function of the epoch alone. What states, batches and metrics are, the callers know.
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
SAVED_EVERY = 2_000  # steps, also within an epoch: what a killed run loses at most


@dataclass
class TrainProgress:
    """What was done so far; JSON keeps it beside each checkpoint."""

    spent: float = 0.0  # seconds, by the processes before this one
    epochs: int = 0
    steps: int = 0  # of the running epoch, as all below but the history
    seconds: float = 0.0
    totals: dict[str, list[float]] = field(default_factory=dict)
    history: list[EpochMetrics] = field(default_factory=list)

    def count(self, metrics: Metrics, seconds: float) -> None:
        """Adds a step to the running epoch."""
        for name, mean in metrics.items():
            total = self.totals.setdefault(name, [0.0, 0.0])
            total[0] += float(mean.total)
            total[1] += float(mean.weight)
        self.steps += 1
        self.seconds += seconds

    def end_epoch(self, found: EpochMetrics, units: str, units_per_epoch: int) -> None:
        """Closes the running epoch with a line of its means and what `found` adds."""
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
        """Epochs since the first one with the best value of `name`."""
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
    tensorboard: Path | None = None,
) -> tuple[PyTree, TrainProgress]:
    """The state after the last epoch, and what was done, with a line for each epoch.

    It goes on from the last of `checkpoints`, if there is one. A state may hold more
    than weights, so long as it has a `step`: what a recurrent model remembers, say.

    Args:
        state: has a `step`; a checkpoint is restored into its structure.
        batches: the batches of an epoch, each made when it is called.
        train_step: as `jaxrnn.training.make_train_step` returns it.
        evaluate: what to report of a state at the end of an epoch.
        rate: the learning rate after so many steps.
        best: the entry of `evaluate` that tells which checkpoint is the best.
        units: what an epoch has `units_per_epoch` of, for the speed: "words".
        began: when this process began with the run, by `time.perf_counter`.
        patience: stop early when so many epochs in a row were not better than the best.
        after_epoch: is called with the state when an epoch is reported and saved.
        tensorboard: write TensorBoard's logs there, of every step and epoch.

    Raises:
        ValueError: a metric is not finite. The checkpoints are as they were.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when all is saved.
    """
    done = TrainProgress()
    if checkpoints.steps():
        state, info = checkpoints.restore(state, "last")
        done = TrainProgress(**info)
        print(f"continuing in {workdir.path} after step {int(state.step):,}")

    def save(metric: float) -> None:
        info = dataclasses.asdict(done)
        info["spent"] += time.perf_counter() - began
        checkpoints.save(int(state.step), state, info=info, metric=metric)

    def require_finite(measured: EpochMetrics, batch: int) -> None:
        """All of it, gradient and evaluation too: they show first what the next loss
        will, and until then the damaged state could be saved."""
        step = int(state.step)
        for name, value in measured.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} at step {step:,} (batch {batch:,} of epoch "
                    f"{done.epochs + 1}, learning rate {float(rate(step - 1)):.4g}) is "
                    f"{value}: lower the learning rate and start again in another "
                    f"--workdir; the checkpoints in {workdir.path} are from before it"
                )

    steps = len(batches(0))

    def running(loss: float | None = None) -> str:
        told = f"epoch {done.epochs + 1}/{epochs}"
        if loss is None:
            return told
        speed = units_per_epoch * done.steps / steps / done.seconds
        return f"{told}  loss {loss:.3f}  {speed:,.0f} {units}/second"

    titled = False
    bar = progress_bar("training", epochs * steps)
    logs = events(tensorboard, int(state.step))
    with Interrupt() as interrupt, logs as log, bar as advance:
        while done.epochs < epochs:
            if patience and done.epochs_since_best(best, checkpoints.mode) >= patience:
                print(
                    f"stopped after epoch {done.epochs}: {_words(best)} was not better "
                    f"for {patience} epochs"
                )
                break
            advance(int(state.step), running())
            for make_batch in batches(done.epochs)[done.steps :]:
                step_began = time.perf_counter()
                state, metrics = train_step(state, make_batch())
                metrics = jax.device_get(metrics)
                measured = {name: float(mean.value) for name, mean in metrics.items()}
                step = int(state.step)
                require_finite(measured, done.steps + 1)
                done.count(metrics, time.perf_counter() - step_began)
                log("step", step, measured)
                advance(step, running(measured["loss"]))
                if interrupt.stops_after(step):
                    break
                if step % SAVED_EVERY == 0 and done.steps < steps:
                    save(metric=checkpoints.worst)
            if done.steps < steps:
                save(metric=checkpoints.worst)
            else:
                found = evaluate(state)
                require_finite(found, done.steps)
                done.end_epoch(found, units, units_per_epoch)
                workdir.write_metrics(done.history)
                save(metric=found[best])
                line = done.history[-1]
                log("epoch", int(state.step), line)
                if not titled or after_epoch:  # which may print between the rows
                    print(table_header(line))
                    titled = True
                print(table_row(line), flush=True)
                if after_epoch:
                    after_epoch(state)
            if interrupt.stops_after(int(state.step)):
                raise KeyboardInterrupt(
                    f"stopped after step {int(state.step):,}, all is saved in "
                    f"{workdir.path}: the same command continues"
                )
    return state, done


def _words(name: str) -> str:
    return name.replace("_", " ")
