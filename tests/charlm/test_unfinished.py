"""Programs at work on a run that is not finished: they go on with it, or say so."""

import json
import shutil

import pytest

from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import train as charlm_train
from experiments.charlm.config import SMOKE, Settings
from tests.harness.test_lock import another_process
from tests.imdb.test_train import assert_refused


@pytest.fixture
def unfinished(charlm_smoke, tmp_path):
    """All steps are done, the results are not written."""
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    (path / "results.json").unlink()
    return path


@pytest.fixture
def sampled(charlm_smoke, charlm_run):
    """What the finished run writes."""
    _, out, _ = charlm_run("--sample", "--workdir", charlm_smoke[0], "--length", 20)
    assert len(out) == 21
    return out


def told(path, doing):
    return f"the run in {path} is not finished: {doing} with what it has so far\n"


def test_an_interrupted_sample_goes_on_to_train(unfinished, sampled, charlm_run):
    arguments = ("--sample", "--smoke", "--workdir", unfinished, "--length", 20)
    code, out, err = charlm_run(*arguments)
    assert (code, out) == (0, sampled)
    assert err.startswith(f"continuing in {unfinished} after step 84\n")
    assert json.loads((unfinished / "results.json").read_text())["best_epoch"] > 0
    assert charlm_run(*arguments) == (0, sampled, "")


def test_it_goes_on_with_a_text_that_is_spelled_otherwise(
    unfinished, sampled, charlm_run, tmp_path
):
    settings = json.loads((unfinished / "settings.json").read_text())
    settings["dataset"] = "text: text"
    (unfinished / "settings.json").write_text(json.dumps(settings))
    path = tmp_path / "text"
    path.write_text(charlm_datasets.generate(seed=SMOKE.seed).content)
    options = [
        part
        for name, value in vars(SMOKE).items()
        if value != getattr(Settings(), name)
        for part in (f"--{name.replace('_', '-')}", value)
    ]
    arguments = ("--sample", "--workdir", unfinished, "--length", 20, "--text", path)
    code, out, err = charlm_run(*arguments, *options)
    assert (code, out) == (0, sampled)
    assert err.startswith(f"continuing in {unfinished} after step 84\n")
    results = json.loads((unfinished / "results.json").read_text())
    assert results["dataset"] == f"text: {path}"


def test_beside_a_program_at_work_it_writes_with_what_there_is(
    unfinished, sampled, charlm_run
):
    arguments = ("--sample", "--smoke", "--workdir", unfinished, "--length", 20)
    with another_process(unfinished) as process:
        result = charlm_run(*arguments)
        process.kill()
    why = (
        f"training does not go on: another program is at work in {unfinished}: wait "
        "for its end, or give another --workdir\n"
    )
    assert result == (0, sampled, why + told(unfinished, "writing"))
    assert not (unfinished / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "changed", "goes_on"),
    [
        (["--smoke"], {}, True),
        (["--smoke"], {"batch": 3, "seq_len": 5}, True),  # lessened by a short text
        (["--smoke"], {"state_reset_prob": 0.5}, False),
        (["--smoke"], {"bytes": True}, False),
        (["--smoke"], {"dataset": "text: mine"}, False),
        (["--smoke", "--seed", 3], {}, False),
        ([], {}, False),
    ],
)
def test_it_trains_with_the_settings_of_the_run_alone(
    unfinished, charlm_run, monkeypatch, arguments, changed, goes_on
):
    seen = []
    monkeypatch.setattr(
        charlm_train, "train", lambda given, _: seen.append(given.workdir)
    )
    monkeypatch.setattr(charlm_train.inference, "write", lambda *_, **__: None)
    settings = json.loads((unfinished / "settings.json").read_text())
    (unfinished / "settings.json").write_text(json.dumps(settings | changed))
    result = charlm_run("--sample", "--workdir", unfinished, *arguments)
    assert result == (0, "", "")
    assert seen == [unfinished] * goes_on


def test_other_settings_are_refused(unfinished, charlm_run):
    arguments = ("--sample", "--workdir", unfinished, "--hidden", 77)
    assert_refused(charlm_run(*arguments), "hidden 32, not 77")


@pytest.mark.parametrize(
    ("option", "doing"), [("--score", "judging"), ("--neurons", "reading")]
)
def test_reading_says_so(unfinished, charlm_run, tmp_path, option, doing):
    path, page = tmp_path / "text", tmp_path / "page.html"
    path.write_text("8+6=14. ")
    more = ("--html", page) if option == "--neurons" else ()
    code, _, err = charlm_run("--workdir", unfinished, option, path, *more)
    assert (code, err) == (0, told(unfinished, doing))
