"""The benchmark program: what it prints and writes, and how it ends."""

import dataclasses
import functools
import json
import subprocess
import sys
import types

import jax
import pytest
from matplotlib.image import imread

from experiments import bench, contenders, program, runtime
from experiments.bench import Options
from experiments.contenders import UnavailableError
from experiments.scales import FULL, QUICK, SMOKE
from experiments.standings import Row
from experiments.suites import DEVICES, Case, cases
from experiments.work import Work

TINY = dataclasses.replace(SMOKE, variants=False, ragged=(True,))
LAYERS = ["jaxrnn", "jaxrnn, bfloat16", "torch padded", "torch packed", "Flax", "Keras"]
LAYERS += ["Haiku", "jaxrnn, full rows"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit code, output and errors of the program with these arguments."""
    monkeypatch.setenv("XLA_FLAGS", "")  # The program sets it.
    caching = jax.config.jax_enable_compilation_cache

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            code = program.run(bench.main, Options, "bench", bench.__doc__)
        return code, *capsys.readouterr()

    yield run
    jax.config.update("jax_enable_compilation_cache", caching)


@pytest.mark.filterwarnings("default")  # Other libraries' are not ours to mend.
def test_a_run_names_every_contender_measured_or_skipped(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "haiku", None)
    monkeypatch.setattr(bench, "SMOKE", TINY)
    arguments = ("--smoke", "--suite", "layers", "--rounds", 2, "--out", tmp_path)
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")

    results = json.loads((tmp_path / "results.json").read_text())
    rows = [Row(**entry) for entry in results["rows"]]
    assert [row.contender for row in rows] == LAYERS
    skipped = {row.contender: row.skipped for row in rows if row.skipped}
    for row in rows:
        assert (row.median is None) == (row.contender in skipped)
        if row.skipped is None:
            assert row.lower <= row.median <= row.upper < row.first
            assert row.rounds == 2
            assert out.count(f" {row.contender} ") == 1
    # Where PyTorch and Keras are not installed, they are absent as Haiku is.
    assert skipped.pop("Haiku")
    assert all(reason.endswith("is not installed") for reason in skipped.values())
    for name in ("Haiku", *skipped):
        assert out.count(f"skipped {name} in 1 case: ") == 1

    assert results["versions"]["jax"] == jax.__version__
    assert results["machine"]["cores"] >= 1
    settings = results["settings"]
    assert (settings["jax_devices"], settings["rounds"]) == (2, 2)
    assert "--xla_cpu_multi_thread_eigen=false" in settings["XLA_FLAGS"]
    for name, value in runtime.memory_settings().items():
        assert settings[name] == value
        assert f"{name} {value}" in out
    for line in ("versions: jaxrnn", "machine: system", "settings: jax_devices 2"):
        assert line in out


@pytest.mark.filterwarnings("default")
def test_pictures_are_of_full_batches(run, monkeypatch, tmp_path):
    monkeypatch.setattr(
        bench, "SMOKE", dataclasses.replace(TINY, ragged=(False,), times=(4,))
    )
    for name in ("torch_padded", "torch_packed", "keras", "haiku"):
        monkeypatch.setattr(contenders, name, absent)
    code, out, _ = run(
        "--smoke", "--suite", "layers", "memory", "--rounds", 1, "--out", tmp_path
    )
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "layers.png"}
    assert imread(tmp_path / "layers.png").shape[2] == 4
    # Without PyTorch the ratios are to the first contender.
    assert "/ jaxrnn" in out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    memory = {row["contender"]: row for row in rows if row["suite"] == "memory"}
    assert memory["jaxrnn"]["median"] < memory["jaxrnn, scan"]["median"]
    assert memory["Flax"]["ratio"] == 1.0


def absent(task):
    raise UnavailableError("it is elsewhere")


def stub(contender_names, run=lambda: None, **options):
    """A case whose contenders do `run`."""
    builders = {
        name: functools.partial(Work, functools.partial(run))
        for name in contender_names
    }
    return Case("layers", "LSTM", "a", builders, **options)


def test_run_case_measures_who_is_there():
    calls = []
    case = stub(["jaxrnn", "torch padded"], lambda: calls.append(1))
    case = dataclasses.replace(
        case, contenders={**case.contenders, "Haiku": lambda: absent(None)}
    )
    rows = bench.run_case(case, rounds=4, seconds=1e6)
    assert [row.skipped for row in rows] == [None, None, "it is elsewhere"]
    assert [row.rounds for row in rows] == [4, 4, None]
    assert len(calls) == 2 * (1 + 2 * 4)


def test_run_case_asks_for_bytes_once():
    calls = []

    def count():
        calls.append(1)
        return 4096

    [row] = bench.run_case(stub(["jaxrnn"], count, quantity="bytes"), 9, 1e6)
    assert (row.median, row.first, len(calls)) == (4096.0, 0.0, 1)


@pytest.mark.parametrize("stops_in", [1, 2])
def test_an_interrupt_leaves_what_was_measured(stops_in, monkeypatch):
    interrupt, measured = types.SimpleNamespace(requested=False), []

    def run_case(case, rounds, seconds):
        measured.append(case.name)
        interrupt.requested = len(measured) == stops_in
        return [Row("devices", "LSTM", case.name, "jaxrnn")]

    monkeypatch.setattr(bench, "run_case", run_case)
    monkeypatch.setattr(bench, "run_virtual", None)  # Is not called.
    rows = bench.run(["devices", "compile"], SMOKE, Options(), interrupt)
    assert [row.case for row in rows] == measured
    assert len(measured) == stops_in


def test_a_stopped_program_shows_what_it_has_and_exits_with_130(run, monkeypatch):
    def stopped(wanted, scale, options, interrupt):
        interrupt.requested = True
        return [Row("layers", "LSTM", "some case", "jaxrnn", median=1.0)]

    monkeypatch.setattr(bench, "run", stopped)
    code, out, err = run("--smoke")
    assert code == 130
    assert "some case" in out
    assert err == "stopped: the cases after that are missing\n"


def test_more_devices_than_cores_are_another_process(monkeypatch):
    """With its options, and rows that come back through its results."""
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    row = Row("devices", "LSTM, of 8 devices", "a", "jaxrnn", median=1.0)
    started = []

    def fake_run(command, env, stdout, check):
        started.append((command, env["JAX_NUM_CPU_DEVICES"]))
        out = command[command.index("--out") + 1]
        with open(f"{out}/results.json", "w") as file:
            json.dump({"rows": [vars(row)]}, file)

    monkeypatch.setattr(subprocess, "run", fake_run)
    monkeypatch.setattr(bench, "run_case", lambda case, rounds, seconds: [])
    options = Options(quick=True, rounds=7, seconds=1.5)
    interrupt = types.SimpleNamespace(requested=False)
    rows = bench.run(["devices"], SMOKE, options, interrupt)
    assert rows == [row]
    [(command, number)] = started
    assert number == str(max(DEVICES))
    given = " ".join(command)
    assert "-m experiments.bench --suite devices" in given
    assert "--quick" in given
    assert "--smoke" not in given
    assert "--rounds 7" in given
    assert "--seconds 1.5" in given

    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", number)  # As there: it starts none.
    assert bench.run(["devices"], SMOKE, options, interrupt) == []
    assert len(started) == 1


def test_the_sizes_are_those_of_the_design():
    names = [case.name for case in cases("layers", FULL)]
    assert len(names) == 3 * 2 * 2 * 5
    assert names[:5] == [
        "32 x 256, 20 to 64",
        "32 x 256, 64 to 128",
        "64 x 40, 256 to 512",
        "32 x 256, 256 to 512",
        "64 x 128, 512 to 1024",
    ]
    growth = [case.name for case in cases("growth", FULL)]
    assert growth[0] == "128 x 128, 64 to 128"
    assert growth[5] == "4 x 4096, 64 to 128"
    assert growth[-1] == "32 x 128, 1024 to 1024"


@pytest.mark.parametrize("scale", [FULL, QUICK, SMOKE], ids=["full", "quick", "smoke"])
def test_cases_of_a_section_stand_together_and_have_names_of_their_own(scale):
    for suite in FULL.suites:
        listed = [(case.section, case.name) for case in cases(suite, scale)]
        assert len(set(listed)) == len(listed) > 0
        sections = [section for section, _ in listed]
        changes = [a for a, b in zip(sections, sections[1:] + [""]) if a != b]
        assert len(set(changes)) == len(changes)


def test_help(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("--help")
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for part in ("python -m experiments.bench", "--suite", "growth", "Turns of each"):
        assert part in out


@pytest.mark.parametrize(
    "arguments",
    [["--suite", "everything"], ["--rounds", "many"], ["--speed"]],
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
        (["--seconds", -1], "--seconds must be 0 or above, got -1.0"),
        (["--seconds", "nan"], "--seconds must be 0 or above, got nan"),
        (["--devices", 99], "99 devices asked for"),
        (["--out", __file__], "File exists"),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else "",
)
def test_wrong_values_exit_with_2_before_anything_is_measured(
    run, monkeypatch, arguments, message
):
    monkeypatch.setattr(bench, "run", None)
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
