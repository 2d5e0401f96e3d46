"""Dynamic evaluation, against loops over segments in float64, and as an option."""

import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import dynamic
from experiments.charlm.config import SMOKE, Settings
from experiments.charlm.dynamic import Rule
from experiments.charlm.generator import Writer
from jaxrnn.models import LanguageModel
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

VOCAB, HIDDEN = 6, 5
MODEL = LanguageModel(VOCAB, 4, jaxrnn.RNN(HIDDEN))


@pytest.fixture
def params(rng):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def read(params, text, h):
    """Mean nats of a segment, nats of each token and the state, one step at a time."""
    p = params["params"]
    layer, nats = p["encoder"]["l0"], []
    for token, target in itertools.pairwise(text):
        x = p["embed"]["embedding"][token]
        h = jnp.tanh(x @ layer["w_x"] + h @ layer["w_h"] + layer["b"])
        logits = h @ p["output"]["kernel"] + p["output"]["bias"]
        nats.append(jnp.log(jnp.exp(logits).sum()) - logits[target])
    return sum(nats) / len(nats), (jnp.stack(nats), h)


gradient = jax.grad(read, has_aux=True)


def doubles(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), tree)


def squares_one_by_one(params, ids, rows, segment):
    """The mean over batches of the squares of the mean gradient over the rows."""
    length = (len(ids) - 1) // rows // segment * segment
    states = [jnp.zeros(HIDDEN)] * rows
    squares = []
    for start in range(0, length, segment):
        found = []
        for row in range(rows):
            first = row * length + start
            g, (_, states[row]) = gradient(
                params, ids[first : first + segment + 1], states[row]
            )
            found.append(g)
        mean = jax.tree.map(lambda *gs: sum(gs) / rows, *found)
        squares.append(jax.tree.map(jnp.square, mean))
    return jax.tree.map(lambda *s: np.sqrt(sum(s) / len(s)), *squares)


def nats_one_by_one(params, rms, ids, rule):
    """Krause et al. (2018), equations 5 and 6, a segment at a time."""
    average = np.mean([np.mean(leaf) for leaf in jax.tree.leaves(rms)])
    now, h, nats = params, jnp.zeros(HIDDEN), []
    for start in range(0, len(ids) - 1, rule.segment):
        g, (found, h) = gradient(now, ids[start : start + rule.segment + 1], h)
        nats.extend(found)
        now = jax.tree.map(
            lambda p, p0, r, g: (
                p
                - rule.rate * g / (r + 2e-5)
                + np.minimum(rule.decay * r / average, 1.0) * (p0 - p)
            ),
            now,
            params,
            rms,
            g,
        )
    return np.array(nats)


@pytest.mark.parametrize(
    ("size", "rows"), [(3 * 4 * 5 + 1, 4), (3 * 4 * 5 + 3, 4), (13, 2), (3, 1)]
)
def test_mean_squares_are_those_of_one_row_after_the_other(
    params, rng, x64, monkeypatch, size, rows
):
    ids = rng.integers(VOCAB, size=size).astype(np.int32)
    segment = min(5, size - 1)
    expected = squares_one_by_one(doubles(params), ids, rows, segment)
    monkeypatch.setattr(dynamic, "ROWS", 4)
    found = dynamic.root_mean_squares(MODEL, params, ids, 5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def test_a_long_text_is_not_read_to_the_end_for_them(params, rng, monkeypatch):
    ids = rng.integers(VOCAB, size=4 * 5 * 6 + 1).astype(np.int32)
    monkeypatch.setattr(dynamic, "ROWS", 4)
    rows = ids[:-1].reshape(4, 30)
    first = np.concatenate([row[:10] for row in rows])
    monkeypatch.setattr(dynamic, "BATCHES", 2)
    found = dynamic.root_mean_squares(MODEL, params, ids, 5)
    changed = ids.copy()
    changed[15:28] = (changed[15:28] + 1) % VOCAB  # behind the 10 that are read, and 1
    again = dynamic.root_mean_squares(MODEL, params, changed, 5)
    jax.tree.map(np.testing.assert_array_equal, found, again)
    monkeypatch.setattr(dynamic, "BATCHES", 6)
    whole = dynamic.root_mean_squares(MODEL, params, ids, 5)
    leaf = found["params"]["output"]["bias"]
    assert not np.allclose(leaf, whole["params"]["output"]["bias"], rtol=1e-3)
    assert first.size == 40


@pytest.mark.parametrize("decay", [0.05, 10.0])  # the latter is cut to 1 of most
@pytest.mark.parametrize("size", [2, 6, 7, 83])
def test_nats_are_those_of_one_segment_after_the_other(
    params, rng, x64, monkeypatch, size, decay
):
    ids = rng.integers(VOCAB, size=size).astype(np.int32)
    rms = jax.tree.map(
        lambda x: np.abs(rng.normal(size=x.shape)).astype(np.float32), params
    )
    rule = Rule(segment=5, rate=0.05, decay=decay)
    monkeypatch.setattr(dynamic, "SCANNED", 4)
    parts = list(dynamic.dynamic_nats(MODEL, params, rms, ids, rule))
    assert [part.size for part in parts[:-1]] == [20] * (len(parts) - 1)
    expected = nats_one_by_one(doubles(params), doubles(rms), ids, rule)
    # Rounding in float32 grows along a chain of updates.
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-3, atol=1e-4)
    mean = dynamic.mean_nats(MODEL, params, rms, ids, rule)
    assert mean == pytest.approx(expected.mean(), rel=1e-3)


def test_a_text_that_repeats_itself_is_learnt(params):
    ids = np.tile(np.arange(VOCAB, dtype=np.int32), 40)
    rms = jax.tree.map(np.ones_like, params)
    rule = Rule(segment=5, rate=0.1, decay=0.0)
    nats = np.concatenate([*dynamic.dynamic_nats(MODEL, params, rms, ids, rule)])
    assert nats[-VOCAB:].mean() < 0.5 * nats[:VOCAB].mean()


def test_a_score_stands_beside_the_usual_one(charlm_smoke, charlm_run, tmp_path):
    path, file = charlm_smoke[0], tmp_path / "text"
    text = charlm_datasets.generate(400, seed=5).content
    file.write_text(text)
    options = ("--smoke", "--workdir", path, "--score", file)
    code, usual, err = charlm_run(*options)
    assert (code, err) == (0, "")
    code, out, err = charlm_run(*options, "--dynamic-evaluation")
    assert (code, err) == (0, "")
    first, second = out.splitlines(keepends=True)
    assert first == usual

    writer = Writer.load(path)
    train, _ = charlm_datasets.generate(seed=SMOKE.seed).split()
    model, params = writer._model, writer._variables
    rms = dynamic.root_mean_squares(model, params, writer.encode(train), 20)
    rule = Rule(segment=20, rate=2e-4, decay=8e-3)
    nats = dynamic.mean_nats(model, params, rms, writer.encode(text), rule)
    assert second == (
        f"{file}: {nats:.4f} nats, {nats / math.log(2):.4f} bits per character with "
        "dynamic evaluation\n"
    )
    still = ("--dynamic-evaluation", "--dynamic-rate", 0, "--dynamic-segment", 7)
    *_, second = charlm_run(*options, *still)[1].splitlines()
    assert second.split(": ")[1].split()[0] == usual.split(": ")[1].split()[0]


def test_a_finished_training_is_evaluated_with_it(charlm_smoke, charlm_run, tmp_path):
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    code, out, err = charlm_run("--smoke", "--workdir", path, "--dynamic-evaluation")
    assert (code, err) == (0, "")
    results = json.loads((path / "results.json").read_text())
    usual = json.loads((charlm_smoke[0] / "results.json").read_text())
    for name, value in usual.items():
        if name.startswith(("validation", "train")):
            assert results[name] == value
    writer = Writer.load(path)
    train, validation = charlm_datasets.generate(seed=SMOKE.seed).split()
    ids = writer.encode(train), writer.encode(validation)
    model, params = writer._model, writer._variables
    rms = dynamic.root_mean_squares(model, params, ids[0], 20)
    nats = dynamic.mean_nats(model, params, rms, ids[1], Rule(20, 2e-4, 8e-3))
    assert results["validation_nats_dynamic"] == pytest.approx(nats, rel=1e-5)
    assert results["validation_bits_dynamic"] == pytest.approx(nats / np.log(2), 1e-5)
    assert f", {nats:.4f} dynamic (" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dynamic-rate", 1], "--dynamic-segment need --dynamic-evaluation"),
        (
            ["--dynamic-evaluation", "--dynamic-segment", 0],
            "--dynamic-segment must be at least 1, got 0",
        ),
        (
            ["--dynamic-evaluation", "--dynamic-rate", -1],
            "--dynamic-rate must be finite and at least 0, got -1.0",
        ),
        (
            ["--dynamic-evaluation", "--neurons", "x"],
            "--dynamic-evaluation needs --score or a training",
        ),
    ],
)
def test_options_that_make_no_sense(charlm_run, tmp_path, arguments, message):
    assert_refused(charlm_run("--workdir", tmp_path / "run", *arguments), message)


def test_it_needs_the_text_of_the_training(charlm_smoke, charlm_run, tmp_path):
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    settings = json.loads((path / "settings.json").read_text())
    (path / "settings.json").write_text(json.dumps(settings | {"seed": 3}))
    assert Settings().seed == 0
    file = tmp_path / "text"
    file.write_text("8+6=14. ")
    result = charlm_run(
        "--workdir",
        path,
        "--score",
        file,
        "--dynamic-evaluation",
        "--smoke",
        "--seed",
        1,
    )
    assert_refused(result, "--dynamic-evaluation needs the text that the model was tr")
