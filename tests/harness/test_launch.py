"""Ctrl-C ends a program with one line and 130, whatever it is doing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.harness import launch
from experiments.harness.options import CommonOptions, scratch_if_smoke

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
PROGRAMS = [
    path
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text()
]
DELAYS = [0, 0.2, 0.5, 1, 2, 4]  # seconds: imports, compilation, training
SAVED = "stopped after step "


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def start(name, *arguments, **environment):
    """A program that has installed its handlers: before, Python itself starts."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not catches(process.pid, signal.SIGTERM) and process.poll() is None:
        time.sleep(0.001)
    return process


def catches(pid, number):
    status = Path(f"/proc/{pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if "SigCgt" in line]
    return bool(int(mask, 16) >> (number - 1) & 1)


def assert_ended_properly(process, after):
    """With one line, or with the two of a training that is saved, or all was done."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    told = f"after {after} s: {process.returncode}\n{out[-500:]}\n{err[-2000:]}"
    if process.returncode == 0:
        assert "next: " in out, told
        return
    assert process.returncode == 130, told
    lines = [line for line in err.splitlines() if not line.endswith(" left")]
    if lines[-1].startswith(SAVED):
        assert lines == [
            "saving after this step; Ctrl-C again stops at once",
            lines[-1],
        ]
    else:
        assert lines == ["interrupted"], told


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_time(tmp_path, delay, number):
    process = start("charlm", "--smoke", "--workdir", tmp_path / "run")
    time.sleep(delay * random.Random(f"{delay}{number}").uniform(0.7, 1.3))
    process.send_signal(number)
    assert_ended_properly(process, delay)


@pytest.mark.parametrize("delay", [0.5, 3])
def test_a_second_ctrl_c_ends_at_once(tmp_path, delay):
    (tmp_path / "text").write_text("to be or not to be\n" * 400)
    small = ("--hidden", 8, "--embed", 8, "--epochs", 10**6, "--patience", "None")
    where = ("--text", tmp_path / "text", "--workdir", tmp_path / "run")
    process = start("charlm", *small, *where)
    for _ in range(2):
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted" or SAVED in err


def test_what_is_temporary_is_removed_by_a_signal(tmp_path):
    """The scratch directory of --smoke: nothing is left in the folder for those."""
    process = start("charlm", "--smoke", TMPDIR=str(tmp_path))
    while not list(tmp_path.glob("jaxrnn-smoke-*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert not list(tmp_path.glob("jaxrnn-smoke-*"))


def test_cleanups_are_of_open_blocks_only(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = list(launch.CLEANUPS)
    with scratch_if_smoke(CommonOptions(smoke=True)) as options:
        [cleanup] = [x for x in launch.CLEANUPS if x not in before]
        cleanup()
        assert not options.workdir.exists()
    assert before == launch.CLEANUPS


def test_a_variable_that_jax_cannot_read():
    process = start("charlm", "--smoke", JAX_NUM_CPU_DEVICES="two")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("\n") == 1
    assert err.startswith('error: Invalid value "two" for JAX flag jax_num_cpu_devices')
    assert err.endswith(": correct or unset that variable\n")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: module_of(path))
def test_signals_are_handled_before_imports_that_take_time(path):
    """In which Ctrl-C would end in a traceback."""
    script = (
        "import runpy, sys; from experiments.harness import launch; "
        "launch.launch = lambda *names, **more: print(*sys.modules); "
        f"runpy.run_module({module_of(path)!r}, run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", script]
    imported = subprocess.check_output(command, cwd=ROOT, timeout=60).decode().split()
    assert "experiments.harness.launch" in imported
    assert not {"jax", "jaxrnn", "matplotlib", "numpy", "scipy", "tyro"} & {*imported}


@pytest.mark.parametrize("delay", [0, 0.2, 0.5, 1])
def test_a_signal_while_a_picture_is_drawn(tmp_path, delay):
    line = '{"epoch": 1, "seconds": 2.0, "train_loss": 0.5}\n'
    for name in map(str, range(200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(line)
    process = start("plot", *tmp_path.iterdir(), "--out", tmp_path / "all.png")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    if process.returncode == 0:
        assert "all.png shows" in out
    else:
        assert (process.returncode, err) == (130, "interrupted\n")
