"""The classifier against a numpy oracle: embed, encode alone, pool by loop, project."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn
from jaxrnn.batching import pack_sequences, pad
from jaxrnn.models import SequenceClassifier

SEQUENCES = [[3, 1, 4, 1], [5, 9, 2], [6], [5, 3, 5, 8, 9]]
PACKED = [[0, 1], [3, 2], [2]]  # which sequences share a row
VOCAB, EMBED, HIDDEN = 10, 4, 3


class Echo(nn.Module):
    """An encoder whose outputs are its inputs, three times as large in training."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return x * (3.0 if train else 1.0), ()

    def step(self, x, state):
        return x, state

    def initial_state(self, batch_shape):
        return ()


def make(pooling, *, bidirectional=True, **options):
    encoder = jaxrnn.RNN(HIDDEN, bidirectional=bidirectional)
    model = SequenceClassifier(VOCAB, EMBED, encoder, pooling, **options)
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    # Not the initial values: small weights and biases of zero would hide too much.
    rng = np.random.default_rng(1)
    return model, jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )


@partial(jax.jit, static_argnums=0)
def encode(layer, params, x):
    return layer.apply({"params": params}, x)[0]


def oracle(model, variables, sequences):
    """The logit of each sequence by itself, from the model's own parameters."""
    params, logits = variables["params"], []
    for tokens in sequences:
        x = np.stack([params["embed"]["embedding"][token] for token in tokens])
        outputs = encode(model.encoder, params["encoder"], x)
        pooled = []
        for how in model.pooling:
            for values in np.asarray(outputs).T.tolist():
                if how == "last":
                    pooled.append(values[-1])
                elif how == "first":
                    pooled.append(values[0])
                elif how == "max":
                    pooled.append(max(values))
                else:
                    pooled.append(sum(values) / len(values))
        logits.append(pooled @ params["output"]["kernel"] + params["output"]["bias"])
    return np.concatenate(logits)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "pooling", [("last",), ("mean",), ("max",), ("first", "max", "last", "mean")]
)
def test_packed_rows_give_the_logits_of_the_sequences_alone(pooling, bidirectional):
    model, variables = make(pooling, bidirectional=bidirectional)
    tokens, segment_ids = pack_sequences(SEQUENCES, PACKED, row_length=8)
    logits = jax.jit(partial(model.apply, num_segments=2))(
        variables, tokens, segment_ids=segment_ids
    )
    alone = oracle(model, variables, SEQUENCES)
    bias = variables["params"]["output"]["bias"][0]
    expected = [[alone[0], alone[1]], [alone[3], alone[2]], [alone[2], bias]]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_padded_rows_give_the_logits_of_the_sequences_alone():
    model, variables = make(("last", "max", "mean"))
    lengths = np.array([len(row) for row in SEQUENCES] + [0])
    tokens, _ = pad([*SEQUENCES, [7]], 6)  # the 7 is beyond length 0
    logits = jax.jit(model.apply)(variables, tokens, lengths=lengths)
    bias = variables["params"]["output"]["bias"]
    expected = np.append(oracle(model, variables, SEQUENCES), bias)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    one = jax.jit(partial(model.apply, num_segments=1))
    np.testing.assert_array_equal(
        one(variables, tokens, lengths=lengths), logits[:, None]
    )


def test_the_logits_of_embeddings_are_those_of_the_words_that_have_them():
    """Of packed rows, too; and their gradient is that of the rows of the table."""
    model, variables = make(("last", "mean"))
    tokens, ids = pack_sequences(SEQUENCES[:2], [[1, 0]], row_length=8)
    moves = np.random.default_rng(2).normal(size=(VOCAB, EMBED)).astype(np.float32)
    x = model.apply(variables, tokens, method="embed_tokens") + moves[tokens]

    options = {"segment_ids": ids, "num_segments": 2}

    def of_embeddings(x):
        return model.apply(variables, x, method="from_embeddings", **options)

    def of_table(table):
        moved = {**variables["params"], "embed": {"embedding": table}}
        return model.apply({"params": moved}, tokens, **options)

    moved = variables["params"]["embed"]["embedding"] + moves
    np.testing.assert_allclose(of_embeddings(x), of_table(moved), rtol=1e-6)
    of_rows = jax.grad(lambda x: of_embeddings(x).sum())(x)
    of_words = jax.grad(lambda table: of_table(table).sum())(moved)
    total = np.zeros((VOCAB, EMBED))
    np.add.at(total, tokens, np.asarray(of_rows))
    np.testing.assert_allclose(total, of_words, rtol=1e-5, atol=1e-6)


def test_words_are_dropped_where_they_are_embedded():
    model = SequenceClassifier(VOCAB, EMBED, Echo(), ("mean",), word_dropout=0.5)
    tokens = jnp.arange(10)[None]
    variables = model.init(jax.random.key(0), tokens)
    keys = {"dropout": jax.random.key(1)}
    x = model.apply(variables, tokens, train=True, method="embed_tokens", rngs=keys)
    ratios = np.asarray(x[0] / variables["params"]["embed"]["embedding"])
    assert {tuple(row) for row in ratios.tolist()} == {(0.0,) * 4, (2.0,) * 4}
    # Nothing more is dropped, which Echo multiplies by three in training.
    first, second = (
        model.apply(variables, x, train=train, method="from_embeddings")
        for train in (False, True)
    )
    bias = variables["params"]["output"]["bias"]
    np.testing.assert_allclose(second - bias, 3 * (first - bias), rtol=1e-5)


def test_rows_without_padding_need_no_lengths():
    model, variables = make(("last", "max"))
    rows = [[3, 1, 4], [1, 5, 9]]
    logits = jax.jit(model.apply)(variables, np.array(rows))
    expected = oracle(model, variables, rows)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_outside_training_no_dropout_acts():
    plain, variables = make(("max", "mean"))
    dropping, _ = make(("max", "mean"), dropout=0.5, word_dropout=0.5)
    tokens, lengths = np.array([[1, 2, 3], [4, 5, 6]]), np.array([3, 2])
    expected = jax.jit(plain.apply)(variables, tokens, lengths=lengths)
    logits = jax.jit(dropping.apply)(variables, tokens, lengths=lengths)
    np.testing.assert_array_equal(logits, expected)


def visible(**options):
    """A model whose logit is five plus the sum of what the head is given."""
    model = SequenceClassifier(VOCAB, 16, Echo(), ("mean",), **options)
    params = {
        "embed": {"embedding": jnp.ones((VOCAB, 16))},
        "output": {"kernel": jnp.ones((16, 1)), "bias": jnp.full(1, 5.0)},
    }

    @partial(jax.jit, static_argnames="train")
    def logits(tokens, train=False):
        rngs = {"dropout": jax.random.key(3)}
        found = model.apply({"params": params}, tokens, train=train, rngs=rngs)
        return found - 5

    return lambda *args, **kwargs: np.asarray(logits(*args, **kwargs))


def test_the_encoder_knows_of_training():
    logits = visible()
    tokens = np.ones((1, 2), np.int32)
    assert logits(tokens) == [16.0]
    assert logits(tokens, train=True) == [48.0]


def test_word_dropout_drops_whole_words():
    sums = visible(word_dropout=0.25)(np.ones((4000, 1), np.int32), train=True)
    kept = sums > 0
    np.testing.assert_allclose(sums[kept], 48 / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(sums[~kept], 0)
    assert kept.mean() == pytest.approx(0.75, abs=0.03)  # 4 standard deviations


def test_word_dropout_draws_for_each_word():
    """Of 4,000 words in one row as many are dropped as of 4,000 in rows of their own;
    the same draw for all of them would give nothing or everything."""
    sums = visible(word_dropout=0.25)(np.ones((1, 4000), np.int32), train=True)
    assert sums[0] / 48 == pytest.approx(1.0, abs=0.04)
    assert sums[0] / 48 != 1.0


def test_dropout_drops_single_features():
    sums = visible(dropout=0.25)(np.ones((4000, 1), np.int32), train=True)
    kept = sums * 0.75 / 3  # of 16 features: binomial
    np.testing.assert_allclose(kept, kept.round(), atol=1e-4)
    assert kept.mean() == pytest.approx(12, abs=0.11)
    assert kept.var() == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": np.array([4])}, "length 4 is above the 3 steps"),
        ({"lengths": np.array([-1])}, "a length is negative: -1"),
        ({"lengths": np.array([1, 2])}, r"lengths has shape (2,), but the batch (1,)"),
        (
            {"lengths": np.ones(1, int), "segment_ids": np.ones((1, 3), int)},
            "segment_ids, not both",
        ),
    ],
)
def test_bad_lengths_are_refused(options, message):
    model, variables = make(("mean",))
    with pytest.raises(ValueError, match=re.escape(message)):
        model.apply(variables, np.array([[1, 2, 3]]), **options)


def test_lengths_that_are_no_integers_are_refused():
    model, variables = make(("mean",))
    with pytest.raises(TypeError, match="lengths must be an array of integers, got fl"):
        model.apply(variables, np.array([[1, 2, 3]]), np.array([1.5]))


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match=r"pooling must be one or more of .*'middle'"):
        make(("middle",))
    with pytest.raises(TypeError, match=r"pooling must be a tuple.*\('mean',\)"):
        make("mean")


def test_classes_have_logits_of_their_own(rng):
    """Each as a model of one logit has it, from the same features."""
    binary, variables = make(("max", "mean"))
    model = binary.clone(num_classes=3)
    width = variables["params"]["output"]["kernel"].shape[0]
    output = {
        "kernel": rng.normal(size=(width, 3)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    tokens, lengths = np.array([[1, 2, 3], [4, 5, 0]]), np.array([3, 2])
    many = {"params": {**variables["params"], "output": output}}
    logits = model.apply(many, tokens, lengths=lengths)
    assert logits.shape == (2, 3)
    for k in range(3):
        one = {"kernel": output["kernel"][:, k : k + 1], "bias": output["bias"][k:][:1]}
        params = {**variables["params"], "output": one}
        expected = binary.apply({"params": params}, tokens, lengths=lengths)
        np.testing.assert_allclose(logits[..., k], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "ragged",
    [{}, {"lengths": np.array([2, 1])}, {"segment_ids": np.array([[1, 2], [1, 0]])}],
)
def test_the_encoder_is_asked_as_the_model_is(ragged):
    """Rows of one sequence need no reset at every step, full ones no mask."""
    seen = {}

    class Encoder(Echo):
        def __call__(self, x, lengths=None, segment_ids=None, *, state=None):
            seen.update(lengths=lengths, segment_ids=segment_ids, state=state)
            return x, ()

    model = SequenceClassifier(VOCAB, 4, Encoder(), ("mean",))
    model.init(jax.random.key(0), np.array([[1, 2], [3, 4]]), num_segments=2, **ragged)
    assert {name for name, value in seen.items() if value is not None} == set(ragged)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_outside_the_vocabulary_makes_nan(token):
    model, variables = make(("mean",))
    logits = model.apply(variables, np.array([[1, token], [1, 2]]))
    assert np.isnan(logits).ravel().tolist() == [True, False]
