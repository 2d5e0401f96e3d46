"""Curves of several runs: which points, and what cannot be plotted."""

import sys

import pytest
from matplotlib.image import imread

from experiments.harness import cli, plots
from experiments.harness.workdir import WorkDir
from experiments.plot import run as plot
from tests.imdb.test_train import assert_refused

FIRST = [
    {"epoch": 1, "train_loss": 0.7, "validation_loss": 0.6, "seconds": 9.0},
    {"epoch": 2, "train_loss": 0.5, "validation_loss": 0.4, "seconds": 8.0},
]
SECOND = [{"epoch": 1, "train_loss": 0.9, "validation_accuracy": 0.8, "seconds": 7.0}]


@pytest.fixture
def runs(tmp_path):
    paths = tmp_path / "first", tmp_path / "second"
    for path, history in zip(paths, (FIRST, SECOND), strict=True):
        path.mkdir()
        WorkDir(path).write_metrics(history)
    return paths


@pytest.fixture
def plot_run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
        code = cli.run(plot.main, plot.Options, "plot", plot.__doc__)
        return code, *capsys.readouterr()

    return run


def test_a_panel_for_each_metric_and_a_line_for_each_run():
    assert plot.panels({"a": FIRST, "b": SECOND}) == {
        "train loss": {"a": [(1, 0.7), (2, 0.5)], "b": [(1, 0.9)]},
        "validation loss": {"a": [(1, 0.6), (2, 0.4)]},
        "validation accuracy": {"b": [(1, 0.8)]},
    }
    assert plot.panels({"a": FIRST}, ["seconds"]) == {
        "seconds": {"a": [(1, 9.0), (2, 8.0)]}
    }


def test_the_picture_is_of_the_runs(runs, plot_run, tmp_path, monkeypatch):
    drawn = {}

    def record(path, title, x_label, panels):
        drawn.update(panels)
        plots.plot_curves(path, title, x_label, panels)

    monkeypatch.setattr(plot, "plot_curves", record)
    out = tmp_path / "out.png"
    assert plot_run(*runs, "--out", out) == (
        0,
        f"{out} shows train loss, validation loss, validation accuracy\n",
        "",
    )
    assert drawn == plot.panels({str(runs[0]): FIRST, str(runs[1]): SECOND})
    assert imread(out).shape[1] > 1000  # three panels side by side


def test_the_command_line_says_over_what(runs, plot_run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "plot_curves", lambda *arguments: drawn.append(arguments))
    out, name = tmp_path / "out.png", str(runs[0])
    code, _, err = plot_run(name, "--over", "seconds", "--out", out)
    assert (code, err) == (0, "")
    panels = {
        "train loss": {name: [(9.0, 0.7), (17.0, 0.5)]},
        "validation loss": {name: [(9.0, 0.6), (17.0, 0.4)]},
    }
    assert drawn == [(out, "", "seconds", panels)]


def test_it_names_the_file_that_it_writes(runs, plot_run, tmp_path):
    code, out, err = plot_run(*runs, "--out", tmp_path / "both")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path}/both.png shows ")
    assert (tmp_path / "both.png").read_bytes()[1:4] == b"PNG"


def test_what_cannot_be_plotted(runs, plot_run, tmp_path):
    out = ("--out", tmp_path / "none" / "out.png")
    assert_refused(plot_run(), "there is nothing to plot: name at least one work")
    assert_refused(plot_run(tmp_path), f"{tmp_path}/metrics.jsonl: there is none")
    assert_refused(plot_run(*runs, "--metrics", "nats"), "no run has the metric 'nats'")
    assert_refused(plot_run(*runs, *out), f"cannot write to {out[1]} (No such file")
    for content in ("{", "[1]", '"a"', '[["epoch", 1]]', "[" * 10**5):
        (runs[1] / "metrics.jsonl").write_text(content)
        assert_refused(plot_run(*runs), f"{runs[1]}/metrics.jsonl is damaged (")
    WorkDir(runs[1]).write_metrics([{"epoch": 1, "seconds": 2.0, "score": 3.0}])
    assert_refused(
        plot_run(runs[1]),
        "no run has a loss or a validation: give --metrics of epoch, seconds, score",
    )


@pytest.mark.parametrize("over", ["epoch", "seconds"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epoch": None}, "line 2: 'epoch' is None, not a number"),
        ({"seconds": None}, "line 2: 'seconds' is None, not a number"),
        ({"epoch": "2"}, "line 2: 'epoch' is '2', not a number"),
        ({"train_loss": "low"}, "line 2: 'train_loss' is 'low', not a number"),
        ({"train_loss": [1]}, "line 2: 'train_loss' is [1], not a number"),
        ({"train_loss": True}, "line 2: 'train_loss' is True, not a number"),
        ({"train_loss": float("nan")}, "line 2: 'train_loss' is nan, not a number"),
        ({"train_loss": 10**400}, "line 2: 'train_loss' is 1000000000"),
        ({"validation_\ud800": 1}, r"line 2: 'validation_\ud800' is 1, not a number"),
    ],
)
def test_a_line_that_is_not_an_epoch_s(runs, plot_run, over, changed, message):
    line = {k: v for k, v in (FIRST[1] | changed).items() if v is not None}
    WorkDir(runs[0]).write_metrics([FIRST[0], line])
    result = plot_run(*runs, "--over", over)
    assert_refused(result, f"{runs[0]}/metrics.jsonl is damaged ({message}")
    assert result[2].endswith("): remove that line\n")


def test_a_line_that_was_written_in_part(runs, plot_run):
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tr')
    result = plot_run(*runs)
    lines = len((runs[0] / "metrics.jsonl").read_text().splitlines())
    assert_refused(result, f"{runs[0]}/metrics.jsonl is damaged (line {lines}: ")
    assert result[2].endswith("): remove that line\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "cannot write to . (a folder): give another --out"),
        ("x.foo", "--out x.foo: Format 'foo' is not supported"),
    ],
)
def test_a_picture_that_cannot_be(runs, plot_run, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert_refused(plot_run(*runs, "--out", name), message)
    assert sorted(tmp_path.iterdir()) == before


def test_seconds_add_up_over_the_epochs():
    history = [
        {"epoch": 1, "train_loss": 3.0, "seconds": 10.0},
        {"epoch": 2, "train_loss": 2.0, "seconds": 5.0, "validation_loss": 2.5},
    ]
    assert plot.panels({"a": history}, over="seconds") == {
        "train loss": {"a": [(10.0, 3.0), (15.0, 2.0)]},
        "validation loss": {"a": [(15.0, 2.5)]},
    }
