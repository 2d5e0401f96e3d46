"""What is shown of a run: a bar or lines, the table of epochs, TensorBoard logs."""

import re
import struct
import sys

import jax
import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments.harness import progress
from experiments.harness.progress import events, progress_bar
from tests.harness.test_training_loop import EPOCHS, STEPS, evaluate, run, stopping_at


def test_epochs_are_the_rows_of_a_table(tmp_path, capsys):
    def evaluate_more(state):
        return evaluate(state) | {"validation_accuracy": 0.91234, "held_nats": 1.5}

    _, done = run(tmp_path, evaluate=evaluate_more)
    out, err = capsys.readouterr()
    assert err == ""  # no bar where there is no terminal
    top, bottom, *rows = out.splitlines()
    assert top.split() == ["train", "validation", "held", "rows"]
    names = ["epoch", "loss", "accuracy", "nats", "seconds", "per", "second"]
    assert bottom.split() == names
    assert len(rows) == EPOCHS
    for row, line in zip(rows, done.history, strict=True):
        cells = row.split()
        assert cells[:2] == [str(line["epoch"]), f"{line['train_loss']:.4f}"]
        assert cells[2:4] == ["91.23%", "1.5000"]
        assert cells[5] == f"{line['rows_per_second']:,.0f}"
        assert len(row) == len(bottom)


def test_what_is_printed_between_rows_leaves_them_a_header(tmp_path, capsys):
    run(tmp_path, after_epoch=lambda state: print("----"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[3::4] == ["----"] * EPOCHS
    assert lines[:2] == lines[4:6] == lines[8:10]


def test_columns_keep_their_width():
    small = {"epoch": 1, "train_loss": 0.5, "seconds": 1.4, "words_per_second": 9.0}
    large = {
        "epoch": 120,
        "train_loss": 12.5,
        "seconds": 999.6,
        "words_per_second": 1e6,
    }
    assert progress.table_header(small) == progress.table_header(large)
    assert len(progress.table_row(small)) == len(progress.table_row(large))
    assert progress.table_row(large).split() == [
        "120",
        "12.5000",
        "1,000",
        "1,000,000",
    ]
    assert "norm" not in progress.table_header(small | {"train_gradient_norm": 2.0})


def test_the_bar_shows_what_is_done_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("training", 2000) as advance:
        advance(1500, "epoch 2/2")
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
    assert "1,500/2,000" in err


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


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_each_half_minute(capsys, clock):
    began = clock[0]
    with progress_bar("training", 1200) as advance:
        for second in range(0, 101):
            clock[0] = began + second
            advance(200 + second, f"epoch {1 + second // 60}/9")  # continued at 200
    out, err = capsys.readouterr()
    assert out == ""
    # From a step a second: 1200 - 210 are 16.5 minutes.
    assert err.splitlines() == [
        "epoch 1/9  210/1,200  about 16 minutes left",
        "epoch 1/9  240/1,200  about 16 minutes left",
        "epoch 2/9  270/1,200  about 16 minutes left",
        "epoch 2/9  300/1,200  about 15 minutes left",
    ]


def test_the_time_left_is_without_that_of_compilation(capsys, clock):
    with progress_bar("training", 100) as advance:
        advance(0)
        for step, seconds in [(1, 60), (2, 1), (3, 1)]:
            clock[0] += seconds
            advance(step)
    # 98 steps of a second each.
    assert capsys.readouterr().err == "training  2/100  about 2 minutes left\n"


def test_of_several_processes_the_first_prints_lines(capsys, clock, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with progress_bar("training", 10) as advance:
        for step in range(10):
            clock[0] += 100
            advance(step)
    assert capsys.readouterr() == ("", "")


def read(path):
    """The events of all files: each is framed by its length and two checksums."""
    found = []
    for file in sorted(path.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def scalars(path):
    return [
        (value.tag, event.step, value.simple_value)
        for event in read(path)
        for value in event.summary.value
    ]


def test_values_are_scalars_in_groups(tmp_path):
    with events(tmp_path, 3) as log:
        log("step", 4, {"loss": 0.5, "norm": 2.0})
        log("epoch", 4, {"loss": 0.25})
    expected = [("step/loss", 4, 0.5), ("step/norm", 4, 2.0), ("epoch/loss", 4, 0.25)]
    assert scalars(tmp_path) == expected
    started = [event.step for event in read(tmp_path) if event.session_log.status]
    assert started == [4]  # from here on what there was is superseded


def test_without_a_path_there_is_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with events(None, 0) as log:
        log("step", 1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with events(tmp_path, 0) as log:
        log("step", 1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_a_run_logs_its_steps_and_epochs_once(tmp_path):
    logs = tmp_path / "logs"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tensorboard=logs, train_step=stopping_at([STEPS + 1]))
    _, done = run(tmp_path, tensorboard=logs)
    found = scalars(logs)
    losses = [step for tag, step, _ in found if tag == "step/loss"]
    assert losses == list(range(1, EPOCHS * STEPS + 1))
    epochs = [(step, x) for tag, step, x in found if tag == "epoch/train_loss"]
    assert [step for step, _ in epochs] == [STEPS * k for k in range(1, EPOCHS + 1)]
    expected = [line["train_loss"] for line in done.history]
    assert [x for _, x in epochs] == pytest.approx(expected, rel=1e-6)  # float32
