"""What the units of a character model do: states, ranks, and what the page is told."""

import base64
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.charlm import activations, generator
from experiments.charlm import model as charlm_model
from experiments.charlm.config import Settings
from experiments.charlm.generator import Writer
from experiments.harness import html_report
from experiments.harness.workdir import fingerprint
from jaxrnn.cells import LEMState
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.text import Vocab
from jaxrnn.types import LSTMState
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

VOCAB = Vocab(tuple("\nabc<é"))
TEXT = "a<b\ncab<\ncccab\naéa<"


def make(cell, vocab=VOCAB, layers=2):
    """A model with random weights, and its state of training."""
    settings = Settings(cell=cell, embed=4, hidden=5, layers=layers, batch=2, seq_len=4)
    model = charlm_model.make_model(settings, len(vocab))
    optimizer = charlm_model.make_optimizer(settings, steps=1)
    state = charlm_model.make_state(model, optimizer, settings)
    weights = jax.tree.map(lambda leaf: 3 * leaf, state.train.params)
    train = state.train.replace(params=weights)
    return settings, model, state.replace(train=train)


def numbers(packed, dtype):
    return np.frombuffer(base64.b64decode(packed), dtype)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_states_are_those_after_each_character(cell, monkeypatch):
    monkeypatch.setattr(generator, "CHUNK", 8)
    _, model, carried = make(cell)
    params = carried.train.params
    writer = Writer(model, params, VOCAB)
    parts = list(writer.trace(writer.encode(TEXT)))
    assert [logs.shape for _, logs in parts] == [(8, 6), (8, 6), (3, 6)]
    states = jax.tree.map(lambda *x: np.concatenate(x), *[state for state, _ in parts])
    ids = VOCAB.encode(list(TEXT))
    for k in (0, 7, 8, len(TEXT) - 1):
        logits, state = model.apply(params, jnp.asarray(ids[: k + 1]))
        expected = jax.nn.log_softmax(logits[-1])
        found = np.concatenate([logs for _, logs in parts])[k]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        for leaf, wanted in zip(*map(jax.tree.leaves, (states, state)), strict=True):
            np.testing.assert_allclose(leaf[k], wanted, atol=1e-5)


def test_values_are_what_is_remembered(rng):
    h, c = rng.normal(size=(2, 3, 4))
    np.testing.assert_array_equal(activations.values(np.tanh(h)), np.tanh(h))
    # Of cells without bounds, with complex states, or with states of several parts.
    np.testing.assert_array_equal(activations.values(h), np.clip(h, -1, 1))
    np.testing.assert_array_equal(activations.values(h + 1j * c), np.clip(h, -1, 1))
    several = LEMState(y=np.tanh(h), z=c)
    np.testing.assert_array_equal(activations.values(several), np.tanh(h))
    found = activations.values(LSTMState(h, c))
    np.testing.assert_allclose(found, (np.exp(2 * c) - 1) / (np.exp(2 * c) + 1))


@pytest.mark.parametrize("size", [1, 7, 10, 11, 40])
def test_memory_is_what_the_loop_finds(rng, size):
    units, ids = rng.normal(size=(size, 3)), rng.integers(1, 4, size)
    lag = 10 if size > 10 else 0
    for k, found in enumerate(activations.memory_scores(units, ids)):
        left = [
            units[t, k]
            - np.mean([units[s, k] for s in range(size) if ids[s] == ids[t]])
            for t in range(size)
        ]
        products = [left[t] * left[t + lag] for t in range(size - lag)]
        assert found == pytest.approx(sum(products) / (size - lag), abs=1e-12)


def test_the_page_is_told_the_most_interesting_units_first(monkeypatch):
    monkeypatch.setattr(activations, "SHOWN", 7)
    _, model, carried = make("gru")
    params = carried.train.params
    found = activations.describe(Writer(model, params, VOCAB), TEXT)
    assert "".join(found["characters"]) == TEXT
    assert (found["of"], len(found["units"])) == (10, 7)

    ids = VOCAB.encode(list(TEXT))
    outputs, probabilities, state = [], [], model.initial_state(())
    for token in ids:
        logits, state = model.apply(params, token, state, method="step")
        outputs.append(np.stack(state))  # layer, unit
        probabilities.append(jax.nn.softmax(logits))
    outputs, probabilities = np.array(outputs), np.array(probabilities)
    scores = [unit["score"] for unit in found["units"]]
    assert scores == sorted(scores, reverse=True)
    of_all = activations.memory_scores(outputs.reshape(len(ids), -1), ids)
    np.testing.assert_allclose(scores, np.sort(of_all)[::-1][:7], atol=1e-6)
    values = numbers(found["values"], np.int8).reshape(7, len(ids)) / 127
    for unit, row in zip(found["units"], values, strict=True):
        expected = outputs[:, unit["layer"], unit["unit"]]
        np.testing.assert_allclose(row, expected, atol=0.5 / 127 + 1e-5)

    likeliest = numbers(found["likeliest"], np.uint32).reshape(len(ids), 5)
    shares = numbers(found["probabilities"], np.uint16).reshape(len(ids), 5) / 65535
    for t in range(len(ids)):
        best = np.sort(probabilities[t])[::-1][:5]
        np.testing.assert_allclose(shares[t], best, atol=1e-5)
        np.testing.assert_allclose(probabilities[t, likeliest[t]], best, atol=1e-6)
    following = numbers(found["following"], np.uint16) / 65535
    expected = [probabilities[t, ids[t + 1]] for t in range(len(ids) - 1)]
    np.testing.assert_allclose(following, expected, atol=1e-5)


def save(path, vocab=VOCAB, **identity):
    """A run without training in `path`."""
    settings, _, state = make("gru", vocab, layers=1)
    identity = {"dataset": "none", "vocabulary": fingerprint(vocab), **identity}
    path.mkdir(exist_ok=True)
    known = {"bytes": False, **vars(settings), **identity}
    (path / "settings.json").write_text(json.dumps(known))
    (path / "results.json").write_text("{}")
    vocab.save(path / "vocab.txt")
    Checkpoints(path / "checkpoints").save(1, state, info={}, metric=0.5)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"))


def test_the_page_holds_the_text(run, charlm_run, tmp_path):
    page, file = tmp_path / "out.html", tmp_path / "text"
    file.write_text(TEXT, encoding="utf-8")
    options = ("--workdir", run, "--neurons", file, "--html", page)
    code, out, err = charlm_run(*options)
    assert (code, out, err) == (0, f"{page}: 5 of 5 units, reading {file}\n", "")
    [data] = re.findall(r'id="data">(.*?)</script>', page.read_text())
    data = json.loads(data)
    assert "".join(data["characters"]) == TEXT
    assert str(file) in data["model"]
    assert data["bytes"] is False

    file.write_text(f"{TEXT}z", encoding="utf-8")
    assert_refused(
        charlm_run(*options), "has characters outside the model's vocabulary"
    )
    assert charlm_run(*options, "--unknown", "skip")[0] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": None}, "is of another program or version: it has no dataset"),
        ({"dataset": [1]}, "is damaged: dataset is [1], not str"),
        ({"bytes": None}, "is of another program or version: it has no bytes"),
        ({"bytes": "no"}, "is damaged: bytes is 'no', not bool"),
    ],
)
def test_settings_must_say_what_the_page_does(
    run, charlm_run, tmp_path, changed, message
):
    path = shutil.copytree(run, tmp_path / "run")
    settings = json.loads((path / "settings.json").read_text()) | changed
    kept = {name: value for name, value in settings.items() if value is not None}
    (path / "settings.json").write_text(json.dumps(kept))
    page, file = tmp_path / "out.html", tmp_path / "text"
    file.write_text("abc")
    result = charlm_run("--workdir", path, "--neurons", file, "--html", page)
    assert_refused(result, f"{path}/settings.json {message}")
    assert not page.exists()


def test_of_a_long_text_the_page_has_the_beginning_and_says_so(
    run, charlm_run, tmp_path
):
    """By default the page is in the work directory."""
    path, file = shutil.copytree(run, tmp_path / "run"), tmp_path / "text"
    file.write_text("a" * 10_000 + "b")
    told = f"the first 10,000 of 10,001 characters of {file}"
    page = path / "neurons.html"
    result = charlm_run("--workdir", path, "--neurons", file)
    assert result == (0, f"{page}: 5 of 5 units, reading {told}\n", "")
    [data] = re.findall(r'id="data">(.*?)</script>', page.read_text())
    data = json.loads(data)
    assert data["characters"] == ["a"] * 10_000
    assert data["model"].endswith(f", reading {told}")


def test_one_process_writes_the_page(run, charlm_run, tmp_path, monkeypatch):
    monkeypatch.setattr(html_report.jax, "process_index", lambda: 1)
    page, file = tmp_path / "out.html", tmp_path / "text"
    file.write_text("abc")
    assert charlm_run("--workdir", run, "--neurons", file, "--html", page)[0] == 0
    assert not page.exists()


def test_bytes_are_any(tmp_path, charlm_run):
    every = Vocab(tuple(map(chr, range(256))))
    path, page, file = (
        save(tmp_path / "run", every, bytes=True),
        tmp_path / "p",
        tmp_path / "t",
    )
    file.write_bytes(b"\x00\xff\r\na")
    assert charlm_run("--workdir", path, "--neurons", file, "--html", page)[0] == 0
    [data] = re.findall(r'id="data">(.*?)</script>', page.read_text())
    data = json.loads(data)
    assert data["characters"] == ["\0", "\xff", "\r", "\n", "a"]
    assert data["bytes"] is True
