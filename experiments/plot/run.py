"""Learning curves of several runs in one figure.

    python -m experiments.plot runs/imdb runs/other --out curves.png

There is a panel for each metric and a line for each work directory.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.harness.files import unwritable_message
from experiments.harness.plots import plot_curves
from experiments.harness.workdir import WorkDir


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Work directories, of runs that are finished or not."""
    out: Path = Path("curves.png")
    """File to write; a name without suffix gets .png."""
    metrics: tuple[str, ...] = ()
    """Metrics to plot, as they are called in metrics.jsonl.
    Default: the training loss and all validation metrics."""
    over: Literal["epoch", "seconds"] = "epoch"
    """The x axis: epochs, or seconds of training without evaluations."""


def main(options: Options) -> None:
    """Plot the runs."""
    if not options.runs:
        raise ValueError("there is nothing to plot: name at least one work directory")
    histories = {str(path): read(path) for path in options.runs}
    found = panels(histories, options.metrics, options.over)
    if options.out.is_dir():
        raise ValueError(
            f"cannot write to {options.out} (a folder): give another --out"
        )
    out = options.out if options.out.suffix else options.out.with_suffix(".png")
    try:
        plot_curves(out, "", options.over, found)
    except OSError as error:
        raise ValueError(unwritable_message(out, error, "--out")) from error
    except ValueError as error:
        raise ValueError(f"--out {out}: {error}") from error
    print(f"{out} shows {', '.join(found)}")


def read(path: Path) -> list[dict[str, float]]:
    """Return the metrics of the epochs of a run.

    Raises:
        ValueError: there are none, or a line is not an epoch's.
    """
    history = WorkDir(path).metrics
    for number, line in enumerate(history, start=1):
        for name in ("epoch", "seconds", *line):
            if not (name.isprintable() and _is_number(line.get(name))):
                raise ValueError(
                    f"{path}/metrics.jsonl is damaged (line {number}: {name!r:.40} is "
                    f"{line.get(name)!r:.40}, not a number): remove that line"
                )
    if not history:
        raise ValueError(
            f"{path}/metrics.jsonl: there is none: name the work directory of a run "
            "that has ended an epoch"
        )
    return history


def _is_number(value: Any) -> bool:
    """Return whether a value is a number whose sums stay finite."""
    return type(value) in (int, float) and abs(value) < 1e300


def panels(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    metrics: Sequence[str] = (),
    over: Literal["epoch", "seconds"] = "epoch",
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return for each metric the points (x, value) of each run that has it.

    The x is the epoch, or the seconds of all epochs up to it.

    Raises:
        ValueError: no run has one of `metrics`, or any of those by default.

    >>> panels({"a": [{"epoch": 1, "train_loss": 0.5, "seconds": 9.0}]})
    {'train loss': {'a': [(1, 0.5)]}}
    """
    names = list(
        dict.fromkeys(
            name for history in histories.values() for line in history for name in line
        )
    )
    unknown = [name for name in metrics if name not in names]
    if unknown:
        raise ValueError(
            f"no run has the metric {unknown[0]!r}: there are {', '.join(names)}"
        )
    shown = metrics or [
        name for name in names if name == "train_loss" or name.startswith("validation_")
    ]
    if not shown:
        raise ValueError(
            f"no run has a loss or a validation: give --metrics of {', '.join(names)}"
        )
    return {
        name.replace("_", " "): {
            run: [
                (x, line[name])
                for x, line in zip(x_values(history, over), history, strict=True)
                if name in line
            ]
            for run, history in histories.items()
            if any(name in line for line in history)
        }
        for name in shown
    }


def x_values(
    history: Sequence[Mapping[str, float]], over: Literal["epoch", "seconds"]
) -> list[float]:
    """Return the position of each epoch on the x axis."""
    values = [line[over] for line in history]
    return values if over == "epoch" else list(itertools.accumulate(values))
