"""One program at a time in a work directory; killed ones leave no lock behind."""

import contextlib
import fcntl
import subprocess
import sys

import pytest

from experiments.harness.workdir import WorkDir
from tests.imdb.test_train import assert_refused

SETTINGS = {"seed": 0}

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
    with WorkDir(tmp_path).claimed(SETTINGS):
        message = f"another program is at work in {tmp_path}: wait for its end, or give"
        with (
            pytest.raises(ValueError, match=message) as error,
            WorkDir(tmp_path).claimed(SETTINGS),
        ):
            raise AssertionError("claimed twice")
        assert "\n" not in str(error.value)
    with WorkDir(tmp_path).claimed(SETTINGS):
        assert WorkDir(tmp_path).settings == SETTINGS


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_lets_go_of_it(tmp_path, error):
    with pytest.raises(error), WorkDir(tmp_path).claimed(SETTINGS):
        raise error
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_so_do_other_settings(tmp_path):
    with WorkDir(tmp_path).claimed(SETTINGS):
        WorkDir(tmp_path).finish({"accuracy": 1.0})
    with (
        pytest.raises(ValueError, match="other settings"),
        WorkDir(tmp_path).claimed({"seed": 1}),
    ):
        raise AssertionError("claimed")
    with WorkDir(tmp_path).claimed(SETTINGS):
        assert (tmp_path / "lock").read_bytes() == b""


def test_a_run_without_a_checkpoint_makes_room_for_other_settings(tmp_path):
    """It ended before there was anything to keep: its settings were the reason."""
    for settings in (SETTINGS, {"seed": 1}):
        with WorkDir(tmp_path).claimed(settings):
            assert WorkDir(tmp_path).settings == settings


def test_a_killed_process_leaves_nothing_to_clean_up(tmp_path):
    with another_process(tmp_path) as process:
        with (
            pytest.raises(ValueError, match="another program is at work"),
            WorkDir(tmp_path).claimed(SETTINGS),
        ):
            raise AssertionError("claimed")
        assert WorkDir(tmp_path).settings is None
        process.kill()
    with WorkDir(tmp_path).claimed(SETTINGS):
        assert WorkDir(tmp_path).settings == SETTINGS


def test_both_programs_refuse_and_write_nothing(tmp_path, program_run, charlm_run):
    with another_process(tmp_path) as process:
        for run in (program_run, charlm_run):
            result = run("--smoke", "--workdir", tmp_path)
            assert_refused(result, f"another program is at work in {tmp_path}")
        assert [file.name for file in tmp_path.iterdir()] == ["lock"]
        process.kill()
