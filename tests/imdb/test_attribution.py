"""Explanations of decisions: contributions by another road, and that they add up."""

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
from experiments.imdb.model import Settings
from experiments.imdb.predictor import Reader
from jaxrnn import placement
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.text import PAD, UNK, Vocab
from tests.imdb.test_train import assert_refused

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
        return model.apply(changed, tokens[None], lengths=length[None])[0, 0]

    def logit(ids, embedding=None):
        embed = params["params"]["embed"]
        if embedding is not None:
            embed = {"embedding": np.float32(embedding)}
        return float(read(np.pad(ids, (0, 64 - ids.size)), np.int32(ids.size), embed))

    return logit


def test_contributions_are_those_of_finite_differences():
    """A word's share is moved up and down, at every point of the way. It is the only
    place with its word, so that the model's own embedding can do it."""
    model, state = untrained(Settings(embed=5, hidden=3, pooling=("mean", "last")))
    ids = np.array([2, 5, 1, 8])
    [found] = explain(model, state.params, [ids])
    assert found.points == attribution.CHUNK
    full = np.float64(state.params["params"]["embed"]["embedding"])
    logit = reading(model, state.params)
    expected, nudge = np.zeros(ids.size), 0.01
    for k, word in enumerate(ids):
        for share in (np.arange(found.points) + 0.5) / found.points:
            up, down = share * full, share * full
            up[word] += nudge * full[word]
            down[word] -= nudge * full[word]
            expected[k] += (logit(ids, up) - logit(ids, down)) / (
                2 * nudge * found.points
            )
    assert np.abs(expected).max() > 0.05
    # Differences of float32 logits near 1 are good to 1e-7 / nudge, and nudge squared.
    np.testing.assert_allclose(found.words, expected, atol=5e-4)


def test_contributions_add_up(rng):
    model, state = untrained()
    read = reading(model, state.params)
    reviews = [rng.integers(1, len(VOCAB), size) for size in (1, 30, 3, 64)]
    for ids, found in zip(reviews, explain(model, state.params, reviews), strict=True):
        assert found.words.shape == ids.shape
        logit, baseline = read(ids), read(ids, np.zeros((len(VOCAB), 5)))
        assert found.logit == pytest.approx(logit, abs=1e-5)
        assert found.baseline == pytest.approx(baseline, abs=1e-5)
        rest = logit - baseline - found.words.sum()
        assert found.residual == pytest.approx(rest, abs=1e-4)
        assert abs(rest) <= attribution.TOLERANCE + 1e-4


def test_points_are_doubled_until_it_is_enough(monkeypatch):
    model, state = untrained()
    ids = np.arange(1, 9)
    residuals = {}
    monkeypatch.setattr(attribution, "TOLERANCE", 0.0)
    for most in (32, 256):
        monkeypatch.setattr(attribution, "MOST", most)
        [found] = explain(model, state.params, [ids])
        assert found.points == most
        residuals[most] = abs(found.residual)
    assert residuals[256] < residuals[32] / 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run without training."""
    path = tmp_path_factory.mktemp("run")
    _, state = untrained()
    identity = {"dataset": "none", "vocabulary": fingerprint(VOCAB)}
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


def test_a_reader_judges_a_list_of_texts(run):
    reader = Reader.load(str(run))
    word, other = VOCAB.tokens[-2:]
    found = reader.probabilities(reader.encode([word, other, word]))
    assert found.shape == (3,)
    assert found[0] == found[2] != found[1]
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
    assert last == f"{page} shows why"
    reviews = data_of(page)["reviews"]
    for line, prediction, review in zip(lines, predicted, reviews, strict=True):
        label, certainty, _ = prediction.split("\t")
        assert line.split("\t")[:2] == [label, certainty]
        assert line.endswith(f"its logit but for {abs(review['residual']):.4f}")
        assert (review["probability"] > 0.5) == (label == "positive")
        logit = review["baseline"] + sum(review["words"]) + review["residual"]
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(
            review["probability"], abs=1e-4
        )
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
        (["good", "..."], "review 2 has 0 words, not 1 to 1,000"),
        (["good " * 1001], "review 1 has 1,001 words, not 1 to 1,000: 'good good"),
        (["x" * 20_001], "review 1 has 20,001 characters, a page takes at most 20,000"),
        (["good"] * 21, "21 reviews are too many for a page: at most 20"),
    ],
)
def test_what_no_page_holds(run, program_run, tmp_path, texts, message):
    page = tmp_path / "out.html"
    options = ("--workdir", run, "--html", page)
    assert_refused(program_run(*options, "--explain", *texts), message)
    assert not page.exists()


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
    for line, p in zip(out.splitlines(), known["shares"], strict=True):
        label, certainty, _ = line.split("\t")
        assert (p > 0.5) == (label == "positive")
        assert float(certainty) == pytest.approx(max(p, 1 - p), abs=6e-5)  # four digits
    assert len(known["text"]) == 200
    assert set(known["text"]) <= set("0123456789+=. ")
