"""`--dtype auto`: measured once at the start, said, and kept."""

import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import dtype
from experiments.charlm.config import PRESETS, SMOKE, Settings, open_workdir
from experiments.charlm.options import Options, continues, explicit_settings
from experiments.harness import timing
from experiments.harness.workdir import WorkDir
from jaxrnn.placement import data_mesh
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

TINY = replace(SMOKE, dtype="auto", hidden=3, embed=2, epochs=1, batch=2)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.1, "bfloat16"), (0.8, "bfloat16"), (0.95, "float32")]
)
def test_bfloat16_must_be_faster_by_a_tenth(monkeypatch, seconds, expected):
    found = {"float32": 1.0, "bfloat16": seconds}
    monkeypatch.setattr(dtype, "least_seconds", lambda steps: found)
    chosen, told = dtype.choose(TINY, 5, data_mesh(2))
    assert chosen == expected
    times = f"float32 1,000 ms, bfloat16 {1000 * seconds:.0f} ms"
    assert told == f"products in {expected} (a step: {times})"


def test_calls_are_timed_in_turns_without_the_first(monkeypatch):
    clock, calls = [0.0], []
    takes = {"a": iter([50, 3, 2, 4]), "b": iter([90, 5, 7, 6])}

    def call(name):
        calls.append(name)
        clock[0] += next(takes[name])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    found = timing.least_seconds({name: lambda n=name: call(n) for name in takes})
    assert found == {"a": 2, "b": 5}
    assert "".join(calls) == "ab" * 4


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_what_is_timed_is_the_training_step(products):
    """Each call makes a step, with products of the dtype."""
    settings = replace(TINY, dtype=products, weight_drop=0.5)
    step = dtype.make_step(settings, 5, data_mesh(2))
    assert [int(step()) for _ in range(3)] == [1, 2, 3]
    lowered = jax.make_jaxpr(
        lambda: dtype.make_model(settings, 5).init_with_output(
            jax.random.key(0), np.zeros((2, 3), np.int32)
        )
    )()
    assert ("bf16[" in str(lowered)) == (products == "bfloat16")


@pytest.fixture
def arguments(tmp_path):
    path = tmp_path / "text"
    path.write_text(charlm_datasets.generate(1000).content)
    options = ("--text", path, "--workdir", tmp_path / "run", "--dtype", "auto")
    names = ("cell", "hidden", "embed", "epochs", "batch", "seq_len")
    settings = [(f"--{k.replace('_', '-')}", getattr(TINY, k)) for k in names]
    return (*options, *(part for option in settings for part in option))


def test_a_run_keeps_what_was_chosen_at_its_start(arguments, charlm_run, monkeypatch):
    found = {"float32": 1.0, "bfloat16": 0.5}
    monkeypatch.setattr(dtype, "least_seconds", lambda steps: found)
    code, out, err = charlm_run(*arguments)
    assert (code, err) == (0, "")
    times = "float32 1,000 ms, bfloat16 500 ms"
    expected = f" 2 cpu devices; products in bfloat16 (a step: {times})"
    assert out.splitlines()[0].endswith(expected)
    path = arguments[3]
    for name in ("settings", "results"):
        assert json.loads((path / f"{name}.json").read_text())["dtype"] == "bfloat16"

    def again(steps):
        raise AssertionError("it is measured once")

    monkeypatch.setattr(dtype, "least_seconds", again)
    assert "holds a finished run" in charlm_run(*arguments)[1]
    (path / "results.json").unlink()
    code, out, err = charlm_run(*arguments)
    assert (code, err) == (0, "")
    assert re.search("; products in bfloat16, as chosen when the run began\n", out)
    assert charlm_run(*arguments, "--sample", "--length", 5)[0] == 0
    given = (*arguments, "--dtype", "float32")
    assert_refused(charlm_run(*given), "(dtype 'bfloat16', not 'float32')")
    refused = charlm_run(*given, "--sample", "--length", 5)
    assert_refused(refused, "(dtype 'bfloat16', not 'float32')")


def test_what_is_given_is_not_measured(arguments, charlm_run, monkeypatch):
    monkeypatch.setattr(dtype, "choose", None)
    code, out, _ = charlm_run(*arguments, "--dtype", "float32")
    assert code == 0
    assert out.splitlines()[0].endswith(" 2 cpu devices")


def test_auto_is_no_setting_of_a_trained_model(charlm_smoke, tmp_path):
    options = Options(typed=("preset", "dtype"), settings=PRESETS["best"])
    assert options.settings.dtype == "auto"
    assert "dtype" not in explicit_settings(options)
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    (path / "results.json").unlink()
    settings = WorkDir(path).settings_as(Settings)
    for changed, goes_on in (({"dtype": "auto"}, True), ({"dtype": "bfloat16"}, False)):
        options = Options(settings=replace(settings, **changed))
        assert continues(options, open_workdir(path)) == goes_on
