"""The table that training prints: a header, and a row for each epoch."""

from experiments.harness import progress as harness_progress
from tests.harness.test_training_loop import EPOCHS, evaluate, run


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
    assert harness_progress.table_header(small) == harness_progress.table_header(large)
    assert len(harness_progress.table_row(small)) == len(
        harness_progress.table_row(large)
    )
    assert harness_progress.table_row(large).split() == [
        "120",
        "12.5000",
        "1,000",
        "1,000,000",
    ]
    assert "norm" not in harness_progress.table_header(
        small | {"train_gradient_norm": 2.0}
    )
