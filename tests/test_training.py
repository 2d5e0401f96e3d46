"""The data-parallel step: exact over devices, padding and masks; compiled once."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn import metrics
from jaxrnn.metrics import Mean
from jaxrnn.placement import data_mesh
from jaxrnn.placement import shard_batch as shard
from jaxrnn.training import TrainState, make_eval_step, make_train_step

KEY = jax.random.key(7)


def loss(params, batch, key):
    """Logistic regression over the rows that have a weight."""
    logits = jnp.dot(batch["x"], params["w"]) + params["b"]
    nats = metrics.binary_cross_entropy(logits, batch["labels"])
    right = metrics.correct(logits, batch["labels"])
    return {
        "loss": Mean.of(nats, batch["weights"]),
        "accuracy": Mean.of(right, batch["weights"]),
    }


def initial(optimizer, params=None):
    params = params or {"w": jnp.linspace(-1.0, 1.0, 5), "b": jnp.zeros(1)}
    return TrainState.create(params, optimizer, KEY)


def random_batch(rng, rows=8):
    return {
        "x": rng.normal(size=(rows, 5)).astype(np.float32),
        "labels": rng.integers(0, 2, size=rows).astype(np.int32),
        "weights": np.ones(rows, np.float32),
    }


def run(batches, num_devices, optimizer=None, loss=loss, state=None):
    optimizer = optimizer or optax.adamw(0.1)
    step = make_train_step(loss, optimizer, data_mesh(num_devices))
    state, history = state or initial(optimizer), []
    for batch in batches:
        state, measured = step(state, batch)
        history.append({name: float(mean.value) for name, mean in measured.items()})
    return state, history


def assert_same_run(left, right, rtol=1e-5):
    (left_state, left_history), (right_state, right_history) = left, right
    for a, b in zip(left_history, right_history, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=rtol)
    left_params = jax.tree.leaves(left_state.params)
    right_params = jax.tree.leaves(right_state.params)
    for a, b in zip(left_params, right_params, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


def test_golden_first_three_losses():
    """Worked by hand: predictions w x of y = 2 x, w from 0, rate 0.1.

    Two rows count, x = 1 and x = 2, so the loss is 5 (w - 2)**2 / 2 and its gradient
    5 (w - 2): w = 0, 1, 1.5, loss = 10, 2.5, 0.625. The third row has weight 0.
    """

    def squares(params, batch, key):
        errors = (params["w"] * batch["x"] - batch["y"]) ** 2
        return {"loss": Mean.of(errors, batch["weights"])}

    batch = {
        "x": np.array([1, 2, 5, 0], np.float32),
        "y": np.array([2, 4, 9, 0], np.float32),
        "weights": np.array([1, 1, 0, 0], np.float32),
    }
    optimizer = optax.sgd(0.1)
    state = initial(optimizer, {"w": jnp.zeros(1)})
    state, history = run([batch] * 3, 2, optimizer, squares, state)
    np.testing.assert_allclose(
        [measured["loss"] for measured in history],
        [10, 2.5, 0.625],
        rtol=1e-6,
        err_msg="10, 0, 0: the gradient of the sum was taken, not of the mean; "
        "10, 5.625, 3.164…: the rows without weight were counted; "
        "nan: each device divided by the weight of its own rows",
    )
    gradients = [measured["gradient_norm"] for measured in history]
    np.testing.assert_allclose(gradients, [10, 5, 2.5], rtol=1e-6)
    assert int(state.step) == 3


def test_one_device_equals_two(rng):
    batches = [random_batch(rng) for _ in range(4)]
    # Uneven on purpose: the first device's rows weigh 0 to 3 each, the second's 1.
    for batch in batches:
        batch["weights"][:4] = rng.integers(0, 4, size=4)
    assert_same_run(run(batches, 1), run(batches, 2))


def test_masked_rows_equal_rows_removed(rng):
    batches = [random_batch(rng) for _ in range(4)]
    kept = [{name: array[:6] for name, array in batch.items()} for batch in batches]
    for batch in batches:
        batch["weights"][6:] = 0
        batch["x"][6:] = 100
    assert_same_run(run(batches, 2), run(kept, 2))


def test_weight_decay_with_zero_gradient_shrinks_the_weights():
    def nothing(params, batch, key):
        return {"loss": Mean.of(0.0 * params["w"])}

    optimizer = optax.adamw(0.1, weight_decay=0.5)
    state = initial(optimizer, {"w": jnp.array([3.0, -4.0])})
    batches = [{"x": np.zeros(2, np.float32)}] * 2
    state, history = run(batches, 2, optimizer, nothing, state)
    # Decoupled decay (Loshchilov & Hutter 2019): each step keeps 1 - 0.1 * 0.5.
    np.testing.assert_allclose(state.params["w"], np.array([3, -4]) * 0.95**2)
    assert [measured["gradient_norm"] for measured in history] == [0, 0]


def test_overfits_eight_examples(rng):
    batch = random_batch(rng)
    batch["x"] = np.eye(8, dtype=np.float32)
    optimizer = optax.adamw(0.3)
    state = initial(optimizer, {"w": jnp.zeros(8), "b": jnp.zeros(1)})
    _, history = run([batch] * 60, 2, optimizer, state=state)
    assert history[-1]["loss"] < 0.01
    assert history[-1]["accuracy"] == 1


def test_random_key_depends_on_seed_step_and_device_alone():
    def noise(params, batch, key):
        draws = jax.random.uniform(key, batch["row"].shape)
        own = {f"row {r}": Mean.of(draws, batch["row"] == r) for r in range(2)}
        return own | {"loss": Mean.of(params["w"])}

    batch = {"row": np.arange(2, dtype=np.int32)}
    optimizer = optax.sgd(0.1)
    _, history = run([batch] * 2, 2, optimizer, noise, initial(optimizer))
    for step, measured in enumerate(history):
        for device in range(2):
            key = jax.random.fold_in(jax.random.fold_in(KEY, step), device)
            expected = float(jax.random.uniform(key, (1,))[0])
            assert measured[f"row {device}"] == pytest.approx(expected)


def test_state_is_donated_and_the_callers_arrays_are_not(rng):
    params, key = {"w": jnp.ones(5), "b": jnp.zeros(1)}, jax.random.key(1)
    optimizer = optax.adamw(0.1)
    for devices in (1, 2):
        step = make_train_step(loss, optimizer, data_mesh(devices))
        first = TrainState.create(params, optimizer, key)
        second, _ = step(first, random_batch(rng))
        third, _ = step(second, random_batch(rng))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(second))
        assert int(third.step) == 2
    np.testing.assert_array_equal(params["w"], np.ones(5))
    assert jax.random.key_data(key).tolist() == [0, 1]


def test_second_call_compiles_nothing(rng):
    batches = [random_batch(rng) for _ in range(3)]
    train = make_train_step(loss, optax.adamw(0.1), data_mesh())
    evaluate = make_eval_step(lambda p, batch: loss(p, batch, KEY), data_mesh())
    state = initial(optax.adamw(0.1))
    with counted_compilations() as compilations:
        state, _ = train(state, batches[0])
        evaluate(state.params, batches[0])
    assert len(compilations) >= 2
    with counted_compilations() as compilations:
        for batch in batches:
            state, _ = train(state, batch)
            evaluate(state.params, batch)
    assert compilations == []


@contextlib.contextmanager
def counted_compilations():
    events = []

    def listener(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(kwargs.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_metrics_stay_on_the_devices(rng):
    step = make_train_step(loss, optax.adamw(0.1), data_mesh())
    state = initial(optax.adamw(0.1))
    state, _ = step(state, random_batch(rng))
    batch = shard(random_batch(rng), data_mesh())
    with jax.transfer_guard("disallow"):
        state, measured = step(state, batch)
    assert measured.keys() == {"loss", "accuracy", "gradient_norm"}
    for mean in measured.values():
        assert isinstance(mean.total, jax.Array)
        assert mean.total.sharding == NamedSharding(data_mesh(), P())


def test_steps_on_several_cpu_devices_do_not_run_ahead(rng):
    """The next batch could not be placed while devices wait for each other in the
    all-reduce of a step: both would wait forever."""
    x = rng.normal(size=(2, 400, 400)).astype(np.float32)

    def loss(params, batch, key):
        return {"loss": Mean.of((batch["x"] @ params["w"] @ batch["x"]) ** 2)}

    def measure(params, batch):
        return loss(params, batch, None)

    optimizer = optax.sgd(0.1)
    state = initial(optimizer, {"w": jnp.eye(400)})
    _, metrics = make_train_step(loss, optimizer, data_mesh(2))(state, {"x": x})
    assert metrics["loss"].total.is_ready()
    metrics = make_eval_step(measure, data_mesh(2))({"w": jnp.eye(400)}, {"x": x})
    assert metrics["loss"].total.is_ready()


def test_one_all_reduce_of_gradients_and_metrics(rng):
    # What travels: 5 + 1 gradients, two totals, and the weight that both share.
    def sizes_reduced(step, *args):
        text = jax.jit(step).lower(*args).compile().as_text() or ""
        reductions = re.findall(r"= (.*) all-reduce\(", text)
        assert len(reductions) == 1
        assert not re.search(r"all-gather|reduce-scatter|collective-permute", text)
        shapes = re.findall(r"f32\[(\d*)\]", reductions[0])
        return sorted(int(size or 1) for size in shapes)

    mesh, optimizer = data_mesh(2), optax.adamw(0.1)
    batch = shard(random_batch(rng), mesh)
    state = jax.device_put(initial(optimizer), NamedSharding(mesh, P()))
    train = make_train_step(loss, optimizer, mesh)
    assert sizes_reduced(train, state, batch) == [1, 1, 1, 1, 5]
    evaluate = make_eval_step(lambda p, batch: loss(p, batch, KEY), mesh)
    assert sizes_reduced(evaluate, state.params, batch) == [1, 1, 1]


@pytest.mark.parametrize(
    ("dtype", "rows", "ones"), [("float16", 69_632, 34_816), ("bfloat16", 770, 768)]
)
def test_parameters_stay_in_half_precision_and_the_weight_does_not(dtype, rows, ones):
    """float16 ends at 65,504, bfloat16 rounds 770 to 768: both numbers of ones, and
    the halves of them that each device adds up, are exact."""

    def linear(params, batch, key):
        return {"loss": Mean.of(params["w"].astype(jnp.float32) * batch["x"])}

    x = np.zeros((2, rows // 2), np.float32)
    x[:, : ones // 2] = 1
    optimizer = optax.sgd(1.0)
    state = initial(optimizer, {"w": jnp.zeros(1, dtype)})
    state, _ = run([{"x": x.ravel()}], 2, optimizer, linear, state)
    assert state.params["w"].dtype == dtype
    assert state.params["w"][0] == jnp.asarray(-ones / rows, dtype)


def test_evaluation_of_uneven_batches_equals_one_pass(rng):
    whole = random_batch(rng, rows=14)
    params = initial(optax.sgd(0.1)).params
    evaluate = make_eval_step(lambda p, batch: loss(p, batch, KEY), data_mesh(2))
    parts = [
        {k: v[rows] for k, v in whole.items()} for rows in (slice(8), slice(8, 14))
    ]
    parts[1] = {
        k: np.concatenate([v, np.zeros_like(v[:2])]) for k, v in parts[1].items()
    }
    first, second = (evaluate(params, part) for part in parts)
    logits = whole["x"] @ np.linspace(-1, 1, 5)
    p = 1 / (1 + np.exp(-logits))
    expected = {
        "loss": -np.log(np.where(whole["labels"], p, 1 - p)).mean(),
        "accuracy": np.mean((logits > 0) == whole["labels"]),
    }
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        merged = first[name].merge(second[name])
        assert merged.weight == 14
        np.testing.assert_allclose(merged.value, value, rtol=1e-5)


def test_state_from_other_devices_is_accepted(rng):
    batches = [random_batch(rng) for _ in range(2)]
    optimizer = optax.adamw(0.1)
    expected, _ = run(batches, 2, optimizer)
    on_second = jax.device_put(run(batches[:1], 2, optimizer)[0], jax.devices()[1])
    state, _ = run(batches[1:], 2, optimizer, state=on_second)
    np.testing.assert_array_equal(state.params["w"], expected.params["w"])


def test_batch_that_the_devices_do_not_divide(rng):
    step = make_train_step(loss, optax.adamw(0.1), data_mesh(2))
    message = r"batch\['labels'\] has 7 rows, which 2 devices .*batching\.pad_rows"
    with pytest.raises(ValueError, match=message):
        step(initial(optax.adamw(0.1)), random_batch(rng, rows=7))
    with pytest.raises(ValueError, match=r"batch\['t'\] has no axis of rows"):
        shard({"t": np.float32(1)}, data_mesh(2))


def test_loss_function_without_a_loss(rng):
    def unnamed(params, batch, key):
        return {"nats": Mean.of(batch["x"])}

    with pytest.raises(ValueError, match=r'named "loss", not only \[\'nats\'\]'):
        run([random_batch(rng)], 2, loss=unnamed)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
        optax.polyak_sgd(),
        optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2),
    ],
    ids=["plateau", "polyak", "multi-steps"],
)
def test_optimizers_that_need_more_than_gradients(optimizer):
    """They get the loss of the whole batch, on any number of devices."""

    def loss(params, batch, key):
        return {"loss": Mean.of((params["w"] - batch["x"]) ** 2)}

    found = []
    for devices in (1, 2):
        step = make_train_step(loss, optimizer, data_mesh(devices))
        state = TrainState.create(
            {"w": jnp.full((), 3.0)}, optimizer, jax.random.key(0)
        )
        for _ in range(4):
            state, metrics = step(state, {"x": np.array([0.0, 2.0], np.float32)})
        assert metrics["loss"].value < 5  # (9 + 1) / 2 before the first step
        found.append(state.params["w"])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_statistics_that_no_optimizer_should_change_are_refused():
    variables = {"params": {"w": jnp.zeros(1)}, "batch_stats": {"mean": jnp.zeros(1)}}
    with pytest.raises(ValueError, match=r"params has .*batch_stats"):
        TrainState.create(variables, optax.sgd(0.1), jax.random.key(0))
