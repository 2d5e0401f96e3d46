"""The AWD-LSTM's recipe: its penalties, NT-ASGD against a loop, and its presets."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from experiments.charlm import awd, nt_asgd
from experiments.charlm import model as charlm_model
from experiments.charlm.awd import Regularization
from experiments.charlm.config import PRESETS, SMOKES, Settings
from experiments.charlm.generator import Writer
from experiments.charlm.options import Options
from experiments.charlm.units import WORDS
from experiments.harness.workdir import WorkDir
from jaxrnn.models import LanguageModel
from jaxrnn.placement import data_mesh
from tests import oracles
from tests.charlm.test_train import load_state
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

VOCAB, FEATURES = 12, 4
apply = jax.jit(awd.apply, static_argnums=(0, 5))


@pytest.fixture
def model():
    layers = [jaxrnn.LSTM(5), jaxrnn.LSTM(FEATURES)]
    return LanguageModel(VOCAB, FEATURES, jaxrnn.Stack(layers), tie_embeddings=True)


@pytest.fixture
def params(model, rng):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def outputs_of(params, x):
    """Of the last of the two layers, for embedded inputs of rows."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    rows = []
    for row in np.asarray(x, np.float64):
        for name, size in (("layers_0", 5), ("layers_1", FEATURES)):
            zeros = np.zeros(size), np.zeros(size)
            row, _ = oracles.lstm(row, zeros, p["encoder"][name]["l0"])
        rows.append(row)
    return np.stack(rows)


def test_penalties_are_those_of_the_last_layer(model, params, rng):
    tokens = rng.integers(VOCAB, size=(3, 7)).astype(np.int32)
    key, state = jax.random.key(1), model.initial_state((3,))
    regularization = Regularization(activation=2.0, temporal=0.5)
    logits, _, found = apply(model, params, tokens, state, key, regularization)
    outputs = outputs_of(params, params["params"]["embed"]["embedding"][tokens])
    small = (outputs**2).mean()
    slow = ((outputs[:, 1:] - outputs[:, :-1]) ** 2).mean()
    assert found == pytest.approx(2 * small + 0.5 * slow, rel=1e-5)
    expected, _ = model.apply(params, tokens, state=state)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    nothing = apply(model, params, tokens, state, key, Regularization())
    assert nothing[2] is None
    np.testing.assert_array_equal(nothing[0], expected)


def test_the_outputs_are_penalised_after_dropout_and_their_change_before(params, rng):
    layers = [jaxrnn.LSTM(5), jaxrnn.LSTM(FEATURES)]
    encoder = jaxrnn.Stack(layers)
    model = LanguageModel(VOCAB, FEATURES, encoder, 0.5, tie_embeddings=True)
    tokens = rng.integers(VOCAB, size=(40, 30)).astype(np.int32)
    key, state = jax.random.key(1), model.initial_state((40,))
    outputs = outputs_of(params, params["params"]["embed"]["embedding"][tokens])
    _, _, found = apply(model, params, tokens, state, key, Regularization(temporal=1.0))
    slow = ((outputs[:, 1:] - outputs[:, :-1]) ** 2).mean()
    assert found == pytest.approx(slow, rel=1e-5)
    _, _, found = apply(model, params, tokens, state, key, Regularization(activation=1))
    # Half of the outputs are doubled: of 4,800 values the mean square is twice that.
    assert found == pytest.approx(2 * (outputs**2).mean(), rel=0.1)


def test_words_are_dropped_wherever_they_are_read(model, params, rng):
    tokens = np.tile(rng.permutation(VOCAB).astype(np.int32), (2, 2))
    key, state = jax.random.key(3), model.initial_state((2,))
    regularization = Regularization(embedding_dropout=0.5)
    logits, *_ = apply(model, params, tokens, state, key, regularization)
    p = params["params"]
    table = np.asarray(p["embed"]["embedding"], np.float64)

    def logits_with(kept):
        x = (table * 2 * kept[:, None])[tokens]
        # The table that predicts has all words.
        return outputs_of(params, x) @ table.T + np.asarray(p["bias"], np.float64)

    kept = np.asarray(
        jax.random.bernoulli(jax.random.split(key)[0], 0.5, (VOCAB,)), np.float64
    )
    assert 0 < kept.sum() < VOCAB
    np.testing.assert_allclose(logits, logits_with(kept), rtol=1e-4, atol=1e-5)
    other, *_ = apply(model, params, tokens, state, jax.random.key(4), regularization)
    assert not np.allclose(other, logits, atol=1e-2)


def test_the_loss_has_the_penalty_and_is_told_without():
    settings = replace(SMOKES["awd"], dropout=0.0, weight_drop=0.0, embedding_dropout=0)
    model = charlm_model.make_model(settings, VOCAB)
    optimizer = charlm_model.make_optimizer(settings, 3)
    state = charlm_model.make_state(model, optimizer, settings)
    rows, steps = settings.batch, settings.seq_len
    ids = np.random.default_rng(0).integers(VOCAB, size=(rows, steps + 1))
    ids = ids.astype(np.int32)
    batch = {
        "inputs": ids[:, :-1],
        "targets": ids[:, 1:],
        "starts": np.ones(rows, bool),
    }
    logits, _ = model.apply(state.train.params, batch["inputs"])
    logs = jax.nn.log_softmax(logits)
    nats = -np.take_along_axis(np.asarray(logs), batch["targets"][..., None], -1).mean()
    zeros, key = model.initial_state((rows,)), jax.random.key(0)
    regularization = Regularization(0.0, 2.0, 1.0)
    *_, penalty = apply(
        model, state.train.params, batch["inputs"], zeros, key, regularization
    )
    assert penalty > 1e-4
    mesh = data_mesh(2)
    step = charlm_model.make_train_step(model, optimizer, mesh, 0.0, regularization)
    _, found = step(charlm_model.shard_state(state, mesh), batch)
    assert found["nats"].value == pytest.approx(nats, rel=1e-5)
    assert found["loss"].value == pytest.approx(nats + float(penalty), rel=1e-5)


def test_nt_asgd_is_gradient_descent_and_then_its_mean(rng):
    """Algorithm 1 by a loop in float64, with decay and a clipped gradient."""
    settings = Settings(
        optimizer="nt-asgd", learning_rate=0.3, weight_decay=0.1, clip=1.0,
        schedule="constant", warmup=0.0,
    )  # fmt: skip
    optimizer = charlm_model.make_optimizer(settings, 20)
    params = {"w": jnp.asarray(rng.normal(size=3), jnp.float32), "b": jnp.zeros(2)}
    state = optimizer.init(params)
    expected = {name: np.asarray(x, np.float64) for name, x in params.items()}
    visited = []
    for step in range(12):
        gradient = {k: rng.normal(size=np.shape(v)) for k, v in params.items()}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name, g in gradient.items():
            clipped = g / max(norm, 1.0)
            expected[name] = expected[name] - 0.3 * (clipped + 0.1 * expected[name])
        if step == 5:
            assert not nt_asgd.is_averaging(state)
            state = nt_asgd.start(state)
        if step >= 5:
            visited.append({k: v.copy() for k, v in expected.items()})
        gradient = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradient)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        mean = state[-1].mean
        for name, value in expected.items():
            np.testing.assert_allclose(params[name], value, rtol=1e-4, atol=1e-5)
            if visited:
                value = np.mean([v[name] for v in visited], axis=0)
            np.testing.assert_allclose(mean[name], value, rtol=1e-4, atol=1e-5)
    assert nt_asgd.is_averaging(state)
    assert int(state[-1].count) == 7


def test_the_trigger_is_the_authors():
    """Their loop over the epochs of `main.py`, which appends after it has compared."""
    rng = np.random.default_rng(0)
    for patience in (1, 2, 5):
        losses = list(rng.normal(size=40) - 0.05 * np.arange(40))
        before = []
        for epoch, loss in enumerate(losses):
            expected = len(before) > patience and loss > min(before[:-patience])
            found = nt_asgd.is_triggered(losses[: epoch + 1], patience)
            assert found == expected
            before.append(loss)


@pytest.fixture(scope="module")
def run(module_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("awd") / "run"
    options = ("--smoke", "--preset", "awd", "--workdir", path)
    return path, options, module_run(*options)


def test_the_awd_preset_learns_words_and_evaluates_the_average(run, charlm_run):
    path, options, (code, _, err) = run
    assert (code, err) == (0, "")
    history = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    assert history[-1]["train_nats"] < 0.6 * history[0]["train_nats"]
    assert all(line["train_loss"] > line["train_nats"] for line in history)
    results = json.loads((path / "results.json").read_text())
    assert results["optimizer"] == "nt-asgd"
    assert results["train_nats"] == history[results["best_epoch"] - 1]["train_nats"]
    writer = Writer.load(path)
    assert writer.units is WORDS
    train = load_state(path, "best").train
    mean = nt_asgd.evaluated_params(train)
    jax.tree.map(np.testing.assert_array_equal, writer._variables, mean)
    assert charlm_run(*options)[1].startswith(f"{path} holds a finished run\n")
    assert charlm_run("--sample", "--workdir", path, "--length", 5)[0] == 0


def test_averaging_begins_when_validation_is_worse_and_goes_on_after_a_stop(
    run, charlm_run, tmp_path, monkeypatch
):
    """Said once; a run that is begun again with what was saved then has it, too."""
    monkeypatch.setattr(
        "experiments.charlm.train.is_triggered", lambda losses, _: len(losses) == 4
    )
    path = tmp_path / "run"
    code, out, _ = charlm_run("--smoke", "--preset", "awd", "--workdir", path)
    assert code == 0
    assert out.count("from epoch 5 on the parameters are averaged\n") == 1
    state = load_state(path, "last").train
    average = state.opt_state[-1]
    settings = WorkDir(path).settings_as(Settings)
    steps = int(state.step) // settings.epochs
    assert int(average.count) == 2 * steps
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), average.mean, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_the_large_preset_runs(charlm_run, tmp_path):
    path = tmp_path / "run"
    code, _, err = charlm_run("--smoke", "--preset", "large", "--workdir", path)
    assert (code, err) == (0, "")
    results = json.loads((path / "results.json").read_text())
    assert results["layers"] == 2
    assert results["validation_nats_window_256"] < 1.8


def test_the_sizes_of_the_awd_lstm():
    """24 million parameters with the 10,000 words of Penn Treebank, as published."""
    model = charlm_model.make_model(replace(PRESETS["awd"], dtype="float32"), 10_000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    layers = [(400, 1150), (1150, 1150), (1150, 400)]
    expected = sum((d + h + 1) * 4 * h for d, h in layers) + 10_000 * 401
    assert size == expected
    assert 24.0e6 < size < 24.3e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "awd", "--bytes"], "give either --bytes or --preset awd, which"),
        (["--last-hidden", 3], "--last-hidden needs --layers 2 or more"),
        (["--layer-dropout", 0.5], "--layer-dropout needs --layers 2 or more"),
        (["--embedding-dropout", 1], "--embedding-dropout must be from 0 to below 1"),
        (["--input-dropout", 2], "--input-dropout must be from 0 to 1, got 2.0"),
        (
            ["--temporal-penalty", -1],
            "--temporal-penalty must be finite and at least 0",
        ),
        (["--averaging-patience", 0], "--averaging-patience must be at least 1, got 0"),
    ],
)
def test_options_out_of_range(charlm_run, tmp_path, arguments, message):
    path = tmp_path / "run"
    assert_refused(charlm_run("--workdir", path, *arguments), message)
    assert not path.exists()
    assert Options().preset == "quick"


def test_a_run_of_an_earlier_version_has_none_of_it(charlm_smoke, charlm_run, tmp_path):
    shutil.copytree(charlm_smoke[0], path := tmp_path / "run")
    settings = json.loads((path / "settings.json").read_text())
    for name in (
        "words", "vocabulary_size", "layer_dropout", "input_dropout", "last_hidden",
        "embedding_dropout", "activation_penalty", "temporal_penalty", "optimizer",
        "averaging_patience",
    ):  # fmt: skip
        settings.pop(name)
    (path / "settings.json").write_text(json.dumps(settings))
    assert charlm_run("--smoke", "--workdir", path)[0] == 0
    assert charlm_run("--sample", "--length", 5, "--workdir", path)[0] == 0
