"""Pictures: what is drawn, and where."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.harness import plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, instead of files."""
    saved = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: saved.append(figure))
    return saved


def test_curves_have_a_panel_for_each_quantity(figures):
    series = {"train": [(1, 0.7), (2, 0.4)], "validation": [(1, 0.6), (2, 0.5)]}
    panels = {"loss": series, "accuracy": {"train": [(1, 0.5)]}}
    plots.plot_curves(Path("unused"), "run", "epoch", panels)
    [figure] = figures
    assert figure.get_suptitle() == "run"
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, lines in zip(figure.axes, panels.values(), strict=True):
        assert axes.get_xlabel() == "epoch"
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert drawn == {n: [list(p) for p in points] for n, points in lines.items()}


def test_rates_have_a_line_at_the_suggested_one(figures):
    rates, losses, smoothed = (0.1, 1.0, 10.0), (3.0, 1.0, 2.0), (3.0, 1.9, 1.95)
    plots.plot_rates(Path("unused"), "run", rates, losses, smoothed, 0.5)
    plots.plot_rates(Path("unused"), "run", rates, losses, smoothed, None)
    for figure, marks in zip(figures, (1, 0), strict=True):
        [axes] = figure.axes
        assert axes.get_xscale() == "log"
        assert axes.get_ylim() == pytest.approx((1.9 - 1.1, 3.0 + 2.2))
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert drawn.pop("loss") == [list(p) for p in zip(rates, losses, strict=True)]
        found = drawn.pop("smoothed loss")
        assert found == [list(p) for p in zip(rates, smoothed, strict=True)]
        assert len(drawn) == marks
        if marks:
            assert {x for x, _ in drawn["suggested: 5.0e-01"]} == {0.5}


def test_confusion_has_counts_and_shares_of_the_truth(figures):
    counts = np.array([[1500, 500], [0, 0]])
    plots.plot_confusion(Path("unused"), "run", counts, ["no", "yes"])
    [figure] = figures
    [axes] = figure.axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {
        (0, 0): "1,500\n75.0%",
        (1, 0): "500\n25.0%",  # x is the prediction, y the truth
        (0, 1): "0\n0.0%",
        (1, 1): "0\n0.0%",
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no", "yes"]
    assert axes.get_ylabel() == "true"
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]


def test_bars_stand_in_groups_each_name_in_one_colour(figures):
    panels = {
        "LSTM": {"64": {"ours": 0.5, "theirs": 1.0}, "128": {"ours": 2.0}},
        "GRU": {"64": {"theirs": 1.0, "ours": 4.0}},
    }
    plots.plot_bars(Path("unused"), "run", panels)
    [figure] = figures
    colours = {}
    for axes, (section, groups) in zip(figure.axes, panels.items(), strict=True):
        assert axes.get_title(loc="left") == section
        assert axes.get_ylim()[0] == 0  # what is twice as high is twice as much
        assert [label.get_text() for label in axes.get_xticklabels()] == [*groups]
        drawn = [(bars.get_label(), bars.patches[0]) for bars in axes.containers]
        expected = [item for bars in groups.values() for item in bars.items()]
        assert [(name, bar.get_height()) for name, bar in drawn] == expected
        places = [k for k, bars in enumerate(groups.values()) for _ in bars]
        for (name, bar), place in zip(drawn, places, strict=True):
            assert abs(bar.get_x() + bar.get_width() / 2 - place) < 0.5
            colours.setdefault(name, set()).add(bar.get_facecolor())
    assert [len(found) for found in colours.values()] == [1, 1]
    assert colours["ours"] != colours["theirs"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "theirs"]


STRANGE = r"_\$nope$ $\frac$"  # matplotlib hides the first, and would parse the last


def test_names_are_shown_as_they_are(tmp_path, monkeypatch):
    """Files are written, too: that is when mathematics would be parsed."""
    figures, save, path = [], Figure.savefig, tmp_path / "picture.png"

    def saving(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", saving)
    series = {STRANGE: [(1, 0.5)], "other": [(1, 0.7)]}
    plots.plot_curves(path, STRANGE, "epoch", {"loss": series})
    plots.plot_confusion(path, STRANGE, np.eye(2, dtype=int), ["no", "yes"])
    bars = {"64": {STRANGE: 0.5, "other": 1.0}}
    plots.plot_bars(path, STRANGE, {"layers": bars})
    assert [figure.get_suptitle() for figure in figures] == [STRANGE] * 3
    for legend in (figures[0].axes[0].get_legend(), *figures[2].legends):
        assert [text.get_text() for text in legend.get_texts()] == [STRANGE, "other"]
