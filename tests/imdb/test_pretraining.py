"""The program that pre-trains: it learns, keeps to its texts, and goes on."""

import dataclasses
import json
import math
import signal
import sys

import jax
import numpy as np
import pytest

from experiments.harness import cli
from experiments.harness.workdir import WorkDir
from experiments.imdb import datasets, pretraining
from experiments.imdb.datasets import Reviews, Split
from experiments.imdb.pretraining import SMOKE, Options, prepare, training_texts
from jaxrnn import training
from jaxrnn.checkpoints import Checkpoints
from tests.harness.test_training_loop import files_below

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("xla_flags_restored")]


@pytest.fixture
def pretraining_run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pretraining", *map(str, arguments)])
        name = "imdb.pretraining"
        code = cli.run(pretraining.main, Options, name, pretraining.__doc__)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run that was never stopped."""
    path = tmp_path_factory.mktemp("smoke")
    pretraining.main(Options(smoke=True, workdir=path))
    return path


def test_the_perplexity_falls(smoke):
    lines = [json.loads(x) for x in (smoke / "metrics.jsonl").read_text().splitlines()]
    perplexities = [line["validation_perplexity"] for line in lines]
    # 26 words and the end in random order: a uniform model has 27.
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < 20
    results = json.loads((smoke / "results.json").read_text())
    assert results["validation_perplexity"] == perplexities[-1]


@pytest.mark.parametrize("stop", [1, 250])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path, smoke, monkeypatch, pretraining_run, stop
):
    make = training.make_stateful_train_step

    def stopping(*arguments):
        step, count = make(*arguments), iter(range(1, 10_000))

        def counted(state, carry, batch):
            if next(count) == stop:
                signal.raise_signal(signal.SIGTERM)
            return step(state, carry, batch)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(training, "make_stateful_train_step", stopping)
        code, _, err = pretraining_run("--smoke", "--workdir", tmp_path)
    assert code == 130
    assert f"stopped after step {stop}, all is saved in {tmp_path}" in err
    code, out, err = pretraining_run("--smoke", "--workdir", tmp_path)
    assert code == 0, err
    assert f"continuing in {tmp_path} after step {stop}\n" in out
    measured = [
        [
            {name: x for name, x in line.items() if "second" not in name}
            for line in WorkDir(path).metrics
        ]
        for path in (tmp_path, smoke)
    ]
    assert measured[0] == measured[1]
    states = [parameters(path) for path in (tmp_path, smoke)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def parameters(path):
    """All of the last state, as arrays."""
    run = prepare(datasets.generate(), SMOKE, WorkDir(path))
    model = pretraining.make_language_model(SMOKE, len(run.vocab))
    optimizer = pretraining.make_optimizer(SMOKE, 1)
    template = pretraining.make_state(model, optimizer, SMOKE)
    state, _ = Checkpoints(path / "checkpoints").restore(template, "last")
    return jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        ),
        state,
    )


def test_a_finished_run_does_nothing_more(smoke, pretraining_run):
    before = files_below(smoke)
    code, out, _ = pretraining_run("--smoke", "--workdir", smoke)
    assert code == 0
    assert out.startswith(f"{smoke} holds a finished run\ngenerated: forward language ")
    assert files_below(smoke) == before


def test_there_is_no_search_for_a_learning_rate(tmp_path, pretraining_run):
    code, _, err = pretraining_run("--lr-find", "--workdir", tmp_path / "run")
    assert code == 2
    assert "--lr-find is for classifiers" in err
    assert not (tmp_path / "run").exists()


def test_another_direction_is_another_run(smoke, pretraining_run):
    code, _, err = pretraining_run(
        "--smoke", "--workdir", smoke, "--direction", "backward"
    )
    assert code == 2
    assert "direction" in err


def test_no_text_of_another_part_is_read():
    labels = np.zeros(3, np.int32)
    data = Reviews(
        "made up",
        Split(["one", "shared with test", "two"], labels),
        Split(["validation", "three", "four"], labels),
        Split(["test", "shared with test", "five"], labels),
        ["six", "validation", "seven", "test"],
    )
    assert training_texts(data) == ["one", "two", "six", "seven"]


def test_backward_texts_are_read_from_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "HELD_OUT", 5)
    data = datasets.generate(60)
    runs = [
        prepare(
            data,
            dataclasses.replace(SMOKE, direction=direction),
            WorkDir(tmp_path),
        )
        for direction in ("forward", "backward")
    ]
    for part in ("train", "held_out"):
        forward, backward = (getattr(run, part) for run in runs)
        assert [x[::-1].tolist() for x in forward] == [x.tolist() for x in backward]
    every = [*runs[0].train, *runs[0].held_out]
    texts = [" ".join(runs[0].vocab.decode(ids)) for ids in every]
    assert sorted(texts) == sorted(training_texts(data))
    assert [len(run.held_out) for run in runs] == [math.ceil(len(texts) / 5)] * 2
