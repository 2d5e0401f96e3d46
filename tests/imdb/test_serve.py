"""`--serve` of the sentiment program: classes and attributions over HTTP."""

import asyncio

import httpx
import numpy as np
import pytest

from experiments.imdb import attribution, serve
from experiments.imdb.batches import Examples
from experiments.imdb.linear import LinearClassifier
from experiments.imdb.predictor import Reader
from experiments.imdb.serve import LENGTHS, ROWS
from tests.harness.local_server import served
from tests.imdb.test_attribution import save_untrained
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

TEXTS = ("A good film!", "Bad. Don't see it: <b>zyzx</b>", "good " * 100, "film " * 900)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader.load(save_untrained(tmp_path_factory.mktemp("run")), devices=1)


@pytest.fixture(scope="module")
def url(reader):
    service = serve.Service(reader, "Model of films")
    with served(service.app, service.close) as address:
        yield address


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:9])
def test_a_text_is_classified_as_by_predict(url, reader, text):
    answer = httpx.post(f"{url}/classify", json={"text": text})
    assert answer.status_code == 200
    found = answer.json()
    examples = reader.encode([text])
    [expected] = reader.probabilities(examples)
    shares = [*found["probabilities"].values()]
    # Padded to another length and number of rows: sums in another order.
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert [*found["probabilities"]] == ["negative", "positive"]
    assert found["label"] == reader.classes[expected.argmax()]
    assert found["probability"] == max(shares)
    [ids] = examples.ids
    assert found["words"] == ids.size
    assert found["unknown"] == (3 if "zyzx" in text else 0)  # b, zyzx, b


def test_words_are_explained_as_by_explain(url, reader):
    text = TEXTS[1]
    found = httpx.post(f"{url}/explain", json={"text": text}, timeout=60).json()
    [expected] = attribution.describe(reader, {1: text})
    for name in ("pieces", "rest", "target", "against"):
        assert found[name] == expected[name]
    assert found["unknown_words"] == expected["unknown"]
    for name in ("attributions", "logit", "baseline"):
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5)
    verdict = httpx.post(f"{url}/classify", json={"text": text}).json()
    assert {name: found[name] for name in verdict} == verdict


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text has no words"),
        (" !?\n", "text has no words"),
        ("a " * 1_001, "text must have at most 1,000 words, got 1,001"),
        ("a" * 20_001, "text must have at most 20,000 characters, got 20,001"),
    ],
    ids=lambda text: text[:9],
)
@pytest.mark.parametrize("path", ["classify", "explain"])
def test_what_cannot_be_classified(url, path, text, message):
    answer = httpx.post(f"{url}/{path}", json={"text": text})
    assert answer.status_code == 400
    assert answer.json() == {"error": message}
    assert httpx.post(f"{url}/{path}", json={}).status_code == 400


def test_the_texts_of_others_change_no_bit(reader):
    classifier = serve.Classifier(reader)
    ids = reader.encode(TEXTS).ids
    assert {min(n for n in LENGTHS if n >= text.size) for text in ids} == {*LENGTHS}
    alone = [classifier([text])[0] for text in ids]
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.integers(len(ids), size=ROWS)
        for k, found in zip(order, classifier([ids[k] for k in order]), strict=True):
            np.testing.assert_array_equal(found, alone[k])


def test_many_at_once_get_what_each_would_alone(url):
    texts = [" ".join(text.split()[:k]) for text in TEXTS for k in range(1, 30)]

    async def ask(client, text):
        return (await client.post(f"{url}/classify", json={"text": text})).json()

    async def ask_all():
        async with httpx.AsyncClient(timeout=120) as client:
            return await asyncio.gather(*(ask(client, text) for text in texts))

    for text, found in zip(texts, asyncio.run(ask_all()), strict=True):
        alone = httpx.post(f"{url}/classify", json={"text": text})
        assert found == alone.json()


def test_it_says_what_it_is(url, reader):
    found = httpx.get(f"{url}/model").json()
    assert found["classes"] == ["negative", "positive"]
    assert found["limits"] == {"characters": 20_000, "words": 1_000, "requests": 256}
    health = httpx.get(f"{url}/health").json()
    assert health == {"status": "ok", "classifying": 0, "explaining": 0}
    assert "Model of films" in httpx.get(url).text


def test_a_linear_part_is_added(reader):
    ids = [np.array([3]), np.array([4])]
    linear = LinearClassifier.fit(Examples(ids, np.array([1, 0])), 2, vocab_size=9)
    settings, mesh = reader._settings, reader._mesh
    both = Reader(
        reader.model, reader.variables, reader.vocab, settings, mesh, linear=linear
    )
    [text] = both.encode(["good film"]).ids
    [found] = serve.Classifier(both)([text])
    examples = Examples([text], np.zeros(1, np.int32))
    [expected] = both.probabilities(examples)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert abs(found - serve.Classifier(reader)([text])[0]).max() > 0.01


def test_without_a_model(program_run, tmp_path):
    path = tmp_path / "none"
    result = program_run("--workdir", path, "--serve")
    assert_refused(result, f"there is no trained model in {path}: train one with")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", 8000], "--port needs --serve"),
        (["--serve", "--port", 0], "--port must be from 1 to 65535, got 0"),
        (["--serve", "--predict", "a"], "give either --predict or --serve, not both"),
        (["--serve", "--smoke"], "--serve needs a trained model, and --smoke keeps no"),
    ],
)
def test_options_that_contradict_each_other(program_run, arguments, message):
    assert_refused(program_run(*arguments), message)


def test_a_port_that_is_taken(program_run, tmp_path, url):
    path, port = save_untrained(tmp_path), url.rpartition(":")[2]
    code, _, err = program_run("--workdir", path, "--serve", "--port", port)
    assert code == 2
    assert f"error: cannot listen on port {port} (Address already in use): " in err
