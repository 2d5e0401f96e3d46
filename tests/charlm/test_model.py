"""The character model's settings: what they make of text, rates, weights and steps."""

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import model as charlm_model
from experiments.charlm import train as charlm_train
from experiments.charlm.batches import Streams
from experiments.charlm.config import PRESETS, Settings
from jaxrnn import metrics, placement
from jaxrnn.native import library

TINY = Settings(
    cell="gru", embed=3, hidden=4, batch=4, seq_len=5, state_reset_prob=0.0, seed=7
)
VOCAB = 6


def made(streams, epoch):
    return [make() for make in streams.epoch(epoch)]


@pytest.mark.parametrize("size", [4 * 5 + 1, 4 * 5 * 3 + 1, 97, 4 * 5 * 2])
def test_an_epoch_reads_the_text_on_from_batch_to_batch(size):
    ids = np.arange(size, dtype=np.int32)
    streams = Streams(ids, TINY)
    steps = (size - 1) // 20
    assert streams.tokens == 20 * steps
    batches = made(streams, 0)
    assert len(batches) == steps
    assert [b["starts"].tolist() for b in batches] == (
        [[True] * 4] + [[False] * 4] * (steps - 1)
    )
    for batch in batches:
        assert batch["inputs"].shape == (4, 5)
        np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
    # Each row on its own, and then one row after the other, is the text without a gap.
    rows = np.concatenate([b["inputs"] for b in batches], axis=1)
    np.testing.assert_array_equal(np.diff(rows.ravel()), 1)


def test_places_forget_now_and_then():
    settings = dataclasses.replace(TINY, state_reset_prob=0.2)
    streams = Streams(np.arange(20 * 1000 + 1, dtype=np.int32), settings)
    starts = np.array([batch["starts"] for batch in made(streams, 3)])
    assert starts[0].all()
    # 3,996 draws: 4 standard deviations are 0.025. Places forget one by one.
    assert starts[1:].mean() == pytest.approx(0.2, abs=0.025)
    assert set(starts[1:].sum(axis=1).tolist()) >= {0, 1, 2, 3}
    np.testing.assert_array_equal(
        starts, [batch["starts"] for batch in made(streams, 3)]
    )
    assert (starts != [batch["starts"] for batch in made(streams, 4)]).any()


def test_epochs_start_elsewhere_and_the_same_again():
    ids = np.arange(97, dtype=np.int32)  # 16 more than an epoch takes
    starts = [
        made(Streams(ids, TINY), epoch)[0]["inputs"][0, 0] for epoch in range(300)
    ]
    assert set(starts) == set(range(17))
    assert starts[5] == made(Streams(ids, TINY), 5)[0]["inputs"][0, 0]
    other = Streams(ids, dataclasses.replace(TINY, seed=8))
    assert [made(other, epoch)[0]["inputs"][0, 0] for epoch in range(9)] != starts[:9]


@pytest.mark.parametrize(
    ("characters", "batch", "seq_len"),
    [(10_000, 4, 5), (21, 4, 5), (20, 3, 5), (6, 1, 5), (3, 1, 2)],
)
def test_a_short_text_has_fewer_rows_and_then_fewer_steps(characters, batch, seq_len):
    settings = TINY.fit_to(characters)
    assert settings == dataclasses.replace(TINY, batch=batch, seq_len=seq_len)
    ids = np.zeros(characters, np.int32)
    assert len(Streams(ids, settings).epoch(0)) >= 1


def peak(work):
    """The most memory that Python had beside what was there before, in bytes."""
    tracemalloc.start()
    try:
        made = work()
        return made, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_text_takes_little_memory(tmp_path):
    """In pieces; a list of its characters alone would take 8 bytes of each."""
    size = 2**22
    text = charlm_datasets.Text("long", "to be or not" * (size // 12))
    run, most = peak(
        lambda: charlm_train.prepare(text, charlm_train.Options(workdir=tmp_path))
    )
    assert set(run.vocab.tokens) == set("to be rn")
    # A piece and the list of its characters, of which there are four: 9 / 4 bytes; and
    # the text once more, to be split or to be fingerprinted.
    assert most < 5 * size
    ids, most = peak(lambda: run.units.encode(text.content, run.vocab))
    assert run.vocab.decode(ids[:12]) == list("to be or not")
    assert ids.size == len(text.content)
    # The ids of the pieces, then of the whole text: 4 bytes each. Two lists of all the
    # characters and of their ids would be 16 more.
    assert most < 12 * size


def rates(settings, steps, at):
    """The learning rate of AdamW at these steps: a constant gradient moves a weight by
    just that, as the bias corrections make of it."""
    settings = dataclasses.replace(settings, weight_decay=0.0)
    optimizer = charlm_model.make_optimizer(settings, steps)
    params = {"w": jnp.zeros(())}
    state, moved = optimizer.init(params), []
    for _ in range(max(at) + 1):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
        moved.append(-float(updates["w"]))
    return [moved[step] for step in at]


def test_the_rate_rises_and_falls_along_a_cosine():
    settings = Settings(learning_rate=0.5, warmup=0.2)
    found = rates(settings, 50, at=[0, 1, 5, 10, 20, 30, 40, 49])
    falling = [0.25 * (1 + np.cos(np.pi * k / 40)) for k in (0, 10, 20, 30, 39)]
    # Adam's bias corrections in float32 round by up to 1e-3 in the first steps.
    np.testing.assert_allclose(found, [0, 0.05, 0.25, *falling], rtol=1e-3, atol=1e-5)


def test_the_rate_of_the_chapter_is_constant():
    found = rates(PRESETS["chapter"], 50, at=[0, 1, 49])
    np.testing.assert_allclose(found, 5e-3, rtol=1e-3)


def test_long_gradients_are_cut_to_the_norm():
    """Before Adam, which has no use for the length of a gradient that stays the same:
    one long gradient among short ones must not outweigh them."""
    optimizer = charlm_model.make_optimizer(Settings(clip=1.0, weight_decay=0.0), 100)
    params = {"w": jnp.zeros(2)}

    def momentum(gradient):
        with jax.numpy_dtype_promotion("standard"):
            _, state = optimizer.update(
                {"w": jnp.array(gradient)}, optimizer.init(params), params
            )
        [adam] = [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
        return adam.mu["w"]

    np.testing.assert_allclose(momentum([30.0, 40.0]), [0.06, 0.08], rtol=1e-6)
    np.testing.assert_allclose(momentum([0.3, 0.4]), [0.03, 0.04], rtol=1e-6)


def is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)


def test_weights_decay_and_biases_do_not():
    settings = Settings(learning_rate=0.5, warmup=0.0, weight_decay=0.1)
    optimizer = charlm_model.make_optimizer(settings, 100)
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(
            jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
        )
    np.testing.assert_allclose(updates["w"], -0.05)
    np.testing.assert_array_equal(updates["b"], 0)


def test_the_network_is_what_the_settings_say():
    settings = Settings(
        cell="rnn", embed=3, hidden=4, layers=2, dropout=0.5, locked_dropout=True,
        tie_embeddings=True,
    )  # fmt: skip
    model = charlm_model.make_model(settings, VOCAB)
    optimizer = charlm_model.make_optimizer(settings, 10)
    state = jax.eval_shape(lambda: charlm_model.make_state(model, optimizer, settings))
    params = state.train.params["params"]
    assert params["embed"]["embedding"].shape == (VOCAB, 3)
    assert params["encoder"].keys() == {"l0", "l1"}
    assert params["encoder"]["l1"]["w_h"].shape == (4, 4)
    assert params["project"]["kernel"].shape == (4, 3)
    assert [leaf.shape for leaf in state.carry] == [(16, 4), (16, 4)]
    assert model.dropout == model.encoder.dropout == 0.5
    assert model.locked_dropout is model.encoder.locked_dropout is True


def test_a_step_carries_the_state_where_streams_do_not_restart(rng):
    """Its loss is that of a stream alone from zeros, or from the carried state."""
    model = charlm_model.make_model(TINY, VOCAB)
    optimizer = charlm_model.make_optimizer(TINY, 10)
    step = charlm_model.make_train_step(model, optimizer, placement.data_mesh(2))
    state = charlm_model.make_state(model, optimizer, TINY)
    state = state.replace(carry=(rng.normal(size=(4, 4)).astype(np.float32),))
    inputs, targets = rng.integers(VOCAB, size=(2, 4, 5)).astype(np.int32)
    starts = np.array([True, False, False, True])
    zeros = np.where(starts[:, None], 0, state.carry[0])
    logits, after = model.apply(state.train.params, inputs, state=(zeros,))
    expected = float(metrics.cross_entropy(logits, targets).mean())
    new, measured = step(
        state, {"inputs": inputs, "targets": targets, "starts": starts}
    )
    assert float(measured["loss"].value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(new.carry[0], after[0], rtol=1e-5, atol=1e-6)
    assert int(new.step) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_no_layer_is_scanned_step_by_step(cell, dtype):
    settings = Settings(cell=cell, dtype=dtype, layers=2)
    model = charlm_model.make_model(settings, 20)
    kernels = dtype == "float32" and library.instruction_set() is not None
    expected = "native" if kernels else "fused"
    assert model.encoder.resolved_backends == (expected,) * 2


@pytest.mark.slow
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_bfloat16_rounds_factors_and_nothing_else(rng, tie_embeddings):
    """The loss moves by less than bfloat16's 8 bits; what is kept is float32."""
    inputs, targets = rng.integers(VOCAB, size=(2, 4, 5)).astype(np.int32)
    batch = {"inputs": inputs, "targets": targets, "starts": np.full(4, True)}
    losses = []
    for dtype in ("float32", "bfloat16"):
        settings = dataclasses.replace(TINY, dtype=dtype, tie_embeddings=tie_embeddings)
        model = charlm_model.make_model(settings, VOCAB)
        optimizer = charlm_model.make_optimizer(settings, 10)
        step = charlm_model.make_train_step(model, optimizer, placement.data_mesh(2))
        state = charlm_model.make_state(model, optimizer, settings)
        state, measured = step(state, batch)
        kept = jax.tree.leaves((state.train.params, state.carry))
        assert {str(leaf.dtype) for leaf in kept} == {"float32"}
        losses.append(float(measured["loss"].value))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=2**-8)


@pytest.mark.parametrize("name", ["dropout", "weight_drop"])
def test_what_is_dropped_is_drawn_anew_at_each_step(rng, name):
    settings = dataclasses.replace(TINY, learning_rate=0.0, **{name: 0.5})
    model = charlm_model.make_model(settings, VOCAB)
    optimizer = charlm_model.make_optimizer(settings, 10)
    step = charlm_model.make_train_step(
        model, optimizer, placement.data_mesh(1), settings.weight_drop
    )
    state = charlm_model.make_state(model, optimizer, settings)
    inputs, targets = rng.integers(VOCAB, size=(2, 4, 5)).astype(np.int32)
    batch = {"inputs": inputs, "targets": targets, "starts": np.full(4, True)}
    losses = []
    for _ in range(3):
        state, measured = step(state, batch)
        losses.append(float(measured["loss"].value))
    assert len(set(losses)) == 3
