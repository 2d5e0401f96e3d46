"""The training loop stops early when nothing gets better, and tells what it has."""

import re
import sys

import pytest

from experiments.harness.progress import progress_bar
from experiments.harness.training_loop import TrainProgress
from tests.harness.test_training_loop import STEPS, checkpoints, files_below, run


def scores(*values):
    """An evaluation that gives the epochs these scores; the greatest is the best."""
    return lambda state: {"score": values[int(state.step) // STEPS - 1]}


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ((0.5, 0.4, 0.3), 2, 3),
        ((0.5, 0.4, 0.6), 1, 2),
        ((0.5, 0.5, 0.6), 1, 2),  # as good is not better
        ((0.4, 0.5, 0.4), 2, 3),
        ((0.5, 0.4, 0.3), None, 3),
    ],
)
def test_patience_is_for_so_many_epochs(tmp_path, capsys, values, patience, epochs):
    state, done = run(tmp_path, evaluate=scores(*values), patience=patience)
    assert done.epochs == epochs
    assert int(state.step) == epochs * STEPS
    assert [line["score"] for line in done.history] == list(values[:epochs])
    told = f"stopped after epoch {epochs}: score was not better for {patience} epochs\n"
    assert capsys.readouterr().out.endswith(told) == (epochs < 3)


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    first = run(tmp_path, evaluate=scores(0.5, 0.4), patience=1)
    before = files_below(tmp_path)
    again = run(tmp_path, evaluate=None, train_step=None, patience=1)
    assert again[1].history == first[1].history
    assert files_below(tmp_path) == before
    best, _ = checkpoints(tmp_path).restore(first[0], "best")
    assert int(best.step) == STEPS


def test_with_losses_the_least_is_the_best():
    done = TrainProgress(history=[{"loss": value} for value in (3.0, 1.0, 2.0, 1.0)])
    assert done.epochs_since_best("loss", "min") == 2
    assert done.epochs_since_best("loss", "max") == 3
    assert TrainProgress().epochs_since_best("loss", "min") == 0


def test_after_each_epoch_the_caller_has_its_state(tmp_path, capsys):
    def show(state):
        print(f"after {int(state.step)}, saved {checkpoints(tmp_path).steps()[-1]}")

    run(tmp_path, after_epoch=show)
    lines = capsys.readouterr().out.splitlines()
    # Each below a row of its own and the two lines of a header.
    assert lines[3::4] == [f"after {n}, saved {n}" for n in (4, 8, 12)]


def test_the_bar_leaves_what_is_printed_where_it_goes(monkeypatch, capsys):
    """To a file, while standard error is a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("training", 10) as advance:
        advance(5)
        print("epoch 1")
    out, err = capsys.readouterr()
    assert out == "epoch 1\n"
    assert "epoch 1" not in err
    assert not sys.stdout.isatty()


def test_the_bar_tells_epoch_loss_and_speed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    run(tmp_path)
    err = capsys.readouterr().err
    assert re.search(r"epoch 3/3  loss \d\.\d{3}  [\d,]+ rows/second", err)
