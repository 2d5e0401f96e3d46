"""What a training run shows of its progress: a line an epoch, a bar on terminals."""

from experiments.fit import progress_bar
from tests.test_fit import EPOCHS, evaluate, run


def test_an_epoch_is_one_readable_line(tmp_path, capsys):
    def evaluate_more(state):
        return evaluate(state) | {"validation_accuracy": 0.91234, "held_nats": 1.5}

    run(tmp_path, evaluate=evaluate_more)
    out, err = capsys.readouterr()
    assert err == ""  # no bar where there is no terminal
    lines = out.splitlines()
    assert len(lines) == EPOCHS
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"epoch {number}  ")
        assert "  validation accuracy 91.23%  held nats 1.5000  " in line
        assert line.endswith(" rows/second")


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
