"""The benchmark program: what it prints and writes, and how it ends."""

import dataclasses
import functools
import json
import math
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
from matplotlib.image import imread

from experiments.bench import run as bench_run
from experiments.bench.frameworks import UnavailableError
from experiments.bench.presets import FULL, QUICK, SMOKE
from experiments.bench.report import Row
from experiments.bench.run import Options
from experiments.bench.suites import DEVICES, Case, cases
from experiments.bench.timing import Work
from experiments.harness import cli, jax_setup, progress

TINY = dataclasses.replace(SMOKE, variants=False, ragged=(False,))
LAYERS = ["jaxrnn", "jaxrnn, bfloat16", "torch padded", "torch packed", "Flax", "Keras"]
LAYERS += ["Haiku"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit code, output and errors of the program with these arguments."""
    monkeypatch.setattr(progress, "FIRST_LINE", math.inf)  # none on slow machines
    monkeypatch.setenv("XLA_FLAGS", "")  # The program sets it.
    caching = jax.config.jax_enable_compilation_cache

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            code = cli.run(bench_run.main, Options, "bench", bench_run.__doc__)
        return code, *capsys.readouterr()

    yield run
    jax.config.update("jax_enable_compilation_cache", caching)


@pytest.mark.filterwarnings("default")  # Other libraries' are not ours to mend.
@pytest.mark.slow
def test_a_run_names_every_contender_measured_or_skipped(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "haiku", None)
    monkeypatch.setattr(bench_run, "SMOKE", TINY)
    arguments = ("--smoke", "--rounds", 2, "--out", tmp_path)
    code, out, err = run("--suites", "layers", "memory", *arguments)
    assert (code, err) == (0, "")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert files == {
        "layers/results.json",
        "layers/ratios.png",
        "memory/results.json",
    }
    assert imread(tmp_path / "layers" / "ratios.png").shape[2] == 4

    results = json.loads((tmp_path / "layers" / "results.json").read_text())
    rows = [Row(**entry) for entry in results["rows"]]
    assert [row.contender for row in rows] == LAYERS
    table = out[out.index("layers: LSTM") : out.index("memory: LSTM")]
    body = table[table.index("first, s") :]
    skipped = {row.contender: row.skipped for row in rows if row.skipped}
    for row in rows:
        assert (row.median is None) == (row.contender in skipped)
        if row.skipped is None:
            assert 0 < row.lower <= row.median <= row.upper
            assert row.rounds == 2
            assert row.first > 0
            assert body.count(f" {row.contender}  ") == 1
    # Where PyTorch and Keras are not installed, they are absent as Haiku is.
    assert skipped.pop("Haiku")
    assert all(reason.endswith("is not installed") for reason in skipped.values())
    for name in ("Haiku", *skipped):
        assert table.count(f"skipped {name} in 1 case: ") == 1

    memory = json.loads((tmp_path / "memory" / "results.json").read_text())
    found = {row["contender"]: row for row in memory["rows"]}
    assert found["jaxrnn"]["median"] < found["jaxrnn, scan"]["median"]
    assert found["Flax"]["ratio"] == 1.0

    assert results["versions"] == memory["versions"]
    assert results["versions"]["jax"] == jax.__version__
    assert results["machine"]["cores"] >= 1
    settings = results["settings"]
    assert (settings["jax_devices"], settings["rounds"]) == (2, 2)
    assert "--xla_cpu_multi_thread_eigen=false" in settings["XLA_FLAGS"]
    for name, value in jax_setup.memory_settings().items():
        assert settings[name] == value
        assert f"{name} {value}" in out
    for line in ("versions: jaxrnn", "machine: system", "settings: jax_devices 2"):
        assert line in out


def absent(task):
    raise UnavailableError("it is elsewhere")


def stub(names, run=lambda: None, **options):
    """A case whose contenders do `run`."""
    builders = dict.fromkeys(names, functools.partial(Work, run))
    return Case("layers", "LSTM", "a", builders, **options)


def test_run_case_measures_who_is_there():
    calls = []
    case = stub(["jaxrnn", "torch padded"], lambda: calls.append(1))
    case = dataclasses.replace(
        case, contenders={**case.contenders, "Haiku": lambda: absent(None)}
    )
    rows = bench_run.run_case(case, rounds=3, seconds=0.0)
    assert [row.skipped for row in rows] == [None, None, "it is elsewhere"]
    assert [row.rounds for row in rows] == [3, 3, None]
    assert len(calls) == 2 * (1 + 2 * 3)


def test_run_case_asks_for_bytes_once():
    calls = []

    def count():
        calls.append(1)
        return 4096

    [row] = bench_run.run_case(stub(["jaxrnn"], count, quantity="bytes"), 9, 1e6)
    assert (row.median, row.first, len(calls)) == (4096.0, 0.0, 1)


def fake_suite(interrupt_at=None):
    """A `run` that measures nothing, and is interrupted at one of the suites."""

    def run(suite, scale, rounds, interrupt):
        interrupt.requested = suite == interrupt_at
        place = (suite, "LSTM", f"case of {suite}", "jaxrnn")
        return [Row(*place, median=1.0, units=1, ratio=1.0, pictured=True)]

    return run


@pytest.mark.parametrize("stops_in", [1, 2])
def test_an_interrupt_leaves_what_was_measured(stops_in, monkeypatch):
    interrupt, measured = types.SimpleNamespace(requested=False), []

    def run_case(case, rounds, seconds):
        measured.append(case.name)
        interrupt.requested = len(measured) == stops_in
        return [Row("growth", "LSTM", case.name, "jaxrnn")]

    monkeypatch.setattr(bench_run, "run_case", run_case)
    rows = bench_run.run("growth", SMOKE, Options(rounds=1), interrupt)
    assert [row.case for row in rows] == measured
    assert len(measured) == stops_in < len(cases("growth", SMOKE))


def test_a_stopped_program_keeps_what_it_has_and_exits_with_130(
    run, monkeypatch, tmp_path
):
    monkeypatch.setattr(bench_run, "run", fake_suite(interrupt_at="growth"))
    wanted = ("--suites", "layers", "growth", "compile")
    code, out, err = run("--smoke", *wanted, "--out", tmp_path)
    assert code == 130
    assert "case of layers" in out
    assert "case of growth" in out
    assert "compile" not in out
    assert err == "stopped: the remaining cases were not run\n"
    for suite in ("layers", "growth"):
        results = json.loads((tmp_path / suite / "results.json").read_text())
        assert [row["case"] for row in results["rows"]] == [f"case of {suite}"]
    assert not (tmp_path / "compile").exists()


def test_suites_that_are_not_run_again_stay_as_they_are(run, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_run, "run", fake_suite())
    for suite in ("layers", "growth"):
        code, out, _ = run("--smoke", "--suites", suite, "--out", tmp_path)
        assert code == 0
        assert f"wrote results and pictures to {tmp_path}" in out
    assert {path.name for path in tmp_path.iterdir()} == {"layers", "growth"}


def test_a_record_that_cannot_be_written(run, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_run, "run", fake_suite())
    path = tmp_path / "growth" / "results.json"
    path.with_name("results.json.partial").mkdir(parents=True)
    code, _, err = run("--smoke", "--suites", "growth", "--out", tmp_path)
    assert (code, err) == (
        2,
        f"error: cannot write to {path} (Is a directory): give another --out\n",
    )


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (Options(), "runs/bench"),
        (Options(quick=True), "runs/bench-quick"),
        (Options(smoke=True), None),
        (Options(smoke=True, out=Path("here")), "here"),
    ],
    ids=["full", "quick", "smoke", "given"],
)
def test_where_results_go(options, path):
    assert options.path == (Path(path) if path else None)


def test_the_command_line_changes_the_scale():
    assert Options().scale == FULL
    assert Options(quick=True).scale == QUICK
    chosen = Options(suites=("growth",), cells=("gru",), seconds=0.0).scale
    changes = {"suites": ("growth",), "cells": ("gru",), "seconds": 0.0}
    assert chosen == dataclasses.replace(FULL, **changes)


@pytest.fixture
def started(monkeypatch):
    """What is started instead of processes: commands and numbers of devices."""
    found = []

    class Process:
        returncode = 3

        def __init__(self, command, env):
            found.append((" ".join(command[1:]), env["JAX_NUM_CPU_DEVICES"]))

        def poll(self):
            return self.returncode

        wait = poll

        def terminate(self):
            pass

    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "Popen", Process)
    return found


def test_more_devices_than_cores_are_another_process(started):
    options = Options(quick=True, rounds=7, out=Path("there"))
    stopped = types.SimpleNamespace(requested=True)
    bench_run.run_devices(options, stopped)
    arguments = "--suites devices --rounds 7 --seconds 2.0 --quick --out there"
    assert started == [(f"-m experiments.bench {arguments}", "8")]
    # Nobody stopped it: then it has failed.
    with pytest.raises(ValueError, match="ended with code 3"):
        bench_run.run_devices(options, types.SimpleNamespace(requested=False))


def test_a_request_to_stop_reaches_the_other_process(monkeypatch):
    children, asked = [], []
    start, sleeping = subprocess.Popen, ["sleep", "60"]

    def start_sleeping(command, env):
        children.append(start(sleeping))
        return children[0]

    class Interrupt:
        @property
        def requested(self):
            asked.append(True)
            return len(asked) > 2  # SIGTERM came after the start

    monkeypatch.setattr(subprocess, "Popen", start_sleeping)
    bench_run.run_devices(Options(quick=True), Interrupt())
    assert children[0].returncode == -signal.SIGTERM


def test_the_other_process_starts_none(run, started, monkeypatch):
    monkeypatch.setattr(bench_run, "run", fake_suite())
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(max(DEVICES)))
    code, out, _ = run("--smoke", "--suites", "devices")
    assert (code, started) == (0, [])
    assert "case of devices" in out


def test_help(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("--help")
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for part in (
        "python -m experiments.bench",
        "--suites",
        "growth",
        "Rounds of each case",
    ):
        assert part in out


@pytest.mark.parametrize(
    "arguments",
    [["--suites", "everything"], ["--rounds", "many"], ["--speed"]],
    ids=lambda arguments: arguments[-1],
)
def test_wrong_arguments_exit_with_2(run, capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", 0], "--rounds must be at least 1, got 0"),
        (["--seconds", -1], "--seconds must be finite and at least 0, got -1.0"),
        (["--seconds", "nan"], "--seconds must be finite and at least 0, got nan"),
        (["--devices", 99], "--devices 99: there are only"),
        (["--out", __file__], "File exists"),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else "",
)
def test_wrong_values_exit_with_2_before_anything_is_measured(
    run, monkeypatch, arguments, message
):
    monkeypatch.setattr(bench_run, "run", None)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_another_backend_than_the_cpu_is_refused(run, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    code, out, err = run("--smoke")
    assert (code, out) == (2, "")
    assert "JAX runs on gpu: set JAX_PLATFORMS=cpu" in err
