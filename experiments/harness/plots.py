"""Figures as PNG files: learning curves, learning rates, a confusion matrix, bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.harness.files import replace_file


def plot_curves(
    path: Path,
    title: str,
    x_label: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    x_scale: Literal["linear", "log"] = "linear",
) -> None:
    """Plot a panel for each quantity, with a line of (x, y) points for each series.

    On a linear scale the values of x are integers.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "curves.png"
    >>> plot_curves(path, "run", "epoch", {"loss": {"train": [(1, 0.7), (2, 0.4)]}})
    >>> path.read_bytes()[1:4]
    b'PNG'
    """
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (quantity, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        handles = [
            line
            for name, points in lines.items()
            for line in axes.plot(*zip(*points, strict=True), marker="o", label=name)
        ]
        axes.set_xlabel(x_label)
        axes.set_xscale(x_scale)
        if x_scale == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        _show_verbatim(axes.legend(handles, list(lines)))
    figure.suptitle(title, parse_math=False)
    _save(figure, path)


def plot_history(
    path: Path,
    title: str,
    history: Sequence[Mapping[str, float]],
    panels: Mapping[str, Sequence[str]],
) -> None:
    """Plot metrics of `history` over its epochs, a panel for each quantity.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "curves.png"
    >>> plot_history(path, "run", [{"epoch": 1, "loss": 0.7}], {"nats": ["loss"]})
    >>> path.read_bytes()[1:4]
    b'PNG'
    """
    series = {
        quantity: {
            name.replace("_", " "): [(line["epoch"], line[name]) for line in history]
            for name in names
        }
        for quantity, names in panels.items()
    }
    plot_curves(path, title, "epoch", series)


def plot_rates(
    path: Path,
    title: str,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
) -> None:
    """Plot losses and smoothed losses over learning rates, with a line at one of them.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rates.png"
    >>> plot_rates(path, "run", [0.1, 1.0], [0.7, 0.4], [0.7, 0.5], 0.1)
    >>> path.read_bytes()[1:4]
    b'PNG'
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="C0", alpha=0.35, label="loss")
    axes.plot(rates, smoothed, color="C0", label="smoothed loss")
    if suggestion is not None:
        label = f"suggested: {suggestion:.1e}"
        axes.axvline(suggestion, color="C1", linestyle="--", label=label)
    axes.set_xscale("log")
    fall = smoothed[0] - min(smoothed)
    if fall > 0:  # where the loss grows it would hide that it fell
        axes.set_ylim(min(smoothed) - fall, smoothed[0] + 2 * fall)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(title, parse_math=False)
    _save(figure, path)


def plot_confusion(
    path: Path, title: str, counts: np.ndarray, labels: Sequence[str]
) -> None:
    """Plot the matrix `counts[truth, prediction]`, with counts and shares of a row.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "confusion.png"
    >>> plot_confusion(path, "run", np.array([[5, 1], [0, 6]]), ["no", "yes"])
    >>> path.read_bytes()[1:4]
    b'PNG'
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (truth, prediction), count in np.ndenumerate(counts):
        share = shares[truth, prediction]
        axes.text(
            prediction,
            truth,
            f"{count:,}\n{share:.1%}",
            ha="center",
            va="center",
            color="white" if share > 0.5 else "black",
        )
    figure.suptitle(title, wrap=True, fontsize=10, parse_math=False)
    _save(figure, path)


def plot_bars(
    path: Path,
    title: str,
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Plot ratios: panels of groups of bars, for sections, cases and names.

    A name has the same colour everywhere; a line marks 1.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "bars.png"
    >>> plot_bars(path, "run", {"LSTM": {"64": {"here": 0.7, "there": 1.0}}})
    >>> path.read_bytes()[1:4]
    b'PNG'
    """
    cases = [bars for groups in panels.values() for bars in groups.values()]
    names = list(dict.fromkeys(name for bars in cases for name in bars))
    # Distinguishable with any colour vision (Petroff, 2021, arXiv:2107.02270).
    colours = matplotlib.color_sequences["petroff10"]
    figure = Figure(figsize=(10, 1.2 + 2.6 * len(panels)), layout="constrained")
    for axes, (section, groups) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True
    ):
        width = 0.85 / max(len(bars) for bars in groups.values())
        for group, bars in enumerate(groups.values()):
            for k, (name, height) in enumerate(bars.items()):
                x = group + (k - (len(bars) - 1) / 2) * width
                colour = colours[names.index(name) % len(colours)]
                bar = axes.bar(x, height, 0.9 * width, color=colour, label=name)
                axes.bar_label(bar, fmt="%.2g", fontsize=6, padding=2)
        axes.margins(y=0.1)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_title(section, loc="left", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    handles = [Patch(color=colours[k % len(colours)]) for k in range(len(names))]
    _show_verbatim(
        figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8)
    )
    figure.suptitle(title, parse_math=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    kind = path.suffix.removeprefix(".") or "png"
    replace_file(
        path, lambda partial: figure.savefig(partial, dpi=120, format=kind), "path"
    )


def _show_verbatim(legend: Legend) -> None:
    """Show labels verbatim: matplotlib would parse a `$` as mathematics."""
    for text in legend.get_texts():
        text.set_parse_math(False)
