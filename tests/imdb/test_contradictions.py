"""Command lines that contradict themselves or the run are refused before any work."""

import json
from dataclasses import asdict

import pytest

from experiments.imdb import attribution
from experiments.imdb import datasets as imdb_datasets
from experiments.imdb import train as imdb_train
from experiments.imdb.model import Settings
from tests.imdb.test_train import GOOD, assert_refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predict"], "--predict needs at least one text, or -"),
        (["--explain"], "--explain needs at least one text, or -"),
        (["--predict", "a", "--explain", "b"], "either --predict or --explain, not b"),
        (["--predict", "a", "--html", "page"], "--html needs --explain"),
        (["--smoke", "--html", "page"], "--html needs --explain"),
        (["--predict", "a", "--tensorboard"], "--tensorboard needs a training: --pre"),
        (["--explain", "a", "--tensorboard"], "--tensorboard needs a training: --exp"),
        (["--predict", "a", "--export", "x"], "either --predict or --export, not b"),
        (["--smoke", "--csv", "x"], "give either --smoke or --csv, not both"),
        (["--predict-csv", "x", "--explain", "b"], "either --predict-csv or --explain"),
        (["--predict", "a", "--out", "x"], "--out needs --predict-csv"),
        (["--lr-find", "--predict", "a"], "give either --lr-find or --predict, not b"),
        (["--lr-find", "--tensorboard"], "give either --lr-find or --tensorboard, not"),
        (["--lr-find", "--learning-rate", 1], "--lr-find has rates and steps of its o"),
        (["--test-csv", "x"], "--test-csv needs --csv"),
        (["--multi-label", ","], "--multi-label needs --csv"),
        (["--smoke", "--multi-label", ","], "--multi-label needs --csv"),
        (["--csv", "x", "--multi-label", ""], "--multi-label is empty: name the sep"),
        (["--unlabelled", "x"], "--unlabelled needs --csv"),
        (["--predict-csv", "x", "--label-column", "y"], "--label-column needs --csv"),
        (["--text-column", "x"], "--text-column needs --csv or --predict-csv"),
        (
            ["--csv", "x", "--unlabelled", "y", "--no-pretrain"],
            "give either --unlabelled or --no-pretrain, not both",
        ),
        (["--preset", "best", "--embed-rate", 1], "--embed-rate is not for --preset b"),
        (["--encoder", "x", "--no-bidirectional"], "--bidirectional is not for --enc"),
        (["--encoder", "x", "--pretrain"], "--pretrain is not for --preset best an"),
    ],
)
def test_options_that_contradict_each_other(program_run, tmp_path, arguments, message):
    path = tmp_path / "run"
    assert_refused(program_run("--workdir", path, *arguments), message)
    assert not path.exists()


def test_a_text_may_be_any_word(program_run, tmp_path):
    """As one that stands for no value elsewhere."""
    result = program_run("--workdir", tmp_path, "--predict", "None")
    assert_refused(result, f"there is no trained model in {tmp_path}")


@pytest.mark.parametrize(
    "option", ["--predict", "--explain", "--predict-csv", "--export"]
)
def test_the_smoke_run_keeps_no_model(program_run, option):
    message = "needs a trained model, and --smoke keeps none: give the --workdir of one"
    assert_refused(program_run("--smoke", option, "fine"), f"{option} {message}")


@pytest.mark.parametrize("option", ["--predict", "--explain"])
def test_a_sentiment_model_is_no_other_one(tmp_path, program_run, option):
    """By settings and reviews; a run without a vocabulary is refused behind that."""
    path, table = tmp_path / "run", tmp_path / "mine.csv"
    path.mkdir()
    table.write_text(f"text,label\n{GOOD}")
    known = asdict(Settings(hidden=3, seed=1))
    known["reviews"] = imdb_datasets.read_csv(table).fingerprint
    (path / "settings.json").write_text(json.dumps(known))

    def result(*more):
        return program_run("--workdir", path, option, "fine", *more)

    same = ("--hidden", 3, "--seed", 1, "--csv", table)
    for more in ([], same, ["--smoke", "--hidden", 9]):
        assert_refused(result(*more), f"{path}/vocab.txt")
    assert_refused(result("--smoke", "--cell", "gru"), "(cell 'lstm', not 'gru')")
    assert_refused(result("--hidden", 9), "(hidden 3, not 9, seed 1, not 0)")
    assert_refused(result("--seed", 2), "hidden 3, not 64, seed 1, not 2")
    table.write_text(f"text,label\n{GOOD}fine,1\n")
    assert_refused(result("--csv", table), "(reviews '40 reviews, ")


@pytest.mark.parametrize("keeps", [True, False])
def test_the_smoke_run_has_the_seed_that_is_given(
    program_run, tmp_path, monkeypatch, keeps
):
    def learn(run, *_):
        same = run.data.fingerprint == imdb_datasets.generate(seed=3).fingerprint
        raise KeyboardInterrupt(f"{run.identity['seed']} {same}")

    monkeypatch.setattr(imdb_train, "learn", learn)
    where = ("--workdir", tmp_path) if keeps else ()
    assert program_run("--smoke", "--seed", 3, *where) == (130, "", "3 True\n")


def test_help_names_the_limits_of_the_page(program_run, capsys):
    with pytest.raises(SystemExit):
        program_run("--help")
    text = capsys.readouterr().out
    for number in (attribution.MOST_TEXTS, attribution.LONGEST_TEXT):
        assert f" {number:,} " in text
