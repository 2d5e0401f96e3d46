"""The table of `experiments.cells`, in Markdown, of the runs that are finished."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cells import runs, speed
from experiments.harness.cells import CellName

_TITLES = (
    "cell", "hidden", "parameters", "learning rate", "windows of 256", "state carried",
    "seeds", "characters/s", "/ LSTM", "MB",
)  # fmt: skip


def make(path: Path, cells: Sequence[CellName], seeds: Sequence[int]) -> str:
    """Return a row for each cell that is trained with a seed at least, the best first.

    Nats are the mean over the seeds, with the lowest and highest of several. Below the
    table is what is not finished, or cannot be.
    """
    found: dict[CellName, list[dict[str, Any]]] = {}
    for cell in cells:
        done = [runs.results(path, cell, seed) for seed in seeds]
        found[cell] = [results for results in done if results]
    trained: list[tuple[float, CellName]] = sorted(
        (_mean(found[cell], runs.METRIC), cell) for cell in cells if found[cell]
    )
    lines = [_line(_TITLES), _line(["---"] * len(_TITLES))]
    lines += [_line(_row(path, cell, found[cell])) for _, cell in trained]
    first = seeds[0]
    diverged = [cell for cell in cells if runs.has_diverged(path, cell, first)]
    missing = [c for c in cells if not found[c] and c not in diverged]
    if diverged:
        lines += ["", f"A loss was not finite: {', '.join(diverged)}."]
    if missing:
        lines += ["", f"Not finished: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _row(path: Path, cell: CellName, results: Sequence[dict[str, Any]]) -> list[str]:
    one = results[0]
    row = [
        f"`{cell}`",
        str(one["hidden"]),
        f"{one['parameters']:,}",
        f"{one['learning_rate']:g}",
        _nats(results, runs.METRIC),
        _nats(results, "validation_nats_stateful"),
        ", ".join(str(done["seed"]) for done in results),
    ]
    measured = speed.read(path, cell)
    if measured is None:
        return [*row, "", "", ""]
    return [
        *row,
        f"{measured['characters_per_second']:,.0f}",
        f"{measured['relative_to_lstm']:.2f}",
        f"{measured['step_bytes'] / 1e6:.0f}",
    ]


def _nats(results: Sequence[dict[str, Any]], name: str) -> str:
    """Return the mean and, of several, the lowest and the highest.

    >>> _nats([{"nats": 1.5}, {"nats": 1.7}], "nats")
    '1.600 (1.500 to 1.700)'
    """
    values = [done[name] for done in results]
    mean = f"{_mean(results, name):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _mean(results: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.fmean(done[name] for done in results)


def _line(words: Sequence[str]) -> str:
    """Return a line of a table.

    >>> _line(["cell", "nats"])
    '| cell | nats |'
    """
    return f"| {' | '.join(words)} |"
