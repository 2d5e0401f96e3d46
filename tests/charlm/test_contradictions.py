"""Command lines that contradict themselves or the run are refused before any work."""

from dataclasses import replace

import pytest

from experiments.charlm import activations
from experiments.charlm.config import Settings
from experiments.charlm.options import Options
from tests.imdb.test_train import assert_refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text"], "--text needs at least one file or folder"),
        (["--validation", "x"], "--validation needs --text, the part to train on"),
        (["--test", "x", "--smoke"], "--test needs --text, the part to train on"),
        (
            ["--text", "x", "--test", "x", "--test-share", 0.1],
            "give either --test or --test-share, not both",
        ),
        (
            ["--text", "x", "--validation", "x", "--test-share", 0.1],
            "give either --validation or --test-share, not both",
        ),
        (["--bytes", "--words"], "give either --bytes or --words, not both"),
        (["--vocabulary-size", 9], "--vocabulary-size needs --words"),
        (["--words", "--vocabulary-size", 2], "--vocabulary-size must be at least 3"),
        (["--test-share", 0.5], "--test-share must be from 0 to below 0.5, got 0.5"),
        (["--text", "x", "--test", ""], "--test is empty: name a path"),
        (["--score", "x", "--tensorboard"], "--tensorboard needs a training: --score"),
        (["--neurons", "x", "--tensorboard"], "--tensorboard needs a training: --sco"),
        (["--unknown", "skip"], "--unknown skip needs --sample, --score or --neurons"),
        (["--smoke", "--text", "x"], "give either --smoke or --text, not both"),
        (["--sample", "--score", "x"], "either --sample or --score and --neurons"),
        (["--sample", "--neurons", "x"], "either --sample or --score and --neurons"),
        (["--sample", "--export", "x"], "--export goes alone: without --sam"),
        (
            ["--score", "x", "--export", "x"],
            "--export goes alone: without --sam",
        ),
        (["--export", "x", "--tensorboard"], "--tensorboard needs a training: --sco"),
        (["--export", ""], "--export is empty: name a path"),
        (["--score", "x", "--html", "page"], "--html needs --neurons FILE"),
        (["--score", "x", "--top-k", 3], "--temperature and the like need --sample"),
        (["--neurons", "x", "--per-character"], "--per-character needs --score FILE"),
    ],
)
def test_options_that_contradict_each_other(charlm_run, tmp_path, arguments, message):
    path = tmp_path / "run"
    assert_refused(charlm_run("--workdir", path, *arguments), message)
    assert not path.exists()


@pytest.mark.parametrize("option", ["--score", "--export"])
def test_the_smoke_run_keeps_no_model(charlm_run, option):
    message = "need a trained model, and --smoke keeps none: give the --workdir of one"
    assert_refused(charlm_run("--smoke", option, __file__), message)


def test_a_model_of_characters_is_none_of_bytes(charlm_smoke, charlm_run):
    for option in (["--sample"], ["--score", __file__], ["--export", "x"]):
        result = charlm_run("--workdir", charlm_smoke[0], "--bytes", *option)
        assert_refused(result, "(bytes False, not True)")


def test_the_smoke_run_has_its_own_settings(charlm_smoke, charlm_run):
    arguments = ("--sample", "--smoke", "--hidden", 64, "--length", 9)
    code, out, err = charlm_run("--workdir", charlm_smoke[0], *arguments)
    assert (code, len(out), err) == (0, 10, "")


def test_the_smoke_run_has_the_cell_that_is_given(charlm_smoke, charlm_run):
    options = Options(smoke=True, settings=Settings(cell="rnn"))
    assert options.effective_settings.cell == "lstm"  # nobody typed the other one
    typed = replace(options, typed=("cell",))
    assert typed.effective_settings == replace(options.effective_settings, cell="rnn")
    arguments = ("--sample", "--smoke", "--cell", "gru")
    result = charlm_run("--workdir", charlm_smoke[0], *arguments)
    assert_refused(result, "(cell 'lstm', not 'gru')")


def test_help_names_the_limit_of_the_page(charlm_run, capsys):
    with pytest.raises(SystemExit):
        charlm_run("--help")
    assert f" {activations.LONGEST:,} " in capsys.readouterr().out
