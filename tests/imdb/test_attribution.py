"""Explanations of decisions: contributions by another road, and that they add up."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from experiments.harness.workdir import fingerprint
from experiments.imdb import attribution
from experiments.imdb import model as imdb_model
from experiments.imdb.attribution import explain, running
from experiments.imdb.batches import Examples
from experiments.imdb.linear import LinearClassifier
from experiments.imdb.model import Settings
from experiments.imdb.predictor import Reader
from jaxrnn import placement
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.text import PAD, UNK, Vocab
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

WORDS = ("a", "good", "bad", "film", "don't", "see", "it")
VOCAB = Vocab((PAD, UNK, *WORDS))
SETTINGS = Settings(
    cell="gru", embed=5, hidden=6, pooling=("max", "mean"), buckets=2, batch=8
)  # fmt: skip


def untrained(settings=SETTINGS, seed=0):
    """A model with random weights, large enough for decisions to differ."""
    model = imdb_model.make_model(settings, len(VOCAB))
    optimizer = imdb_model.make_optimizer(settings, steps=1)
    state = imdb_model.make_state(model, optimizer, seed=seed)
    embedding = 4 * np.random.default_rng(seed).normal(size=(len(VOCAB), 5))
    state.params["params"]["embed"]["embedding"] = jnp.float32(embedding)
    return model, state


def reading(model, params):
    """A function of the word ids of a review, and of an embedding to use in place of
    the model's: the logit. It is compiled once."""

    @jax.jit
    def read(tokens, length, embed):
        changed = {"params": params["params"] | {"embed": embed}}
        return model.apply(changed, tokens[None], lengths=length[None])[0]

    def logit(ids, embedding=None):
        embed = params["params"]["embed"]
        if embedding is not None:
            embed = {"embedding": np.float32(embedding)}
        return float(read(np.pad(ids, (0, 64 - ids.size)), np.int32(ids.size), embed))

    return logit


def test_contributions_are_those_of_finite_differences():
    """A word's share is moved up and down, at every step of the path. It is the only
    place with its word, so that the model's own embedding can do it."""
    model, state = untrained(Settings(embed=5, hidden=3, pooling=("mean", "last")))
    ids = np.array([2, 5, 1, 8])
    [found] = explain(model, state.params, [ids])
    assert found.steps == attribution.CHUNK
    full = np.float64(state.params["params"]["embed"]["embedding"])
    logit = reading(model, state.params)
    expected, nudge = np.zeros(ids.size), 0.01
    for k, word in enumerate(ids):
        for share in (np.arange(found.steps) + 0.5) / found.steps:
            up, down = share * full, share * full
            up[word] += nudge * full[word]
            down[word] -= nudge * full[word]
            expected[k] += (logit(ids, up) - logit(ids, down)) / (
                2 * nudge * found.steps
            )
    assert np.abs(expected).max() > 0.05
    # Differences of float32 logits near 1 are good to 1e-7 / nudge, and nudge squared.
    np.testing.assert_allclose(found.attributions, expected, atol=5e-4)


def test_contributions_add_up(rng):
    model, state = untrained()
    read = reading(model, state.params)
    reviews = [rng.integers(1, len(VOCAB), size) for size in (1, 30, 3, 64)]
    for ids, found in zip(reviews, explain(model, state.params, reviews), strict=True):
        assert found.attributions.shape == ids.shape
        logit, baseline = read(ids), read(ids, np.zeros((len(VOCAB), 5)))
        assert found.score == pytest.approx(logit, abs=1e-5)
        assert found.baseline == pytest.approx(baseline, abs=1e-5)
        rest = logit - baseline - found.attributions.sum()
        assert found.residual == pytest.approx(rest, abs=1e-4)
        assert abs(rest) <= attribution.TOLERANCE + 1e-4


def test_steps_are_doubled_until_it_is_enough(monkeypatch):
    model, state = untrained()
    ids = np.arange(1, 9)
    residuals = {}
    monkeypatch.setattr(attribution, "TOLERANCE", 0.0)
    for most in (32, 256):
        monkeypatch.setattr(attribution, "MOST_STEPS", most)
        [found] = explain(model, state.params, [ids])
        assert found.steps == most
        residuals[most] = abs(found.residual)
    assert residuals[256] < residuals[32] / 2


@pytest.mark.parametrize("classes", [2, 3])
def test_attributions_have_the_part_of_the_linear_classifier(rng, classes):
    """Scores of the sum, and with a silent network the contributions themselves."""
    model = imdb_model.make_model(SETTINGS, len(VOCAB), classes)
    optimizer = imdb_model.make_optimizer(SETTINGS, steps=1)
    params = imdb_model.make_state(model, optimizer, seed=0).params
    embed = params["params"]["embed"]
    embed["embedding"] = 4 * embed["embedding"]
    texts = [rng.integers(2, len(VOCAB), size) for size in rng.integers(2, 12, 20)]
    labels = np.arange(20) % classes
    linear = LinearClassifier.fit(Examples(texts, labels), classes, len(VOCAB))
    linear = dataclasses.replace(linear, scales=np.array([0.5, 2.0], np.float32))
    mesh, names = placement.data_mesh(1), "abc"[:classes]
    reader = Reader(model, params, VOCAB, SETTINGS, mesh, names, linear)
    examples = Examples(texts, labels)
    shares = reader.probabilities(examples)
    plain = Reader(model, params, VOCAB, SETTINGS, mesh, names).probabilities(examples)
    assert np.abs(shares - plain).max() > 0.1
    targets = np.full(3, classes - 1)
    found = explain(model, params, texts[:3], targets, linear)
    for explanation, p in zip(found, shares[:3, classes - 1], strict=True):
        assert explanation.score == pytest.approx(np.log(p / (1 - p)), abs=1e-3)
        assert abs(explanation.residual) <= attribution.TOLERANCE + 1e-3
    silent = dataclasses.replace(linear, scales=np.array([0.0, 2.0], np.float32))
    if classes == 2:
        [explanation] = explain(model, params, texts[:1], [1], silent)
        np.testing.assert_allclose(
            explanation.attributions, 2 * linear.contributions(texts[0])[:, 0],
            atol=1e-5,
        )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run without training."""
    return save_untrained(tmp_path_factory.mktemp("run"))


def save_untrained(path):
    """As a run leaves it, with the weights of `untrained`."""
    _, state = untrained()
    identity = {
        "dataset": "none",
        "vocabulary": fingerprint(VOCAB),
        "classes": ["negative", "positive"],
    }
    (path / "settings.json").write_text(json.dumps({**identity, **vars(SETTINGS)}))
    VOCAB.save(path / "vocab.txt")
    Checkpoints(path / "checkpoints", mode="max").save(1, state, info={}, metric=0.5)
    return path


def test_running_probabilities_are_those_of_the_parts():
    model, state = untrained()
    reader = Reader(model, state.params, VOCAB, SETTINGS, placement.data_mesh(2))
    read = reading(model, state.params)
    reviews = [np.array([4, 3, 2, 6, 3]), np.array([7])]
    for ids, found in zip(reviews, running(reader, reviews), strict=True):
        cuts = [
            [ids[:k] for k in range(1, ids.size + 1)],
            [ids[k:] for k in range(ids.size)],
        ]
        for probabilities, parts in zip(found, cuts, strict=True):
            expected = 1 / (1 + np.exp([-read(part) for part in parts]))
            np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_the_score_of_many_classes_is_the_log_odds_of_one():
    """Scores and running probabilities by another road, and the sum of attributions."""
    model = imdb_model.make_model(SETTINGS, len(VOCAB), num_classes=3)
    optimizer = imdb_model.make_optimizer(SETTINGS, steps=1)
    params = imdb_model.make_state(model, optimizer, seed=0).params
    embedding = 4 * np.random.default_rng(0).normal(size=(len(VOCAB), 5))
    params["params"]["embed"]["embedding"] = jnp.float32(embedding)

    def shares(ids, scale=1.0):
        embed = {"embedding": jnp.float32(scale * embedding)}
        changed = {"params": params["params"] | {"embed": embed}}
        [logits] = model.apply(changed, ids[None])
        odds = np.exp(np.float64(logits))
        return odds / odds.sum()

    ids, mesh = np.array([4, 3, 2, 6, 3]), placement.data_mesh(2)
    reader = Reader(model, params, VOCAB, SETTINGS, mesh, "abc")
    for target in range(3):
        [found] = explain(model, params, [ids], [target])
        p = shares(ids)[target]
        assert found.score == pytest.approx(np.log(p / (1 - p)), abs=1e-4)
        p = shares(ids, 0.0)[target]
        assert found.baseline == pytest.approx(np.log(p / (1 - p)), abs=1e-4)
        rest = found.score - found.baseline - found.attributions.sum()
        assert abs(rest) <= attribution.TOLERANCE + 1e-4
        [(forward, backward)] = running(reader, [ids], [target])
        expected = [shares(ids[: k + 1])[target] for k in range(5)]
        np.testing.assert_allclose(forward, expected, atol=1e-5)
        expected = [shares(ids[k:])[target] for k in range(5)]
        np.testing.assert_allclose(backward, expected, atol=1e-5)
    [review] = attribution.describe(reader, {7: "a good film"})
    best = int(shares(VOCAB.encode(["a", "good", "film"])).argmax())
    assert review["label"] == review["target"] == "abc"[best]
    assert review["against"] == f"not {review['label']}"
    assert review["number"] == 7


def test_a_reader_classifies_a_list_of_texts(run):
    reader = Reader.load(str(run))
    word, other = VOCAB.tokens[-2:]
    found = reader.probabilities(reader.encode([word, other, word]))
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[0, 1] == found[2, 1] != found[1, 1]
    unknown = reader.probabilities(reader.encode([word, "?!", other, ""]))
    np.testing.assert_array_equal(unknown[[0, 2]], found[:2])
    assert np.isnan(unknown[[1, 3]]).all()
    assert np.isnan(reader.probabilities(reader.encode(["?"]))).all()
    with pytest.raises(TypeError, match="must be a list of texts, got 'good'"):
        reader.encode("good")


def data_of(page):
    [data] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text()
    )
    return json.loads(data)


def test_the_page_has_text_decision_and_sum(run, program_run, tmp_path):
    page = tmp_path / "out.html"
    texts = ["A GOOD film, don\u2019t </script> miss it!", "bad"]
    options = ("--workdir", run, "--html", page)
    code, out, err = program_run(*options, "--explain", *texts)
    told = f"the run in {run} is not finished: explaining with what it has so far\n"
    assert (code, err) == (0, told)
    predicted = program_run("--workdir", run, "--predict", *texts)[1].splitlines()
    *lines, last = out.splitlines()
    assert last == f"wrote the word attributions to {page}"
    reviews = data_of(page)["reviews"]
    for line, prediction, review in zip(lines, predicted, reviews, strict=True):
        label, certainty, _ = prediction.split("\t")
        assert line.split("\t")[:2] == [label, certainty]
        assert line.endswith(
            f"attributions sum to the log-odds of 'positive' up to "
            f"{review['residual']:+.4f} ({review['steps']} integration steps)"
        )
        assert review["label"] == label
        logit = review["baseline"] + sum(review["attributions"]) + review["residual"]
        p = 1 / (1 + np.exp(-logit))
        assert review["forward"][-1] == pytest.approx(p, abs=1e-4)
        assert review["probability"] == pytest.approx(max(p, 1 - p), abs=1e-4)
    pieces = reviews[0]["pieces"]
    assert "".join(a + b for a, b in pieces) + reviews[0]["rest"] == texts[0]
    assert [word for _, word in pieces] == [
        "A",
        "GOOD",
        "film",
        "don\u2019t",
        "script",
        "miss",
        "it",
    ]
    assert reviews[0]["unknown"] == [False, False, False, False, True, True, False]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["...", ""], "no text has words to explain: --explain needs one"),
        (["good " * 1001], "text 1 has 1,001 words, a page takes at most 1,000: 'good"),
        (["?", "x" * 20_001], "text 2 has 20,001 characters, a page takes at most 20,"),
        (["good"] * 21, "21 texts are too many for a page: at most 20"),
    ],
)
def test_what_no_page_holds(run, program_run, tmp_path, texts, message):
    page = tmp_path / "out.html"
    options = ("--workdir", run, "--html", page)
    assert_refused(program_run(*options, "--explain", *texts), message)
    assert not page.exists()


def test_a_text_without_words_is_named_and_not_on_the_page(run, program_run, tmp_path):
    page = tmp_path / "out.html"
    options = ("--workdir", run, "--html", page)
    code, out, _ = program_run(*options, "--explain", "good", " ?! ", "bad")
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()[:3]]
    assert lines[1] == ["(no words)", "", "text 2: not on the page"]
    reviews = data_of(page)["reviews"]
    assert [review["number"] for review in reviews] == [1, 3]
    assert [lines[k][0] for k in (0, 2)] == [review["label"] for review in reviews]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({}, "is of another program or version: it has no dataset"),
        ({"dataset": [1]}, "is damaged: dataset is [1], not str"),
    ],
)
def test_settings_must_say_what_the_page_does(
    run, program_run, tmp_path, dataset, message
):
    path, page = shutil.copytree(run, tmp_path / "run"), tmp_path / "out.html"
    settings = json.loads((path / "settings.json").read_text())
    del settings["dataset"]
    (path / "settings.json").write_text(json.dumps(settings | dataset))
    options = ("--workdir", path, "--html", page, "--explain", "good")
    assert_refused(program_run(*options), f"{path}/settings.json {message}")
    assert not page.exists()


def test_without_a_model(tmp_path, program_run):
    result = program_run("--workdir", tmp_path / "none", "--explain", "good")
    assert_refused(result, "there is no trained model in")


def test_readme_shows_how_to_use_models_from_python(
    run, charlm_smoke, program_run, tmp_path, monkeypatch
):
    readme = Path(experiments.__file__).with_name("README.md").read_text()
    [example] = re.findall(r"```python\n([^`]*runs/[^`]*)```", readme)
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/imdb").symlink_to(run)
    Path("runs/charlm").symlink_to(charlm_smoke[0])
    known = {}
    exec(compile(example, "experiments/README.md", "exec"), known)
    texts = ["A moving film.", "A waste of time."]
    _, out, _ = program_run("--workdir", run, "--predict", *texts)
    for line, (_, p) in zip(out.splitlines(), known["shares"], strict=True):
        label, certainty, _ = line.split("\t")
        assert (p > 0.5) == (label == "positive")
        assert float(certainty) == pytest.approx(max(p, 1 - p), abs=6e-5)  # four digits
    assert len(known["text"]) == 200
    assert set(known["text"]) <= set("0123456789+=. ")
