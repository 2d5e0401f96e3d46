"""The sentiment model's batches, steps and optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.imdb import model as imdb_model
from experiments.imdb.batches import Batches, Examples
from experiments.imdb.model import Settings
from jaxrnn import placement, training
from jaxrnn.native import library
from jaxrnn.text import Vocab


def examples(lengths):
    """Every word of every example is another."""
    ends = np.cumsum(lengths)
    ids = [np.arange(e - n, e, dtype=np.int32) + 1 for n, e in zip(lengths, ends)]  # noqa: B905
    labels = np.arange(len(ids), dtype=np.float32) % 2
    return Examples(ids, labels)


@pytest.mark.parametrize(
    ("batch", "devices", "rows"), [(4, 2, 4), (3, 2, 4), (5, 1, 5)]
)
@pytest.mark.parametrize("seed", [None, 0])
def test_batches_hold_every_example_once(rng, batch, devices, rows, seed):
    given = examples(rng.integers(1, 30, size=23))
    batches = Batches(given, batch, 3, placement.data_mesh(devices))
    assert batches.words == sum(len(ids) for ids in given.ids)
    order = None if seed is None else np.random.default_rng(seed)
    found, shapes = [], set()
    for make in batches.epoch(order):
        made = make()
        tokens = made["tokens"]
        shapes.add(tokens.shape)
        assert made["labels"].shape == made["weights"].shape == (rows,)
        real = made["weights"] > 0
        assert set(made["weights"].ravel()) <= {0.0, 1.0}
        assert real.sum() <= batch
        assert not tokens[~real].any()
        assert not made["lengths"][~real].any()
        for row, length, label in zip(
            tokens[real], made["lengths"][real], made["labels"][real], strict=True
        ):
            assert not row[length:].any()
            found.append((row[:length].tolist(), label))
    expected = [(i.tolist(), y) for i, y in zip(given.ids, given.labels, strict=True)]
    assert sorted(found) == expected  # which is sorted, by its first words
    assert len(shapes) <= 3
    assert {shape[0] for shape in shapes} == {rows}


@pytest.mark.parametrize("max_words", [1, 2, 5, 6, 100])
def test_cut_keeps_both_ends(max_words):
    given = examples([1, 5, 6, 7, 20])
    cut = given.cut(max_words)
    np.testing.assert_array_equal(cut.labels, given.labels)
    for before, after in zip(given.ids, cut.ids, strict=True):
        words = before.tolist()
        while len(words) > max_words:  # the middle one goes, or the left of two
            del words[len(words) // 2]
        expected = words if len(before) > max_words else before.tolist()
        assert after.tolist() == expected


def test_encode_knows_words_and_labels():
    vocab = Vocab.build([["fine", "film"]])
    labels = np.array([1, 0], np.float32)
    encoded = Examples.encode(["A fine, FINE film", "?"], labels, vocab)
    known = {word: id_ for id_, word in enumerate(vocab.tokens)}
    fine, film = known["fine"], known["film"]
    assert [ids.tolist() for ids in encoded.ids] == [[1, fine, fine, film], []]
    assert encoded.labels.tolist() == [1, 0]


@pytest.mark.slow
def test_devices_that_do_not_divide_the_batch_change_nothing(rng):
    """Batches of 5 on 2 devices, so with a row added, and on 1 device: the steps give
    the same losses, and so does evaluation."""
    settings = Settings(
        cell="rnn",
        bidirectional=False,
        embed=3,
        hidden=3,
        dropout=0.0,
        word_dropout=0.0,
    )
    given = examples([3, 1, 2, 3, 2, 1, 3])
    model = imdb_model.make_model(settings, 20)
    optimizer = imdb_model.make_optimizer(settings, steps=4)
    measured = []
    for devices in (1, 2):
        mesh = placement.data_mesh(devices)
        batches = Batches(given, 5, 1, mesh)
        state = imdb_model.make_state(model, optimizer, seed=0)
        step = training.make_train_step(imdb_model.make_loss(model), optimizer, mesh)
        losses = []
        for make in batches.epoch() * 2:
            state, metrics = step(state, make())
            losses += [float(metrics[n].value) for n in ("loss", "gradient_norm")]
        logits = imdb_model.make_predictor(model, mesh)(state.params, batches)
        assert logits.shape == (7, 1)
        measured.append(np.concatenate([losses, logits[:, 0]]))
    np.testing.assert_allclose(*measured, rtol=1e-5)
    assert np.ptp(logits) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_no_layer_is_scanned_step_by_step(cell, dtype):
    settings = Settings(cell=cell, dtype=dtype, layers=2)
    model = imdb_model.make_model(settings, 20)
    kernels = dtype == "float32" and library.instruction_set() is not None
    expected = "native" if kernels else "fused"
    assert model.encoder.resolved_backends == (expected,) * 4


@pytest.mark.slow
def test_bfloat16_rounds_factors_and_nothing_else():
    """The loss moves by less than bfloat16's 8 bits; what is kept is float32."""
    [make] = Batches(examples([3, 1, 2]), 3, 1, placement.data_mesh(1)).epoch()
    losses = []
    for dtype in ("float32", "bfloat16"):
        settings = Settings(dtype=dtype, embed=3, hidden=3)
        model = imdb_model.make_model(settings, 20)
        state = imdb_model.make_state(model, optax.sgd(0.1), seed=0)
        loss = imdb_model.make_loss(model)
        step = training.make_train_step(loss, optax.sgd(0.1), placement.data_mesh(1))
        state, measured = step(state, make())
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {
            "float32"
        }
        losses.append(float(measured["loss"].value))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=2**-8)


def test_the_learning_rate_rises_for_a_tenth_and_falls_to_zero():
    """Adam's first steps with a constant gradient are as long as the rate."""
    settings = Settings(learning_rate=0.5)
    optimizer = imdb_model.make_optimizer(settings, steps=20)
    params = {"w": jnp.zeros(1)}
    state, sizes = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(21):
            updates, state = update({"w": jnp.full(1, 7.0)}, state, params)
            sizes.append(-float(updates["w"][0]))
    cosine = [0.25 * (1 + np.cos(np.pi * k / 18)) for k in range(19)]
    np.testing.assert_allclose(sizes, [0, 0.25, *cosine], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_word_vectors_learn_at_their_own_rate():
    """Adam's first step is as long as the rate, whatever the gradient."""
    settings = Settings(embed_rate=0.25, learning_rate=0.5, clip=1e9)
    optimizer = imdb_model.make_optimizer(settings, steps=20)
    model = imdb_model.make_model(settings, 20)
    params = imdb_model.make_state(model, optimizer, seed=0).params
    gradients = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):  # the first of all has rate 0
            updates, state = optimizer.update(gradients, state, params)
    moved = updates["params"]
    # Adam divides by 1 - 0.999 ** 2, of which float32 keeps four digits.
    np.testing.assert_allclose(moved["embed"]["embedding"], -0.25 * 0.25, rtol=1e-4)
    np.testing.assert_allclose(moved["output"]["kernel"], -0.25, rtol=1e-4)
    np.testing.assert_allclose(moved["encoder"]["l0"]["w_h"], -0.25, rtol=1e-4)


@pytest.mark.parametrize(
    ("texts", "epochs", "buckets", "linear"),
    [
        (100_001, 3, 8, "off"),
        (100_000, 3, 8, "on"),
        (22_500, 3, 8, "on"),  # IMDB: the settings of the records
        (14_999, 4, 7, "on"),
        (8_000, 8, 4, "on"),
        (1_600, 10, 2, "on"),
        (10, 10, 2, "on"),
    ],
)
def test_defaults_follow_the_number_of_texts(texts, epochs, buckets, linear):
    found = Settings().resolve(texts)
    assert (found.epochs, found.buckets, found.linear) == (epochs, buckets, linear)
    assert Settings().resolve(texts, fewest_epochs=5).epochs == max(epochs, 5)
    given = Settings(epochs=1, buckets=1, linear="off")
    assert given.resolve(texts, fewest_epochs=5) == given
