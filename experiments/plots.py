"""Pictures of a run: learning curves and the confusion matrix, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_curves(
    path: Path,
    title: str,
    x_label: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
) -> None:
    """One panel for each quantity, one line of (x, y) points for each of its series.

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
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_confusion(
    path: Path, title: str, counts: np.ndarray, labels: Sequence[str]
) -> None:
    """The matrix `counts[truth, prediction]` with its numbers and shares of a row.

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
    figure.suptitle(title, wrap=True, fontsize=10)
    figure.savefig(path, dpi=120)
