"""The character model's command line: presets, texts, and what it must refuse."""

import io
import sys
from dataclasses import replace

import pytest

from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import inference as charlm_inference
from experiments.charlm import train as charlm_train
from experiments.charlm.config import PRESETS, Settings
from experiments.charlm.train import Options
from tests.imdb.test_train import assert_refused

TEXT = b"to be or not to be\n" * 400


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Settings()),
        (["--hidden", "7"], Settings(hidden=7)),
        (["--preset", "best"], PRESETS["best"]),
        (["--preset=chapter"], PRESETS["chapter"]),
        (
            ["--layers", "3", "--preset", "chapter", "--clip", "2", "--tie_embeddings"],
            replace(PRESETS["chapter"], layers=3, clip=2.0, tie_embeddings=True),
        ),
    ],
)
def test_what_is_given_goes_before_the_preset(
    monkeypatch, charlm_run, arguments, expected
):
    seen = []
    monkeypatch.setattr(
        charlm_train, "train", lambda options: seen.append(options.settings)
    )
    assert charlm_run(*arguments) == (0, "", "")
    assert seen == [expected]


def test_options_reach_the_training(tmp_path, charlm_run, monkeypatch):
    seen = {}

    def fit(state, *, patience, tensorboard, **others):
        seen.update(patience=patience, tensorboard=tensorboard)
        raise KeyboardInterrupt("seen enough")

    def make_train_step(model, optimizer, mesh, weight_drop, regularization):
        seen.update(weight_drop=weight_drop, temporal=regularization.temporal)

    monkeypatch.setattr(charlm_train, "fit", fit)
    monkeypatch.setattr(charlm_train, "make_train_step", make_train_step)
    path, run = tmp_path / "text", tmp_path / "run"
    path.write_bytes(TEXT)
    files = ("--text", path, "--workdir", run, "--hidden", 2, "--embed", 2)
    options = ("--patience", 7, "--tensorboard", "--weight-drop", 0.25)
    options += ("--temporal-penalty", 0.5)
    code, out, err = charlm_run(*files, *options)
    assert (code, err) == (130, "seen enough\n")
    assert out.startswith(f"text: {path}: 6,840 characters to train, 760 to validate; ")
    expected = {"patience": 7, "tensorboard": run / "tensorboard", "weight_drop": 0.25}
    assert seen == expected | {"temporal": 0.5}


def test_a_preset_that_there_is_not(charlm_run, capsys):
    with pytest.raises(SystemExit) as exit_:
        charlm_run("--preset", "slow")
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert "slow" in err
    assert "chapter" in err


def test_help_shows_the_settings_of_the_preset(charlm_run, capsys):
    with pytest.raises(SystemExit) as exit_:
        charlm_run("--preset", "chapter", "--help")
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--cell {lstm,gru,rnn,", "--sample", "--score", "--bytes", "--smoke"):
        assert flag in out
    assert "(default: 0.005)" in out
    for group in ("settings", "cluster", "sampling", "analysis"):
        assert f" {group} options " in out
        assert f"--{group}" not in out


def test_a_short_text_shrinks_the_batch_and_says_so(tmp_path, capsys):
    text = charlm_datasets.Text("short", "to be or not to be, " * 15)
    run = charlm_train.prepare(text, Options(workdir=tmp_path))
    assert (run.settings.batch, run.settings.seq_len) == (2, 128)
    assert run.identity["batch"] == 2
    assert capsys.readouterr().err == (
        "the text is short: training on 270 characters with --batch 2 --seq-len 128 "
        "instead of 16 and 128\n"
    )
    assert run.mesh.size == 2
    with pytest.raises(ValueError, match="3 devices do not divide a batch of 2"):
        charlm_train.prepare(text, Options(workdir=tmp_path, devices=3))


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "cannot be read: No such file"),
        ("folder", [], "there is no text in it"),
        (b"", [], "there is no text in it"),
        (b"too short", [], "9 characters are too few: at least 20 are needed"),
        (b"a" * 1000, [], "all 1,000 characters are 'a': there is nothing to predict"),
        (b"a" * 1000, ["--bytes"], "all 1,000 characters are 'a'"),
        (b"a line\n" * 9 + b"\xff", [], "line 10: not UTF-8: byte 0xff at offset 63"),
        (TEXT, ["--devices", 0], "--devices must be at least 1, got 0"),
        (TEXT, ["--devices", 3], "--devices 3: there are only"),
        (
            TEXT,
            ["--devices", 2, "--batch", 15],
            "2 devices do not divide a batch of 15: give a batch that th",
        ),
        (TEXT, ["--hidden", 0], "--hidden must be at least 1"),
        (TEXT, ["--batch", 0], "--batch must be at least 1"),
        (TEXT, ["--dropout", 2], "--dropout must be from 0 to"),
        (TEXT, ["--warmup", -1], "--warmup must be from 0 to 1, got -1.0"),
        (
            TEXT,
            ["--learning-rate", "nan"],
            "--learning-rate must be finite and at leas",
        ),
        (TEXT, ["--clip", 0], "--clip must be finite and above 0, got 0.0"),
        (TEXT, ["--seed", -1], "--seed must be from 0 to 4294967295, got -1"),
        (
            TEXT,
            ["--sample", "--top-k", 9],
            "--top-k must be at most 8, the size of",
        ),
        (TEXT, ["--sample", "--prompt", "é"], "the model's vocabulary, 'é': leave"),
        (TEXT, ["--sample", "--prompt", "@/dev/null"], "the prompt is empty: give at"),
    ],
)
def test_bad_input_ends_before_anything_is_written(
    tmp_path, charlm_run, content, arguments, message
):
    path = tmp_path / "text"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    result = charlm_run("--text", path, "--workdir", tmp_path / "run", *arguments)
    assert_refused(result, message)
    assert not (tmp_path / "run").exists()


def test_a_tilde_in_the_file_of_a_prompt_is_the_home_directory(tmp_path, monkeypatch):
    (tmp_path / "prompt").write_bytes(b"to be")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert charlm_inference.read_prompt("@~/prompt") == b"to be"


def test_there_must_be_a_prompt_on_standard_input(tmp_path, charlm_run, monkeypatch):
    """Nor is there a text, which is read later."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    arguments = ("--sample", "--prompt", "-", "--text", tmp_path / "none")
    result = charlm_run("--workdir", tmp_path / "run", *arguments)
    assert_refused(result, "the prompt is empty: give at least one character")


def test_the_command_line_finds_the_presets():
    """`launch` looks for `defaults` where `main` is."""
    found = charlm_train.defaults(["--preset", "best"])
    assert found.settings == PRESETS["best"] != PRESETS["quick"]
