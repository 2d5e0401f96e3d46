"""What a training run shows of its progress: a bar on terminals."""

from experiments.harness.progress import progress_bar


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
