"""Truncated backpropagation through time: what is carried from batch to batch, and that
gradients are not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import metrics
from jaxrnn.metrics import Mean
from jaxrnn.models import LanguageModel
from jaxrnn.placement import data_mesh, shard_batch
from jaxrnn.training import (
    TrainState,
    make_eval_step,
    make_stateful_eval_step,
    make_stateful_train_step,
    make_train_step,
)
from tests.test_training import assert_same_run, counted_compilations

VOCAB, ROWS, TIME = 5, 4, 6
MODEL = LanguageModel(VOCAB, 3, jaxrnn.LSTM(8, num_layers=2))


def measure(params, batch, state):
    logits, state = MODEL.apply(params, batch["inputs"], state=state)
    nats = metrics.cross_entropy(logits, batch["targets"])
    return {"loss": Mean.of(nats, batch["weights"])}, state


def loss(params, batch, state, key):
    return measure(params, batch, state)


def initial(optimizer):
    params = jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))
    return TrainState.create(params, optimizer, jax.random.key(7))


def random_batches(rng, count, time=TIME):
    """Of one text in each row, cut into batches."""
    ids = rng.integers(VOCAB, size=(ROWS, count * time + 1)).astype(np.int32)
    cuts = [slice(k * time, (k + 1) * time) for k in range(count)]
    return [
        {
            "inputs": ids[:, :-1][:, cut],
            "targets": ids[:, 1:][:, cut],
            "weights": rng.integers(0, 4, size=(ROWS, time)).astype(np.float32),
        }
        for cut in cuts
    ]


def run(batches, num_devices, learning_rate=0.1):
    optimizer = optax.adamw(learning_rate)
    step = make_stateful_train_step(loss, optimizer, data_mesh(num_devices))
    state, carry, history = initial(optimizer), MODEL.initial_state((ROWS,)), []
    for batch in batches:
        state, carry, measured = step(state, carry, batch)
        history.append({name: float(mean.value) for name, mean in measured.items()})
    return state, carry, history


def test_gradients_stop_at_the_border_of_the_batch():
    """Worked by hand: h_t = w h_(t-1) + x_t, x = 1, 1, 1, 1, w = 2, batches of two
    steps, loss (h_t + h_(t+1)) / 1 of a batch.

    h = 1, 3, 7, 15. To the second batch h_2 = 3 is a number: dh_3/dw = h_2 = 3 and
    dh_4/dw = h_3 + w dh_3/dw = 13, together 16. Through the border it would be
    dh_2/dw = h_1 = 1, dh_3/dw = 3 + 2, dh_4/dw = 7 + 10: together 22.
    """

    def sums(params, batch, h, key):
        total = 0
        for t in range(2):
            h = params["w"] * h + batch["x"][:, t]
            total += h
        return {"loss": Mean.of(total)}, h

    # Rates of 0 and 1: the weight is 2 in both steps, then changes by the gradient.
    optimizer = optax.sgd(lambda count: count.astype(jnp.float32))
    step = make_stateful_train_step(sums, optimizer, data_mesh(1))
    state = TrainState.create({"w": jnp.full((), 2.0)}, optimizer, jax.random.key(0))
    h, losses, batch = np.zeros(1, np.float32), [], {"x": np.ones((1, 2), np.float32)}
    for _ in range(2):
        state, h, measured = step(state, h, batch)
        losses.append(float(measured["loss"].value))
    assert losses == [1 + 3, 7 + 15]
    assert h.tolist() == [15]
    assert 2 - float(state.params["w"]) == 16, "22: the gradient crossed the border"


@pytest.mark.slow
def test_metrics_with_carried_state_are_those_of_one_pass(rng):
    batches = random_batches(rng, 3)
    params = initial(optax.sgd(0.1)).params
    step = make_stateful_eval_step(measure, data_mesh(2))
    carry, total = MODEL.initial_state((ROWS,)), Mean(jnp.zeros(()), jnp.zeros(()))
    for batch in batches:
        carry, measured = step(params, carry, batch)
        total = total.merge(measured["loss"])
    whole = {k: np.concatenate([b[k] for b in batches], axis=1) for k in batches[0]}
    expected, last = measure(params, whole, None)
    assert total.weight == whole["weights"].sum()
    np.testing.assert_allclose(total.value, expected["loss"].value, rtol=1e-5)
    for found, leaf in zip(jax.tree.leaves(carry), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-6)


def test_a_model_remembers_across_the_border():
    """Of the text 0 1 2 1 0 1 2 1 ... in batches of one step: what follows a 1 only the
    carried state knows. Without it half of the targets cost at least log 2."""
    text = np.tile([0, 1, 2, 1], 100).astype(np.int32)
    ids = np.stack([text[row : row + 301] for row in range(ROWS)])
    weights = np.ones((ROWS, 1), np.float32)
    batches = [
        {"inputs": ids[:, [t]], "targets": ids[:, [t + 1]], "weights": weights}
        for t in range(300)
    ]
    _, _, history = run(batches, 2)
    assert np.mean([line["loss"] for line in history[-20:]]) < 0.1 * np.log(2) / 2


def test_one_device_equals_two(rng):
    batches = random_batches(rng, 4)
    # Adam divides by the size of a gradient, and so magnifies the rounding of small
    # ones up to the learning rate: at 1e-3 far below what a wrong gradient would do.
    (one, one_carry, one_lines), (two, two_carry, two_lines) = (
        run(batches, devices, learning_rate=1e-3) for devices in (1, 2)
    )
    assert_same_run((one, one_lines), (two, two_lines))
    for a, b in zip(*map(jax.tree.leaves, (one_carry, two_carry)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_carry_stays_where_its_rows_are(rng):
    mesh, optimizer = data_mesh(2), optax.sgd(0.1)
    step = make_stateful_train_step(loss, optimizer, mesh)
    batches = random_batches(rng, 3)
    state, carry, _ = step(initial(optimizer), MODEL.initial_state((ROWS,)), batches[0])
    batch = shard_batch(batches[1], mesh)
    with jax.transfer_guard("disallow"), counted_compilations() as compilations:
        state, after, _ = step(state, carry, batch)
    assert compilations == []
    for leaf in jax.tree.leaves(after):
        assert leaf.sharding == NamedSharding(mesh, P("data"))
        assert leaf.shape == (ROWS, 8)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(carry))
    assert int(state.step) == 2


def test_a_carry_that_the_devices_do_not_divide(rng):
    step = make_stateful_eval_step(measure, data_mesh(2))
    params, carry = initial(optax.sgd(0.1)).params, MODEL.initial_state((3,))
    with pytest.raises(ValueError, match=r"^carry\[0\]\.h has 3 rows, which 2 devices"):
        step(params, carry, random_batches(rng, 1)[0])


@pytest.mark.parametrize(
    "found", ["array", {"loss": "array"}, {"loss": "mean", "x": "array"}]
)
def test_metrics_that_are_no_means(found):
    """Their sums over the devices would be wrong, and nobody would see it."""
    mesh, optimizer = data_mesh(2), optax.sgd(0.1)
    spelled = {"array": jnp.float32(0.9), "mean": Mean.of(jnp.ones(2))}
    values = jax.tree.map(spelled.get, found)
    state = TrainState.create({}, optimizer, jax.random.key(0))
    train = make_train_step(lambda *_: values, optimizer, mesh)
    evaluate = make_eval_step(lambda *_: values, mesh)
    with pytest.raises(TypeError, match=r"loss must return a dict of metrics\.Mean"):
        train(state, {"x": jnp.ones(2)})
    with pytest.raises(TypeError, match=r"metrics must return a dict of metrics\.Mean"):
        evaluate({}, {"x": jnp.ones(2)})
