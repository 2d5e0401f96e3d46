"""What the benchmark keeps of earlier runs into one directory."""

import json
from dataclasses import replace

import jax
import pytest

from experiments.bench import results as bench_results
from experiments.bench import run as bench_run
from experiments.bench.report import Row
from experiments.bench.run import Options

ABOUT = {"machine": {"cores": 2}, "versions": {"jax": "1"}, "settings": {"rounds": 3}}


def row(case, contender="jaxrnn", median=1.0):
    place = ("growth", "LSTM", case, contender)
    return Row(*place, median=median, ratio=median, pictured=True, baseline="jaxrnn")


FIRST = [row("a"), row("a", "Flax", 2.0), row("b")]


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The panels of each picture, of which a stand-in is written."""
    found = []

    def plot_bars(path, title, panels):
        path.write_text(title)
        found.append(panels)

    monkeypatch.setattr(bench_results, "plot_bars", plot_bars)
    return found


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Runs the program, which finds these rows, and is interrupted."""
    monkeypatch.setenv("XLA_FLAGS", "")  # The program sets it.
    caching = jax.config.jax_enable_compilation_cache

    def measure(rows, **options):
        def run(suite, scale, rounds, interrupt):
            interrupt.requested = True
            return rows

        monkeypatch.setattr(bench_run, "run", run)
        options = {"smoke": True, "suites": ("growth",), "out": tmp_path} | options
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            bench_run.main(Options(**options))

    yield measure
    jax.config.update("jax_enable_compilation_cache", caching)


def read_rows(path):
    record = json.loads((path / "growth" / "results.json").read_text())
    return [Row(**entry) for entry in record["rows"]]


def test_an_interrupted_run_keeps_what_was_measured_before(measure, tmp_path, drawn):
    measure(FIRST)
    assert read_rows(tmp_path) == FIRST
    again, new = row("a", "Flax", 4.0), row("c")
    measure([again, new])
    assert read_rows(tmp_path) == [FIRST[0], again, FIRST[2], new]
    bars = {"a": {"jaxrnn": 1.0, "Flax": 4.0}, "b": {"jaxrnn": 1.0}}
    assert drawn[-1] == {
        "LSTM, time relative to jaxrnn": {**bars, "c": {"jaxrnn": 1.0}}
    }


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"rounds": 2}, "rounds 15, not 2"),
        ({"smoke": False, "quick": True, "seconds": 0.0}, "scale 'smoke', not 'quick'"),
    ],
)
def test_other_conditions_are_refused_before_anything_is_measured(
    measure, monkeypatch, tmp_path, options, difference
):
    measure(FIRST)
    message = rf"measured with other versions or settings \({difference}\): give ano"
    with pytest.raises(ValueError, match=message):
        measure(None, **options)
    assert read_rows(tmp_path) == FIRST


def test_there_is_no_picture_of_what_is_not_there(tmp_path):
    bench_results.write(tmp_path, ABOUT, FIRST[:1])
    assert (tmp_path / "ratios.png").exists()
    bench_results.write(tmp_path, ABOUT, [replace(FIRST[0], pictured=False)])
    assert not (tmp_path / "ratios.png").exists()


@pytest.mark.parametrize(
    "content",
    [{}, {**ABOUT, "rows": [{"speed": 1}]}, {**ABOUT, "machine": 1, "rows": []}, []],
)
def test_a_damaged_record_is_named_and_kept(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"results.json is damaged .*: remove it") as e:
        bench_results.write(tmp_path, ABOUT, FIRST)
    assert "\n" not in str(e.value)
    assert json.loads(path.read_text()) == content
