"""Checkpoints: exact, the last and the best kept, others refused."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn.checkpoints import CheckpointError, Checkpoints
from jaxrnn.metrics import Mean
from jaxrnn.placement import data_mesh
from jaxrnn.training import TrainState, make_train_step


def random_state(seed, impl="threefry2x32", width=3):
    key = jax.random.key(seed, impl=impl)
    params = {
        "l0": {"w_x": jax.random.normal(key, (2, width)), "b": jnp.arange(width)},
        "narrow": jax.random.normal(key, (4,), jnp.bfloat16),
    }
    return TrainState.create(params, optax.adam(0.1), key)


def assert_identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def files_below(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_round_trip_is_exact(tmp_path, impl):
    state = random_state(1, impl)
    info = {"epoch": 3, "best": 0.1, "order": [1, 2], "note": "naïve\n", "none": None}
    Checkpoints(tmp_path / "deep" / "run").save(7, state, info=info, metric=0.5)
    again = Checkpoints(tmp_path / "deep" / "run")
    assert again.steps() == (7,)
    restored, restored_info = again.restore(random_state(2, impl))
    assert_identical(restored, state)
    assert restored_info == info


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_step_and_metric_may_be_arrays(tmp_path, make):
    checkpoints = Checkpoints(tmp_path)
    state = {"w": jnp.ones(2)}
    for step, metric in [(2, make(0.25)), (3, make(1)), (4, jnp.bfloat16(0.5))]:
        checkpoints.save(make(step), state, info={"at": step}, metric=metric)
    assert checkpoints.steps() == (2, 3, 4)
    assert checkpoints.restore(state, "best")[1] == {"at": 2}
    for step in (True, np.True_, make(True), make(5.0), make([5])):
        with pytest.raises(TypeError, match="step must be an integer, got"):
            checkpoints.save(step, state, info={}, metric=0.0)
    for metric in (True, make(True), 1j, make(1j), make([0.5]), None, [[1], [1, 2]]):
        with pytest.raises(TypeError, match="metric must be a number, got"):
            checkpoints.save(5, state, info={}, metric=metric)


def test_template_may_be_shapes_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, random_state(1), info={}, metric=0.0)
    template = jax.eval_shape(lambda: random_state(2))
    restored, _ = checkpoints.restore(template)
    assert_identical(restored, random_state(1))


@pytest.mark.parametrize(
    ("mode", "kept", "bests"),
    [
        (
            "min",
            [{1}, {1, 2}, {2, 3}, {3, 4}, {3, 4, 5}, {5, 6}],
            [1, 1, 3, 3, 3, 6],
        ),
        (
            "max",
            [{1}, {1, 2}, {2, 3}, {2, 3, 4}, {4, 5}, {5, 6}],
            [1, 2, 2, 2, 5, 5],
        ),
    ],
)
def test_the_last_two_and_the_best_are_kept(tmp_path, mode, kept, bests):
    metrics = [0.5, 0.8, 0.2, 0.7, 0.8, 0.2]  # of equal ones the latest is best
    for step, (metric, expected, best) in enumerate(
        zip(metrics, kept, bests, strict=True), start=1
    ):
        # A new object each time: what is kept depends on the directory alone.
        checkpoints = Checkpoints(tmp_path, mode)
        checkpoints.save(step, random_state(step), info={"at": step}, metric=metric)
        assert set(checkpoints.steps()) == expected
        assert {path.name for path in tmp_path.iterdir()} == {
            f"step_{step}" for step in expected
        }
        restored = [
            (checkpoints.restore(random_state(0), "last"), step),
            (checkpoints.restore(random_state(0), "best"), best),
            (checkpoints.restore(random_state(0), best), best),
        ]
        for (state, info), held in restored:
            assert_identical(state, random_state(held))
            assert info == {"at": held}


def test_what_was_saved_is_there_below_other_steps_too(tmp_path):
    """As after a return to an earlier one."""
    checkpoints = Checkpoints(tmp_path, "max")
    for step, metric in [(10, 0.1), (20, 0.5), (30, 0.5), (15, 0.4)]:
        checkpoints.save(step, random_state(step), info={}, metric=metric)
        assert step in checkpoints.steps()
    assert checkpoints.steps() == (15, 20, 30)
    assert_identical(checkpoints.restore(random_state(0), 15)[0], random_state(15))


def test_resumed_training_is_bit_identical_on_any_devices(tmp_path):
    def loss(params, batch, key):
        noise = jax.random.normal(key, batch["x"].shape)
        return {"loss": Mean.of((batch["x"] @ params["w"] + noise[:, 0]) ** 2)}

    optimizer = optax.adamw(0.1)
    batch = {"x": np.eye(4, dtype=np.float32)}
    step = make_train_step(loss, optimizer, data_mesh(2))

    def start():
        return TrainState.create({"w": jnp.ones(4)}, optimizer, jax.random.key(1))

    straight = start()
    checkpoints = Checkpoints(tmp_path)
    for index in range(4):
        if index == 2:
            checkpoints.save(2, straight, info={}, metric=0.0)
        straight, _ = step(straight, batch)
    resumed, _ = checkpoints.restore(start())
    for _ in range(2):
        resumed, _ = step(resumed, batch)
    assert_identical(resumed, straight)


def test_restores_into_the_shardings_of_the_template(tmp_path):
    mesh = data_mesh(2)
    rows, copies = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    values = {
        "rows": np.arange(6.0, dtype=np.float32),
        "copies": np.ones(2, np.float32),
    }
    checkpoints = Checkpoints(tmp_path)
    saved = jax.device_put(values, {"rows": rows, "copies": copies})
    checkpoints.save(1, saved, info={}, metric=0.0)
    other = {
        "rows": copies,
        "copies": jax.sharding.SingleDeviceSharding(jax.devices()[1]),
    }
    for shardings in ({"rows": rows, "copies": copies}, other):
        template = jax.device_put(jax.tree.map(jnp.zeros_like, values), shardings)
        restored, _ = checkpoints.restore(template)
        for name, value in values.items():
            np.testing.assert_array_equal(restored[name], value)
            assert restored[name].sharding == shardings[name]


def test_place_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file")
    with pytest.raises(CheckpointError, match=f"cannot save step 1 in {tmp_path}/file"):
        checkpoints.save(1, {"w": jnp.ones(2)}, info={}, metric=0.0)
    assert checkpoints.steps() == ()


def test_a_fault_of_the_state_is_not_called_one_of_the_disk(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    donated = {"w": jnp.ones(2)}
    donated["w"].delete()
    message = f"^cannot save step 1 in {tmp_path}: .*deleted"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save(1, donated, info={}, metric=0.0)
    assert checkpoints.steps() == ()


def test_other_states_are_listed_with_both_shapes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, random_state(1), info={}, metric=0.0)
    with pytest.raises(ValueError, match=r"step 1 .* holds another state") as error:
        checkpoints.restore(random_state(1, width=5))
    assert not isinstance(error.value, CheckpointError)
    for part in ("params", "opt_state/0/mu", "opt_state/0/nu"):
        assert f"{part}/l0/w_x is float32[2, 3], not float32[2, 5]" in str(error.value)
    assert "narrow" not in str(error.value)

    template = random_state(1)
    params = {"l0": template.params["l0"], "l1": {"b": jnp.zeros(2)}}
    with pytest.raises(ValueError, match="another state") as error:
        checkpoints.restore(template.replace(params=params))
    assert "params/l1/b is missing, not float32[2]" in str(error.value)
    assert "params/narrow is bfloat16[4], not expected" in str(error.value)


def test_another_kind_of_random_key_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, random_state(1, "rbg"), info={}, metric=0.0)
    # The two implementations have keys of the same shape and draw other numbers.
    with pytest.raises(ValueError, match=r"key is key<rbg>\[\], not key<urbg>\[\]"):
        checkpoints.restore(random_state(1, "unsafe_rbg"))


@pytest.mark.parametrize("value", [np.array(2**40 + 5), np.array([1 / 3])])
def test_what_jax_would_narrow_is_refused_and_exact_where_it_would_not(tmp_path, value):
    checkpoints = Checkpoints(tmp_path)
    narrow = "int32" if value.dtype == np.int64 else "float32"
    message = f"^a/w is {value.dtype}, which would come back as {narrow}: convert it"
    with pytest.raises(TypeError, match=message):
        checkpoints.save(1, {"a": {"w": value}}, info={}, metric=0.0)
    assert not list(tmp_path.iterdir())
    with jax.enable_x64(True):
        checkpoints.save(1, {"a": {"w": value}}, info={}, metric=0.0)
        restored, _ = checkpoints.restore({"a": {"w": np.zeros_like(value)}})
        assert_identical(restored, {"a": {"w": value}})
    with pytest.raises(TypeError, match=message):
        checkpoints.restore({"a": {"w": value}})


def test_nothing_there(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps() == ()
    for which in ("last", "best", 3):
        with pytest.raises(ValueError, match=f"no checkpoint in {tmp_path}/run"):
            checkpoints.restore({"w": jnp.ones(2)}, which)
    assert not (tmp_path / "run").exists()


def test_bad_arguments(tmp_path):
    checkpoints, state = Checkpoints(tmp_path), {"w": jnp.ones(2)}
    checkpoints.save(1, state, info={}, metric=float("inf"))
    with pytest.raises(ValueError, match="metric of step 2 is NaN"):
        checkpoints.save(2, state, info={}, metric=float("nan"))
    with pytest.raises(TypeError, match="JSON serializable"):
        checkpoints.save(2, state, info={"state": state}, metric=0.0)
    assert os.listdir(tmp_path) == ["step_1"]
    with pytest.raises(ValueError, match=r"checkpoint 2 in .*steps \(1,\)"):
        checkpoints.restore(state, 2)
    with pytest.raises(ValueError, match="checkpoint 'newest' in"):
        checkpoints.restore(state, "newest")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match='"min" or "max", not \'least\''):
        Checkpoints(tmp_path, "least")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("state", "info", "message"),
    [
        ({"w": jnp.ones(2)}, None, "info must be a dict, got None"),
        ({"w": jnp.ones(2)}, [1], r"info must be a dict, got \[1\]"),
        ({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}, {}, "'a/b' must be printable"),
        ({"a\x07": jnp.ones(2)}, {}, "must be printable"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, state, info, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Checkpoints(tmp_path).save(1, state, info=info, metric=0.0)
    assert not list(tmp_path.iterdir())


def test_a_url_is_no_directory():
    with pytest.raises(ValueError, match="must be a path, got 'gs://bucket/run'"):
        Checkpoints("gs://bucket/run")


def test_a_step_may_be_an_array(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, {"w": jnp.ones(2)}, info={}, metric=0.0)
    state, _ = checkpoints.restore({"w": jnp.zeros(2)}, jnp.array(5))
    np.testing.assert_array_equal(state["w"], [1, 1])
    with pytest.raises(TypeError, match="which must be an integer, got True"):
        checkpoints.restore({"w": jnp.zeros(2)}, True)
