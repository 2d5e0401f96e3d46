"""The language model against float64 loops over one row: look up, encode, project."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn
from jaxrnn.models import LanguageModel
from jaxrnn.types import LSTMState
from tests import oracles

VOCAB, EMBED, HIDDEN, B, T = 7, 4, 5, 3, 6


def make(encoder=None, *, embed=EMBED, **options):
    encoder = jaxrnn.LSTM(HIDDEN) if encoder is None else encoder
    model = LanguageModel(VOCAB, embed, encoder, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    # Not the initial values: small weights and biases of zero would hide too much.
    rng = np.random.default_rng(1)
    return model, jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )


ENCODERS = [
    lambda: jaxrnn.LSTM(HIDDEN, num_layers=2),
    lambda: jaxrnn.GRU(HIDDEN),
    lambda: jaxrnn.Stack([jaxrnn.Recurrent(nn.GRUCell(HIDDEN)), jaxrnn.RNN(HIDDEN)]),
]


def oracle(variables, tokens, state):
    """Logits and state of one row with an LSTM, from the model's own parameters."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    table = p["embed"]["embedding"]
    x = np.array([table[token] for token in tokens])
    outputs, state = oracles.lstm(x, state, p["encoder"]["l0"])
    outputs = outputs.reshape(-1, HIDDEN)  # of an empty row too
    if "output" in p:
        return outputs @ p["output"]["kernel"] + p["output"]["bias"], state
    if "project" in p:
        outputs = outputs @ p["project"]["kernel"] + p["project"]["bias"]
    return outputs @ table.T + p["bias"], state


@pytest.mark.parametrize(
    ("tie_embeddings", "embed", "names"),
    [
        (False, EMBED, ["embed", "encoder", "output"]),
        (True, HIDDEN, ["bias", "embed", "encoder"]),
        (True, EMBED, ["bias", "embed", "encoder", "project"]),
    ],
)
def test_logits_and_state_are_those_of_the_oracle(rng, tie_embeddings, embed, names):
    model, variables = make(embed=embed, tie_embeddings=tie_embeddings)
    assert sorted(variables["params"]) == names
    tokens = rng.integers(VOCAB, size=(B, T))
    lengths = np.array([T, 0, T - 1])
    before = LSTMState(*rng.normal(size=(2, B, HIDDEN)).astype(np.float32))
    logits, (after,) = jax.jit(model.apply)(variables, tokens, lengths, state=(before,))
    for row, length in enumerate(lengths):
        expected, state = oracle(
            variables, tokens[row, :length], (before.h[row], before.c[row])
        )
        # float32 sums of a few terms, six steps in a row.
        near = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(logits[row, :length], expected, **near)
        np.testing.assert_allclose((after.h[row], after.c[row]), state, **near)


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("batch", [(), (B,), (2, B)])
def test_steps_equal_the_whole_whatever_the_batch_axes(rng, tie_embeddings, batch):
    model, variables = make(
        jaxrnn.GRU(HIDDEN, num_layers=2), tie_embeddings=tie_embeddings
    )
    tokens = rng.integers(VOCAB, size=(*batch, T))
    whole, last = jax.jit(model.apply)(variables, tokens)
    state = model.initial_state(batch)
    for t in range(T):
        logits, state = model.apply(variables, tokens[..., t], state, method="step")
        np.testing.assert_allclose(logits, whole[..., t, :], rtol=1e-5, atol=1e-5)
    for found, expected in zip(state, last, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make_encoder", ENCODERS)
def test_looking_up_the_table_equals_multiplying(rng, make_encoder):
    model, variables = make(make_encoder())
    table = model.apply(variables, method="input_projection_table")
    state, tokens = model.initial_state((B,)), rng.integers(VOCAB, size=B)
    expected, after = model.apply(variables, tokens, state, method="step")
    # Nothing is multiplied with the embedding any more.
    without = jax.tree.map(jnp.copy, variables)
    without["params"]["embed"]["embedding"] = jnp.full((VOCAB, EMBED), jnp.nan)
    logits, found = model.apply(without, tokens, state, table, method="step")
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        after,
    )
    for outside in (tokens + VOCAB, tokens - VOCAB, np.full(B, 2**32 - 1, np.uint32)):
        logits, _ = model.apply(variables, outside, state, table, method="step")
        assert np.isnan(logits).all()


def test_chunks_with_carried_state_equal_one_pass(rng):
    model, variables = make(jaxrnn.RNN(HIDDEN))
    tokens = rng.integers(VOCAB, size=(B, T))
    whole, _ = model.apply(variables, tokens)
    head, state = model.apply(variables, tokens[:, :2])
    tail, _ = model.apply(variables, tokens[:, 2:], state=state)
    np.testing.assert_allclose(
        np.concatenate([head, tail], axis=1), whole, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("tie_embeddings", "embed"), [(False, EMBED), (True, HIDDEN), (True, EMBED)]
)
def test_the_output_of_pre_logits_are_the_logits(rng, tie_embeddings, embed):
    model, variables = make(embed=embed, tie_embeddings=tie_embeddings)
    tokens, lengths = rng.integers(VOCAB, size=(B, T)), np.array([T, 0, T - 1])
    (expected, after), (x, found) = (
        model.apply(variables, tokens, lengths, method=method)
        for method in ("__call__", "pre_logits")
    )
    x, params = jax.tree.map(np.float64, (x, variables["params"]))
    if tie_embeddings:
        logits = x @ params["embed"]["embedding"].T + params["bias"]
    else:
        logits = x @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(expected, logits, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, found, after)


def test_packed_sequences_do_not_see_each_other(rng):
    model, variables = make()
    tokens = rng.integers(VOCAB, size=(1, T))
    logits, _ = model.apply(
        variables, tokens, segment_ids=np.array([[1, 1, 1, 1, 2, 2]])
    )
    alone, _ = model.apply(variables, tokens[:, 4:])
    np.testing.assert_allclose(logits[:, 4:], alone, rtol=1e-5, atol=1e-5)


def test_a_tied_embedding_learns_from_both_ends(rng):
    """As input only the tokens read have a gradient, as output all of them."""
    tokens = np.array([[2, 2, 2]])

    def gradient(tie_embeddings):
        model, variables = make(embed=HIDDEN, tie_embeddings=tie_embeddings)

        def loss(variables):
            return jnp.sum(model.apply(variables, tokens)[0] ** 2)

        return jax.grad(loss)(variables)["params"]["embed"]["embedding"]

    assert np.flatnonzero(np.any(gradient(False), axis=1)).tolist() == [2]
    assert np.flatnonzero(np.any(gradient(True), axis=1)).tolist() == [*range(VOCAB)]


class Echo(nn.Module):
    """An encoder whose outputs are its inputs, three times as large in training."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return x * (3.0 if train else 1.0), ()

    def step(self, x, state):
        return x, state

    def initial_state(self, batch_shape):
        return ()


@pytest.mark.parametrize("train", [False, True])
def test_dropout_acts_on_single_outputs_in_training_alone(train):
    model = LanguageModel(VOCAB, 16, Echo(), dropout=0.25)
    params = {
        "embed": {"embedding": jnp.ones((VOCAB, 16))},
        "output": {"kernel": jnp.ones((16, VOCAB)), "bias": jnp.zeros(VOCAB)},
    }
    tokens = np.ones((40, 100), np.int32)
    logits, _ = model.apply(
        {"params": params}, tokens, train=train, rngs={"dropout": jax.random.key(3)}
    )
    sums = np.asarray(logits)[..., 0].ravel()
    if not train:
        np.testing.assert_array_equal(sums, 16)
        return
    kept = sums * 0.75 / 3  # of 16 features: binomial
    np.testing.assert_allclose(kept, kept.round(), atol=1e-4)
    assert kept.mean() == pytest.approx(12, abs=0.11)  # 4 standard deviations
    assert kept.var() == pytest.approx(3, abs=0.3)


def test_locked_dropout_drops_the_same_outputs_at_all_steps_of_a_row():
    model = LanguageModel(VOCAB, VOCAB, Echo(), dropout=0.25, locked_dropout=True)
    params = {
        "embed": {"embedding": jnp.ones((VOCAB, VOCAB))},
        "output": {"kernel": jnp.eye(VOCAB), "bias": jnp.zeros(VOCAB)},
    }
    tokens = np.ones((40, 5), np.int32)
    logits, _ = model.apply(
        {"params": params}, tokens, train=True, rngs={"dropout": jax.random.key(3)}
    )
    first = np.asarray(logits)[:, :1]
    np.testing.assert_array_equal(logits, np.broadcast_to(first, logits.shape))
    # Of 280, a quarter, give or take five standard errors of 2.6%.
    assert abs((first == 0).mean() - 0.25) < 0.13
    assert (first[0] != first[1]).any()


def test_a_token_outside_the_vocabulary_is_not_taken_for_another():
    model, variables = make()
    logits, _ = model.apply(variables, np.array([[1, VOCAB, 1]]))
    assert np.isfinite(logits[0, 0]).all()
    assert np.isnan(logits[0, 1:]).all()


def test_the_encoders_errors_pass():
    model, variables = make()
    with pytest.raises(ValueError, match=re.escape("has shape (2,), but the batch (1")):
        model.apply(variables, np.array([[1, 2]]), lengths=np.array([1, 2]))


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_outside_the_vocabulary_makes_nan(token):
    model, variables = make()
    logits, _ = model.apply(variables, np.array([[1, token, 2]]))
    found = np.isnan(logits).all(axis=-1).tolist()
    assert found == [[False, True, True]]  # what follows has read it


class Around(Echo):
    """Somebody's layer, of another one."""

    inner: Any

    @property
    def supports_step(self):
        return self.inner.supports_step


@pytest.mark.parametrize(
    "encoder",
    [
        jaxrnn.LSTM(4, bidirectional=True),
        jaxrnn.Bidirectional(jaxrnn.GRU(4), jaxrnn.GRU(4)),
        jaxrnn.Stack([jaxrnn.GRU(4), jaxrnn.GRU(4, bidirectional=True)]),
        Around(jaxrnn.GRU(4, bidirectional=True)),
        jaxrnn.Stack(
            [jaxrnn.GRU(4), Around(Around(jaxrnn.LSTM(4, bidirectional=True)))]
        ),
    ],
)
def test_an_encoder_that_sees_what_it_is_to_predict(encoder):
    with pytest.raises(ValueError, match="encoder must read forwards alone"):
        LanguageModel(VOCAB, EMBED, encoder)
    LanguageModel(VOCAB, EMBED, jaxrnn.Stack([Echo(), Around(jaxrnn.GRU(4))]))
