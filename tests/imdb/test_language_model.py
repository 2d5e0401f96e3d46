"""The language model over texts: its loss, its state, and what evaluation measures."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.imdb.language_model import (
    LanguageSettings,
    make_language_model,
    make_loss,
    make_metrics,
    make_sampler,
)
from experiments.imdb.pretraining import Perplexity
from experiments.imdb.streams import END, packed_chunks
from jaxrnn import placement

pytestmark = pytest.mark.slow

VOCAB = 12
SETTINGS = LanguageSettings(
    embed=4, hidden=5, candidates=VOCAB, dropout=0.0, weight_drop=0.0, batch=2
)


@pytest.fixture
def texts(rng):
    return [rng.integers(1, VOCAB, n).astype(np.int32) for n in (7, 1, 12, 3, 9)]


@pytest.fixture
def model():
    return make_language_model(SETTINGS, VOCAB)


@pytest.fixture
def params(model):
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    # Biases, which are zeros at first, are to count.
    keys = iter(jax.random.split(jax.random.key(1), 20))
    return jax.tree.map(
        lambda leaf: leaf + 0.5 * jax.random.normal(next(keys), leaf.shape), variables
    )


def nats_of(model, params, text):
    """The sum over a text, one word at a time: `step` and a softmax in numpy."""
    state, total = model.initial_state((1,)), 0.0
    for word, target in zip(text, [*text[1:], END], strict=True):
        logits, state = model.apply(params, jnp.array([word]), state, method="step")
        logits = np.float64(logits[0])
        total += math.log(np.exp(logits).sum()) - logits[target]
    return total


def test_the_perplexity_is_that_of_each_text_from_a_fresh_state(model, params, texts):
    mesh = placement.data_mesh(2)
    found = Perplexity(model, texts, mesh)(params)
    words = sum(text.size for text in texts)
    expected = sum(nats_of(model, params, text) for text in texts) / words
    assert found["validation_nats"] == pytest.approx(expected, rel=1e-5)
    perplexity = math.exp(expected)
    assert found["validation_perplexity"] == pytest.approx(perplexity, rel=1e-4)


@pytest.mark.parametrize("time", [4, 32])
def test_the_loss_carries_the_state_from_batch_to_batch(model, params, texts, time):
    """With all words as candidates it is the exact one."""
    sampler = make_sampler(SETTINGS, texts, VOCAB)
    loss = make_loss(model, SETTINGS, sampler)
    # One text, which fills its row: no weights are needed.
    text = np.concatenate([texts[0], texts[2], texts[4], texts[3], texts[1]])[:32]
    chunks = packed_chunks([text], 2, time)
    state, total, weight = model.initial_state((1,)), 0.0, 0.0
    for chunk in chunks:
        batch = {name: jnp.asarray(array) for name, array in chunk.items()}
        measured, state = loss(params, batch, state, jax.random.key(0))
        total += float(measured["loss"].total)
        weight += float(measured["loss"].weight)
    assert weight == 32
    assert total == pytest.approx(nats_of(model, params, text), rel=1e-5)


def test_a_batch_begins_with_a_fresh_state_where_a_text_starts(model, params, texts):
    measure = make_metrics(model)
    text = texts[0][None]
    batch = {
        "inputs": text,
        "targets": np.append(text[0, 1:], END)[None],
        "starts": np.arange(text.size)[None] == 0,
        "weights": np.ones(text.shape, np.float32),
    }
    garbage = jax.tree.map(lambda leaf: leaf + 7, model.initial_state((1,)))
    measured, _ = measure(params, batch, garbage)
    expected = nats_of(model, params, texts[0])
    assert float(measured["nats"].total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["dropout", "weight_drop"])
def test_each_dropout_changes_the_loss_by_its_key(model, params, texts, name):
    settings = dataclasses.replace(SETTINGS, **{name: 0.5})
    model = make_language_model(settings, VOCAB)
    loss = make_loss(model, settings, make_sampler(settings, texts, VOCAB))
    [batch] = packed_chunks([texts[2]], 2, 12)
    state = model.initial_state((1,))
    losses = {
        float(loss(params, batch, state, jax.random.key(k))[0]["loss"].total)
        for k in range(3)
    }
    assert len(losses) == 3


def test_frequent_words_are_candidates_more_often():
    texts = [np.repeat(np.int32([2, 3, 4]), [50, 10, 1]), np.int32([2])]
    settings = dataclasses.replace(SETTINGS, candidates=2)
    p = make_sampler(settings, texts, 6).probabilities
    # 51, 10 and 1 occurrences, 2 ends of a text, and unseen words count as 1.
    weights = np.array([2, 1, 51, 10, 1, 1]) ** 0.75
    rest = 1 / (weights.sum() - weights[2])
    expected = np.where(np.arange(6) == 2, 1, weights * rest)
    np.testing.assert_allclose(p, expected, rtol=1e-6)
