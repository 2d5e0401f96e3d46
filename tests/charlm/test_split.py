"""Runs with a test part: who reads it and when, and what is said of all parts."""

import json
import shutil

import numpy as np
import pytest

from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import train as charlm_train
from experiments.charlm.config import SMOKE, Settings
from experiments.charlm.evaluation import Evaluation
from experiments.charlm.generator import Writer
from experiments.charlm.options import Options, continues
from experiments.harness.workdir import WorkDir
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

SETTINGS = [
    part
    for name, value in vars(SMOKE).items()
    if value != getattr(Settings(), name)
    for part in (f"--{name.replace('_', '-')}", value)
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Files of sums to train on, to validate and to test; the last has no 7."""
    path = tmp_path_factory.mktemp("parts")
    for seed, (name, size) in enumerate(
        {"train": 3000, "validation": 700, "test": 500}.items()
    ):
        content = charlm_datasets.generate(size, seed=seed).content
        (path / name).write_text(
            content.replace("7", "") if name == "test" else content
        )
    return path


def arguments(parts, path):
    files = f"--text {parts}/train --validation {parts}/validation --test {parts}/test"
    return (*files.split(), "--workdir", path, *SETTINGS)


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory, module_run):
    path = tmp_path_factory.mktemp("split") / "run"
    seen = []
    evaluate = Evaluation.__init__

    def watched(self, model, ids, mesh):
        seen.append(ids.size)
        evaluate(self, model, ids, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "__init__", watched)
        result = module_run(*arguments(parts, path))
    return path, result, seen


def test_the_test_part_is_read_once_and_by_the_best_epoch(run, parts):
    path, (code, out, err), seen = run
    assert (code, err) == (0, "")
    sizes = [
        len((parts / name).read_text()) for name in ("train", "validation", "test")
    ]
    assert seen == sizes[1:]
    assert out.startswith(
        f"text: {parts}/train: {sizes[0]:,} characters to train, {sizes[1]} to "
        f"validate, {sizes[2]} to test; "
    )
    results = json.loads((path / "results.json").read_text())
    writer = Writer.load(path)
    for part in ("validation", "test"):
        text = (parts / part).read_text()
        nats = np.concatenate([*writer.nats(writer.encode(text))]).mean()
        assert results[f"{part}_nats_stateful"] == pytest.approx(nats, rel=1e-5)
        assert results[f"{part}_bits_stateful"] == pytest.approx(nats / np.log(2), 1e-5)
    told = out.splitlines()[-3].split("; ")[1]
    nats = results["test_nats_window_64"]
    assert told.startswith(f"test nats per character {nats:.4f} windows of 64 (")
    [best] = [
        line["train_loss"]
        for line in map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        if line["epoch"] == results["best_epoch"]
    ]
    assert results["train_nats"] == best
    assert results["train_bits"] == pytest.approx(best / np.log(2), rel=1e-6)


def test_a_run_with_other_parts_is_another_one(run, parts, charlm_run, tmp_path):
    path, (_, out, _), _ = run
    given = arguments(parts, path)
    code, again, _ = charlm_run(*given)
    assert (code, again.splitlines()[1:]) == (0, out.splitlines()[-3:])
    (tmp_path / "other").write_text("8+6=14. 5+2=7. ")
    for option, name in (("--validation", "validation"), ("--test", "test")):
        place = given.index(option) + 1
        other = (*given[:place], tmp_path / "other", *given[place + 1 :])
        refused = charlm_run(*other)
        assert_refused(refused, f"other settings ({name} '")
        assert "not '15 characters, " in refused[2]
        refused = charlm_run(*given[: place - 1], *given[place + 1 :])
        assert_refused(refused, f"{name} '")
    code, _, err = charlm_run(*given, "--sample", "--length", 5)
    assert (code, err) == (0, "")
    refused = charlm_run(*other, "--sample", "--length", 5)
    assert_refused(refused, "(test '")


def test_an_interrupted_run_goes_on_with_the_same_parts_alone(run, parts, tmp_path):
    path = shutil.copytree(run[0], tmp_path / "run")
    (path / "results.json").unlink()
    workdir = WorkDir(path)
    settings = workdir.settings_as(Settings)
    parts = {name: parts / name for name in ("validation", "test")}
    options = Options(text=(parts["test"],), settings=settings, **parts)
    assert continues(options, workdir)
    for changed in ({"test": None}, {"validation": None}):
        other = {**parts, **changed}
        assert not continues(Options(text=(), settings=settings, **other), workdir)


@pytest.mark.parametrize("option", ["--validation", "--test"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "0 characters are too few: at least 2 are needed"),
        (b"1", "1 characters are too few: at least 2 are needed"),
        (b"1+\xff", "line 1: not UTF-8: byte 0xff at offset 2"),
    ],
)
def test_parts_that_are_no_text(parts, charlm_run, tmp_path, option, content, message):
    path = tmp_path / "part"
    if content is not None:
        path.write_bytes(content)
    options = ("--text", parts / "train", "--workdir", tmp_path / "run", option, path)
    result = charlm_run(*options)
    assert_refused(result, message)
    assert result[2].startswith(f"error: {option} {path}")
    assert not (tmp_path / "run").exists()


def test_a_share_of_one_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    options = Options(smoke=True, workdir=tmp_path / "run", test_share=0.1)
    charlm_train.main(options)
    size = len(charlm_datasets.generate().content)
    share = round(size / 10)
    out = capsys.readouterr().out
    assert f" {size - 2 * share:,} characters to train, {share} to validate, " in out
    assert f", {share} to test; " in out
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0.5 < found["test_nats_window_256"] < 1.4


def test_a_run_of_an_earlier_version_is_the_one_without_parts(
    charlm_smoke, charlm_run, tmp_path
):
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    settings = json.loads((path / "settings.json").read_text())
    for name in ("validation", "test", "test_share"):
        assert not settings.pop(name)
    (path / "settings.json").write_text(json.dumps(settings))
    code, out, err = charlm_run("--smoke", "--workdir", path)
    assert (code, err) == (0, "")
    assert out.startswith(f"{path} holds a finished run\n")
    assert charlm_run("--sample", "--length", 5, "--workdir", path)[0] == 0
    result = charlm_run("--smoke", "--workdir", path, "--test-share", 0.1)
    assert_refused(result, "(test_share 0.0, not 0.1)")
