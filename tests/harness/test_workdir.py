"""The directory of a run: one program's at a time, and never half written."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxrnn
from experiments.harness.files import write_json
from experiments.harness.provenance import environment
from experiments.harness.workdir import ClaimError, WorkDir, fingerprint
from jaxrnn.text import Vocab
from tests.imdb.test_train import assert_refused

SETTINGS = {"cell": "lstm", "pooling": ("max", "mean"), "seed": 0, "rate": 0.1}


def claim(path, settings):
    with WorkDir(path).claimed(settings):
        pass


def begin(path):
    """A run that has something to keep."""
    claim(path, SETTINGS)
    WorkDir(path).finish({"accuracy": 1.0})


def test_claiming_writes_the_settings_and_leaves_nothing_else(tmp_path):
    workdir = WorkDir(tmp_path / "deep" / "run")
    assert workdir.settings is None
    assert workdir.results is None
    assert not workdir.path.exists()
    claim(workdir.path, SETTINGS)
    names = sorted(file.name for file in workdir.path.iterdir())
    assert names == ["lock", "settings.json"]
    assert workdir.settings == SETTINGS | {"pooling": ["max", "mean"]}
    assert json.loads((workdir.path / "settings.json").read_text()) == workdir.settings


def test_the_same_settings_may_claim_again(tmp_path):
    begin(tmp_path)
    before = (tmp_path / "settings.json").read_bytes()
    claim(tmp_path, dict(reversed(SETTINGS.items())))
    assert (tmp_path / "settings.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "differences"),
    [
        ({"seed": 1}, "(seed 0, not 1)"),
        (
            {"seed": 1, "pooling": ("max",)},
            "(pooling ['max', 'mean'], not ['max'], seed 0, not 1)",
        ),
        ({"layers": 2}, "(layers None, not 2)"),
    ],
)
def test_other_settings_are_refused_with_every_difference(
    tmp_path, changed, differences
):
    begin(tmp_path)
    with pytest.raises(ValueError, match="belongs to a run with other") as error:
        claim(tmp_path, SETTINGS | changed)
    assert f"{tmp_path} belongs" in str(error.value)
    assert differences in str(error.value)
    assert "\n" not in str(error.value)
    assert WorkDir(tmp_path).settings == SETTINGS | {"pooling": ["max", "mean"]}


def test_the_same_data_may_be_spelled_otherwise(tmp_path):
    own = SETTINGS | {"dataset": "csv: mine.csv", "reviews": "40 reviews, 0123"}
    claim(tmp_path, own)
    WorkDir(tmp_path).finish({"accuracy": 1.0})
    claim(tmp_path, own | {"dataset": "csv: /home/me/mine.csv"})
    for dataset, reviews, differences in (
        ("text: mine.csv", own["reviews"], "dataset 'csv: mine.csv', not 'text: mine"),
        ("csv: b", "9 reviews, 45", "dataset 'csv: mine.csv', not 'csv: b', reviews '"),
    ):
        with pytest.raises(ValueError, match=f"other settings .{differences}"):
            claim(tmp_path, own | {"dataset": dataset, "reviews": reviews})
    assert (WorkDir(tmp_path).settings or {})["dataset"] == "csv: mine.csv"


def test_a_setting_that_is_no_longer_there_is_a_difference(tmp_path):
    begin(tmp_path)
    fewer = {name: value for name, value in SETTINGS.items() if name != "rate"}
    with pytest.raises(ValueError, match=r"\(rate 0.1, not None\)"):
        claim(tmp_path, fewer)


@pytest.mark.parametrize(
    ("below", "reason"), [("", "File exists"), ("run/1", "Not a directory")]
)
def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path, below, reason):
    file = tmp_path / "file"
    file.write_text("mine")
    path = file / below
    with pytest.raises(ValueError, match=f"cannot write to .*{reason}.*--workdir") as e:
        claim(path, SETTINGS)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    assert file.read_text() == "mine"


def test_a_directory_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "settings.json.partial").mkdir()  # chmod would not stop root
    with pytest.raises(ValueError, match=r"cannot write to .*Is a directory"):
        claim(tmp_path, SETTINGS)
    assert WorkDir(tmp_path).settings is None


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("call", ["mkdir", "open", "write_text", "replace"])
def test_a_disk_that_takes_nothing_more(tmp_path, monkeypatch, code, call):
    def refuse(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refuse)
        with pytest.raises(ValueError, match=r"^cannot write to ") as error:
            claim(tmp_path, SETTINGS)
    found = str(error.value)
    name = "/settings.json" if call in ("write_text", "replace") else ""
    assert found.startswith(f"cannot write to {tmp_path}{name} ({os.strerror(code)}): ")
    full = code in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room there, or give" if full else "give"
    assert found.endswith(f": {remedy} another --workdir")
    assert "\n" not in found
    assert WorkDir(tmp_path).settings is None
    claim(tmp_path, SETTINGS)
    assert WorkDir(tmp_path).settings is not None


@pytest.mark.parametrize("name", ["settings", "results"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"seed": 0', "Expecting ',' delimiter"),
        (b'{"seed": "\xff"}', "utf-8"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_damaged_files_are_named_and_kept(tmp_path, name, content, reason):
    workdir = WorkDir(tmp_path)
    path = tmp_path / f"{name}.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.json is damaged .*{reason}") as e:
        getattr(workdir, name)
    assert "\n" not in str(e.value)
    if name == "settings":
        with pytest.raises(ValueError, match="damaged"):
            claim(tmp_path, SETTINGS)
    assert path.read_bytes() == content


def test_finished_is_who_has_results(tmp_path):
    workdir = WorkDir(tmp_path)
    claim(tmp_path, SETTINGS)
    assert workdir.results is None
    workdir.finish({"accuracy": 0.5, "confusion": [[1, 2], [3, 4]]})
    again = WorkDir(tmp_path)
    found = {"accuracy": 0.5, "confusion": [[1, 2], [3, 4]]}
    assert again.results == environment() | found
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["lock", "results.json", "settings.json"]


def test_metrics_are_one_json_object_a_line_and_replaced_whole(tmp_path):
    workdir = WorkDir(tmp_path)
    lines = [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 1e-9}]
    workdir.write_metrics(lines[:1])
    workdir.write_metrics(lines)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == lines
    assert text.endswith("}\n")


def test_a_write_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    workdir = WorkDir(tmp_path)
    workdir.finish({"accuracy": 0.5})

    def full(self, text, **_):
        with open(self, "w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_text", full)
    with pytest.raises(
        ValueError, match=r"results.json \(No space left on device\): make"
    ):
        workdir.finish({"accuracy": 0.9})
    assert workdir.results == environment() | {"accuracy": 0.5}


def test_checkpoints_are_inside(tmp_path):
    assert WorkDir(tmp_path).checkpoints == tmp_path / "checkpoints"


def test_the_environment_names_versions_and_machine(monkeypatch):
    """Of the cores those that the process may use, as `taskset` says."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 6}, raising=False)
    found = environment()
    assert found["versions"]["jaxrnn"] == jaxrnn.__version__
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert {"flax", "optax"} <= found["versions"].keys()
    assert found["machine"]["cores"] == 3
    assert found["machine"]["system"] == platform.system()
    assert json.loads(json.dumps(found)) == found


@dataclass(frozen=True)
class Settings:
    cell: str
    seed: int


def test_the_settings_come_back_as_a_dataclass(tmp_path):
    workdir = WorkDir(tmp_path)
    claim(tmp_path, SETTINGS)
    assert workdir.settings_as(Settings) == Settings("lstm", 0)


@pytest.mark.parametrize("settings", [None, {"seed": 1}])
def test_settings_of_another_version_are_refused(tmp_path, settings):
    workdir = WorkDir(tmp_path)
    if settings is not None:
        claim(tmp_path, settings)
    missing = "cell, seed" if settings is None else "cell"
    message = f"settings.json is of another program or version: it has no {missing}"
    with pytest.raises(ValueError, match=re.escape(message)):
        workdir.settings_as(Settings)


def test_only_the_vocabulary_of_the_run_is_taken(tmp_path):
    workdir, vocab = WorkDir(tmp_path), Vocab(("x", "\n"))
    claim(tmp_path, {"vocabulary": fingerprint(vocab)})
    workdir.write_vocab(vocab)
    assert workdir.vocab == vocab
    workdir.write_vocab(Vocab(("x", "y")))
    with pytest.raises(ValueError, match=r"is not the vocabulary .* has 2 tokens, "):
        _ = workdir.vocab


SEED = {"seed": 0}

# Another process, that knows nothing of ours but the name of the file.
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process


def test_the_second_is_refused_until_the_first_is_done(tmp_path):
    with WorkDir(tmp_path).claimed(SEED):
        message = f"another program is at work in {tmp_path}: wait for its end, or give"
        with (
            pytest.raises(ValueError, match=message) as error,
            WorkDir(tmp_path).claimed(SEED),
        ):
            raise AssertionError("claimed twice")
        assert "\n" not in str(error.value)
    with WorkDir(tmp_path).claimed(SEED):
        assert WorkDir(tmp_path).settings == SEED


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_lets_go_of_it(tmp_path, error):
    with pytest.raises(error), WorkDir(tmp_path).claimed(SEED):
        raise error
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_so_do_other_settings(tmp_path):
    with WorkDir(tmp_path).claimed(SEED):
        WorkDir(tmp_path).finish({"accuracy": 1.0})
    with (
        pytest.raises(ValueError, match="other settings"),
        WorkDir(tmp_path).claimed({"seed": 1}),
    ):
        raise AssertionError("claimed")
    with WorkDir(tmp_path).claimed(SEED):
        assert (tmp_path / "lock").read_bytes() == b""


def test_a_run_without_a_checkpoint_makes_room_for_other_settings(tmp_path):
    """It ended before there was anything to keep: its settings were the reason."""
    for settings in (SEED, {"seed": 1}):
        with WorkDir(tmp_path).claimed(settings):
            assert WorkDir(tmp_path).settings == settings


def test_a_killed_process_leaves_nothing_to_clean_up(tmp_path):
    with another_process(tmp_path) as process:
        with (
            pytest.raises(ValueError, match="another program is at work"),
            WorkDir(tmp_path).claimed(SEED),
        ):
            raise AssertionError("claimed")
        assert WorkDir(tmp_path).settings is None
        process.kill()
    with WorkDir(tmp_path).claimed(SEED):
        assert WorkDir(tmp_path).settings == SEED


def test_both_programs_refuse_and_write_nothing(tmp_path, program_run, charlm_run):
    with another_process(tmp_path) as process:
        for run in (program_run, charlm_run):
            result = run("--smoke", "--workdir", tmp_path)
            assert_refused(result, f"another program is at work in {tmp_path}")
        assert [file.name for file in tmp_path.iterdir()] == ["lock"]
        process.kill()


EXTENDED = {"epochs": 4, "patience": None, "seed": 0, "dataset": "csv: a"}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "changed",
    [{"epochs": 5}, {"epochs": 9, "patience": 2}, {"patience": 3, "dataset": "csv: b"}],
)
def test_more_epochs_or_patience_let_a_run_go_on(tmp_path, finished, changed):
    claim(tmp_path, EXTENDED)
    (tmp_path / "checkpoints" / "step_1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_1" / "record.json").write_text("{}")
    if finished:
        WorkDir(tmp_path).finish({"accuracy": 1.0})
    claim(tmp_path, EXTENDED | changed)
    assert WorkDir(tmp_path).settings == EXTENDED | changed
    assert WorkDir(tmp_path).results is None


@pytest.mark.parametrize("changed", [{"epochs": 3}, {"epochs": 5, "seed": 1}])
def test_fewer_epochs_or_other_settings_besides_do_not(tmp_path, changed):
    claim(tmp_path, EXTENDED)
    WorkDir(tmp_path).finish({"accuracy": 1.0})
    with pytest.raises(ValueError, match="epochs 4, not"):
        claim(tmp_path, EXTENDED | changed)
    assert WorkDir(tmp_path).settings == EXTENDED
    assert WorkDir(tmp_path).results is not None


def test_the_refusal_names_what_was_typed(tmp_path):
    begin(tmp_path)
    others = SETTINGS | {"seed": 1, "rate": 0.2}
    for typed, differences in (
        (["rate", "cell"], "(rate 0.1, not 0.2)"),
        (["cell", "workdir"], "(rate 0.1, not 0.2, seed 0, not 1)"),
    ):
        with (
            pytest.raises(ValueError, match="give another --workdir, or its") as error,
            WorkDir(tmp_path).claimed(others, typed),
        ):
            raise AssertionError("claimed")
        assert differences in str(error.value)
    with pytest.raises(ValueError, match="used with the run's own settings, leave th"):
        WorkDir(tmp_path).require({"seed": 1})


@pytest.mark.parametrize(
    "name", ["settings.json", "results.json", "vocab.txt", "metrics.jsonl"]
)
def test_a_file_that_cannot_be_read_names_the_remedy(tmp_path, name):
    (tmp_path / name).mkdir()  # chmod would not stop root
    attribute = name.split(".")[0]
    message = f"{tmp_path}/{name} cannot be read .Is a directory.: make it readable, or"
    with pytest.raises(ValueError, match=message) as error:
        getattr(WorkDir(tmp_path), attribute)
    assert str(error.value).endswith("give another --workdir")


def test_more_epochs_keep_the_results_of_before(tmp_path):
    workdir = WorkDir(tmp_path)
    with workdir.claimed({"seed": 0, "epochs": 1}):
        workdir.finish({"accuracy": 0.5})
    before = (tmp_path / "results.json").read_bytes()
    claim(tmp_path, {"seed": 0, "epochs": 2})
    assert workdir.results is None
    assert (tmp_path / "results-before.json").read_bytes() == before


@pytest.mark.parametrize("left", ["results.json", "checkpoints/step_00000001"])
def test_a_run_without_its_settings_is_nobodys(tmp_path, left):
    """Else any settings would take it over, and its results would be of others."""
    begin(tmp_path)
    (tmp_path / "results.json").unlink()
    kept = tmp_path / left
    if kept.suffix:
        kept.write_text("{}")
    else:
        kept.mkdir(parents=True)
        (kept / "record.json").write_text("{}")
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ClaimError, match=r"without its settings\.json"):
        claim(tmp_path, SETTINGS)
    assert not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("vocab.txt", "[PAD]\n"), ("settings.json", '{"editor.fontSize": 12}')],
)
def test_files_of_another_program_are_kept(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ClaimError, match=f"{name} of another program"):
        claim(tmp_path, SETTINGS)
    assert (tmp_path / name).read_text() == content


def test_a_pipe_is_written_to_and_a_link_stays_one(tmp_path):
    pipe, link, target = (tmp_path / name for name in ("pipe", "link", "target"))
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"seed": 0}, "--out")
    assert json.loads(os.read(reader, 100)) == {"seed": 0}
    os.close(reader)
    assert not pipe.is_file()
    link.symlink_to(target)
    write_json(link, {"seed": 1}, "--out")
    assert link.is_symlink()
    assert json.loads(target.read_text()) == {"seed": 1}
