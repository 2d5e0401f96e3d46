"""The comparison of all cells: sizes, learning rates, resumption, the table."""

import dataclasses
import json
import math
import sys
from typing import get_args

import pytest

from experiments.cells import compare, runs, sizes, speed, table
from experiments.cells.compare import ORDER, Options
from experiments.cells.runs import Comparison
from experiments.charlm import datasets
from experiments.charlm import train as charlm_train
from experiments.charlm.batches import Streams
from experiments.charlm.config import PRESETS, Settings
from experiments.charlm.model import make_model, make_optimizer, make_train_step
from experiments.harness import cli
from experiments.harness.cells import CellName
from experiments.harness.training_loop import NotFiniteError
from experiments.harness.workdir import HeldError, WorkDir
from jaxrnn.training import StatefulTrainState
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

QUICK = PRESETS["quick"]
TINY = Settings(cell="lstm", embed=4, hidden=48, epochs=1, batch=4, seq_len=8)
TEXT = datasets.generate(count=2000)


@pytest.fixture
def comparison(tmp_path):
    return Comparison(TEXT, TINY, tmp_path, devices=1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit code, output and errors of the program with these arguments."""
    monkeypatch.setenv("XLA_FLAGS", "")  # The program sets it.

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cells", *map(str, arguments)])
        code = cli.run(compare.main, Options, "cells", compare.__doc__)
        return code, *capsys.readouterr()

    return run


def counted(cell, hidden, settings=QUICK, vocab=65):
    """The number of parameters in formulas: of the embedding, the cell, the output."""
    d, h = settings.embed, hidden
    of_cell = {
        "lstm": 4 * h * (d + h + 1),
        "gru": 3 * h * (d + h) + 4 * h,
        "min-gru": 2 * h * (d + 1),
        "rg-lru": d * h + 2 * h * h + 3 * h,
    }
    return vocab * d + of_cell[cell] + (h + 1) * vocab


def test_the_number_of_parameters_is_that_of_the_formulas():
    for cell in ("lstm", "gru", "min-gru", "rg-lru"):
        settings = dataclasses.replace(QUICK, cell=cell, hidden=20)
        assert sizes.count_parameters(settings, 65) == counted(cell, 20)


@pytest.mark.parametrize("cell", get_args(CellName))
def test_every_cell_gets_as_many_parameters_within_5_percent(cell):
    # A quarter of the preset's width: the initial values of a large S5 take seconds.
    base = dataclasses.replace(QUICK, hidden=64)
    wanted = sizes.count_parameters(base, 65)
    found = sizes.fit_hidden(dataclasses.replace(base, cell=cell), wanted, 65)
    assert found == dataclasses.replace(base, cell=cell, hidden=found.hidden)
    assert abs(sizes.count_parameters(found, 65) / wanted - 1) < 0.05
    # No other multiple of 4 is nearer.
    misses = {
        hidden: abs(
            sizes.count_parameters(dataclasses.replace(found, hidden=hidden), 65)
            - wanted
        )
        for hidden in (found.hidden - 4, found.hidden, found.hidden + 4)
    }
    assert min(misses, key=lambda hidden: misses[hidden]) == found.hidden


def test_sizes_of_the_quick_preset():
    wanted = counted("gru", 256)
    for cell, hidden in (("lstm", 220), ("min-gru", 1352), ("rg-lru", 332)):
        found = sizes.fit_hidden(dataclasses.replace(QUICK, cell=cell), wanted, 65)
        assert found.hidden == hidden
        assert abs(counted(cell, hidden) / wanted - 1) < 0.01


def test_a_number_of_parameters_that_no_size_comes_near():
    with pytest.raises(ValueError, match=r"--cell lstm has [\d,]+ .*, not within 5%"):
        sizes.fit_hidden(Settings(cell="lstm"), 100, 65)


def test_every_cell_is_in_the_order_once():
    assert sorted(ORDER) == sorted(get_args(CellName))
    assert ORDER[:3] == ("lstm", "gru", "rnn")


def test_the_rate_is_chosen_by_validation(comparison, monkeypatch):
    nats = {3e-3: 1.9, 1e-2: 2.5, 3e-2: 2.0}
    tried = []

    def make_trial(run):
        def trial(rate):
            tried.append((rate, run.settings.cell))
            return nats[rate]

        return trial

    monkeypatch.setattr(runs, "_make_trial", make_trial)
    assert runs.choose_rate(comparison, "gru", 0) == 3e-3
    assert tried == [(rate, "gru") for rate in (3e-3, 1e-2, 3e-2)]
    # What is finished is not tried again, and only that.
    (comparison.path / "gru" / "rate-0.01" / "results.json").unlink()
    tried.clear()
    nats[1e-2] = 1.1
    assert runs.choose_rate(comparison, "gru", 0) == 1e-2
    assert tried == [(1e-2, "gru")]


def test_a_rate_whose_loss_is_not_finite_is_not_chosen(comparison, monkeypatch):
    nats = {3e-3: math.inf, 1e-2: math.nan, 3e-2: 9.0}
    monkeypatch.setattr(runs, "_make_trial", lambda run: nats.__getitem__)
    for _ in range(2):  # tried, and read again
        assert runs.choose_rate(comparison, "gru", 0) == 3e-2


def test_a_trial_is_the_beginning_of_a_training(comparison):
    """The rate in the optimizer's state: the same steps as with it in the settings."""
    settings = dataclasses.replace(comparison.settings("gru"), learning_rate=3e-2)
    run = comparison.prepare("rate-0.03", settings)
    found = runs._make_trial(run)(3e-2)

    train_ids, validation_ids = (
        run.units.encode(part, run.vocab) for part in TEXT.split()
    )
    streams = Streams(train_ids, settings)
    batches = streams.epoch(0)
    optimizer = make_optimizer(settings, len(batches))
    model = make_model(settings, len(run.vocab))
    state = charlm_train.make_state(model, optimizer, settings)
    step = make_train_step(model, optimizer, run.mesh)
    tenth = batches[: math.ceil(len(batches) / 10)]
    assert 5 < len(tenth) < len(batches) / 9
    for make_batch in tenth:
        state, _ = step(state, make_batch())
    assert isinstance(state, StatefulTrainState)
    evaluation = charlm_train.Evaluation(model, validation_ids, run.mesh)
    expected = evaluation(state.train.params)["nats_window_256"]
    # Rounding apart: the rate is a factor of its own.
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_finished_training_is_not_made_again(comparison, monkeypatch):
    runs.train(comparison, "gru", 1, 1e-2)
    found = runs.results(comparison.path, "gru", 1)
    assert found is not None
    assert (found["seed"], found["learning_rate"], found["cell"]) == (1, 1e-2, "gru")
    assert found["parameters"] == sizes.count_parameters(
        comparison.settings("gru"), comparison.vocab_size
    )
    assert found[runs.METRIC] < math.log(comparison.vocab_size)

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(charlm_train, "learn", refuse)
    runs.train(comparison, "gru", 1, 1e-2)
    assert runs.results(comparison.path, "gru", 1) == found
    with pytest.raises(AssertionError, match="trained again"):
        runs.train(comparison, "gru", 2, 1e-2)
    with pytest.raises(ValueError, match=r"\(learning_rate 0.01, not 0.03\)"):
        runs.train(comparison, "gru", 1, 3e-2)


def test_a_loss_that_is_not_finite_ends_one_training_only(comparison, monkeypatch):
    tried = []

    def learn(run, *_, **__):
        tried.append(run.settings.cell)
        raise NotFiniteError("loss at step 3 is nan")

    monkeypatch.setattr(charlm_train, "learn", learn)
    for _ in range(2):
        runs.train(comparison, "lem", 0, 3e-2)
    assert tried == ["lem"]
    assert runs.has_diverged(comparison.path, "lem", 0)
    text = table.make(comparison.path, ["lem", "gru"], [0])
    assert text.endswith("\n\nA loss was not finite: lem.\n\nNot finished: gru.\n")


def test_what_another_program_is_at_work_in_comes_last(monkeypatch, capsys):
    done, waits, held = [], [], {"lstm": 2}

    def finish(cell, seed):
        if held.get(cell, 0):
            held[cell] -= 1
            raise HeldError("another program is at work")
        done.append((cell, seed))

    monkeypatch.setattr(compare.time, "sleep", waits.append)
    compare.do_all([("lstm", 0), ("gru", 0), ("rnn", 0)], finish)
    assert done == [("gru", 0), ("rnn", 0), ("lstm", 0)]
    assert waits == [compare.WAIT]
    out = capsys.readouterr().out
    assert "waiting for another program to finish lstm, seed 0\n" in out


def finished(path, cell, seed, nats, **more):
    """A run as `runs.train` leaves it."""
    workdir = WorkDir(path / cell / f"seed-{seed}")
    workdir.path.mkdir(parents=True)
    results = {
        "hidden": 8,
        "parameters": 1234,
        "learning_rate": 0.003,
        "seed": seed,
        runs.METRIC: nats,
        "validation_nats_stateful": nats - 0.25,
    }
    workdir.finish(results | more)


def test_the_best_are_trained_with_all_seeds(tmp_path, monkeypatch, capsys):
    first = {"lstm": 1.5, "gru": 1.25, "rnn": 2.0, "mgu": 1.75}
    trained = []

    def train(comparison, cell, seed, rate):
        trained.append((cell, seed, rate))
        finished(tmp_path, cell, seed, first[cell])

    monkeypatch.setattr(runs, "choose_rate", lambda _, cell, seed: (cell, seed))
    monkeypatch.setattr(runs, "train", train)
    options = Options(workdir=tmp_path, cells=(*first,), seeds=(3, 5, 6), best=2)
    comparison = Comparison(TEXT, TINY, tmp_path)
    compare.train(comparison, options)
    assert [(cell, seed) for cell, seed, _ in trained] == [
        *((cell, 3) for cell in first),
        ("gru", 5), ("lstm", 5), ("gru", 6), ("lstm", 6),
    ]  # fmt: skip
    # The rate is that which was chosen with the first seed.
    assert all(rate == (cell, 3) for cell, _, rate in trained)
    assert "the best with seed 3: gru, lstm\n" in capsys.readouterr().out


def test_the_table(tmp_path):
    finished(tmp_path, "gru", 0, 1.75)
    finished(tmp_path, "lstm", 0, 1.5)
    finished(tmp_path, "lstm", 1, 1.625)
    finished(tmp_path, "rnn", 0, 1.875)
    (tmp_path / "speed").mkdir()
    measured = {
        "characters_per_second": 61234.5,
        "relative_to_lstm": 0.5,
        "step_bytes": 12_400_000,
    }
    (tmp_path / "speed" / "gru.json").write_text(json.dumps(measured))
    assert table.make(tmp_path, ["rnn", "gru", "lstm", "mgu"], [0, 1, 2]) == (
        "| cell | hidden | parameters | learning rate | windows of 256 "
        "| state carried | seeds | characters/s | / LSTM | MB |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| `lstm` | 8 | 1,234 | 0.003 | 1.562 (1.500 to 1.625) "
        "| 1.312 (1.250 to 1.375) | 0, 1 |  |  |  |\n"
        "| `gru` | 8 | 1,234 | 0.003 | 1.750 | 1.500 | 0 | 61,234 | 0.50 | 12 |\n"
        "| `rnn` | 8 | 1,234 | 0.003 | 1.875 | 1.625 | 0 |  |  |  |\n"
        "\n"
        "Not finished: mgu.\n"
    )


def test_speed_is_relative_to_the_lstm_of_the_same_measurement(
    comparison, monkeypatch, capsys
):
    seconds = {"lstm": 0.25, "gru": 0.5}

    def measure(works, rounds, *, seconds):
        for work in works.values():
            work()
        return {
            name: speed.timing.Timing(9.0, (median, median, median))
            for name, median in {"lstm": 0.25, "gru": 0.5}.items()
            if name in works
        }

    monkeypatch.setattr(speed.timing, "measure", measure)
    speed.measure(comparison, ["gru"], seconds=1.0)
    for name, ratio in (("lstm", 1.0), ("gru", 0.5)):
        found = speed.read(comparison.path, name)
        assert found is not None
        assert found["relative_to_lstm"] == ratio
        assert found["characters_per_second"] == 4 * 8 / seconds[name]
        # At least the outputs of 4 rows, 8 steps; not the gigabytes of a wrong unit.
        assert 4 * 8 * 48 * 4 < found["step_bytes"] < 1e8
    assert speed.read(comparison.path, "rnn") is None


def test_the_program_trains_and_continues(run, tmp_path):
    arguments = ("--smoke", "--workdir", tmp_path, "--seeds", 0, "--devices", 1)
    code, out, _ = run(*arguments, "--cells", "gru")
    assert code == 0
    assert "gru, seed 0: generated: validation nats per character" in out
    row = out[out.index("| `gru` |") :]
    assert (tmp_path / "table.md").read_text().endswith(row)
    rates = sorted(path.name for path in (tmp_path / "gru").glob("rate-*"))
    assert rates == ["rate-0.003", "rate-0.01", "rate-0.03"]
    chosen = float(row.split(" | ")[3])
    nats = {
        float(name.removeprefix("rate-")): WorkDir(tmp_path / "gru" / name).results
        for name in rates
    }
    assert chosen == min(nats, key=lambda rate: nats[rate][runs.METRIC])
    code, again, _ = run(*arguments, "--cells", "gru")
    assert code == 0
    assert "characters to train" not in again
    assert again.endswith(row)


def test_an_interrupted_program_shows_what_is_finished(run, tmp_path, monkeypatch):
    for cell, nats in (("gru", 1.75), ("mgu", 1.5)):  # one of an earlier command
        finished(tmp_path, cell, 0, nats)

    def interrupt(*_):
        raise KeyboardInterrupt("stopped after step 7")

    monkeypatch.setattr(runs, "choose_rate", interrupt)
    code, out, err = run("--smoke", "--workdir", tmp_path, "--cells", "gru", "rnn")
    assert (code, err) == (130, "stopped after step 7\n")
    for row in ("| `gru` | 8 | 1,234 | 0.003 | 1.750 |", "| `mgu` | 8 |"):
        assert row in out
    assert out.endswith("Not finished: rnn.\n")


def test_the_smoke_run_leaves_nothing(run, monkeypatch, tmp_path):
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "train", lambda comparison, _: seen.append(comparison))
    assert run("--smoke")[0] == 0
    [comparison] = seen
    assert comparison.text.name == "generated"
    assert not comparison.path.exists()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds"], "--seeds needs at least one seed"),
        (["--seeds", 0, -1], "--seeds must be from 0 to 4294967295, got -1"),
        (["--seeds", 3, 0, 3], "--seeds has 3 twice: name each once"),
        (["--cells", "gru", "gru"], "--cells has gru twice: name each once"),
        (["--best", 0], "--best must be at least 1, got 0"),
        (["--seconds", 0], "--seconds must be finite and above 0, got 0.0"),
        (["--text"], "--text needs at least one file or folder"),
        (["--smoke", "--text", "x"], "give either --smoke or --text, not both"),
        (["--text", "/none"], "/none: cannot be read: No such file"),
        (["--smoke", "--devices", 0], "--devices must be at least 1, got 0"),
        (["--workdir", ""], "--workdir is empty: name a path"),
    ],
)
def test_what_is_refused(run, arguments, message):
    assert_refused(run(*arguments), message)


def test_help(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("--help")
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--cells", "--seeds", "--best", "--speed", "--smoke", "--workdir"):
        assert flag in out
