"""The same layer in several libraries: each gives outputs and their true gradients."""

import functools
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import contenders
from experiments.contenders import Compiled, Task, UnavailableError

TASK = Task("lstm", batch=4, time=6, inputs=3, hidden=4)
RAGGED = Task("gru", 4, 6, 3, 4, ragged=True)
BOTH_WAYS = Task("rnn", 4, 6, 3, 4, ragged=True, bidirectional=True)
OTHERS = {
    "flax": contenders.flax,
    "keras": contenders.keras,
    "haiku": contenders.haiku,
}


@pytest.fixture(autouse=True)
def as_their_users_run_them():
    """With JAX's own promotion rules: others do not keep to strict ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def build(name, task):
    """A contender, or the test is skipped."""
    if name in OTHERS:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
        return OTHERS[name](task)
    options = {"one device": {"devices": 1}, "scan": {"backend": "scan"}, "ours": {}}
    options["in chunks"] = {"remat_chunk": 2}
    return contenders.ours(task, **options[name])


def test_arrays_of_a_ragged_batch():
    x, lengths, cotangent = Task("gru", 32, 250, 3, 4, ragged=True).arrays()
    assert lengths.mean() == pytest.approx(0.6 * 250, abs=0.5)
    assert (lengths.min(), lengths.max()) == (50, 250)
    assert (np.diff(lengths) < 0).any()  # As they come, not sorted.
    valid = np.arange(250) < lengths[:, None]
    assert (cotangent[~valid] == 0).all()
    assert (cotangent[valid] != 0).all()
    assert x.dtype == cotangent.dtype == np.float32


def test_arrays_of_a_full_batch_are_the_same_every_time():
    x, _, cotangent = BOTH_WAYS.arrays()
    again, _, _ = BOTH_WAYS.arrays()
    np.testing.assert_array_equal(x, again)
    assert cotangent.shape == (4, 6, 8)
    assert TASK.arrays()[1] is None


@pytest.mark.filterwarnings("default")  # Theirs are not ours to mend.
@pytest.mark.parametrize(
    "task", [TASK, RAGGED, BOTH_WAYS], ids=["full", "ragged", "both-ways"]
)
@pytest.mark.parametrize(
    "name", ["ours", "one device", "scan", "in chunks", "flax", "keras", "haiku"]
)
def test_the_gradient_of_the_inputs_is_the_slope_of_the_loss(name, task, rng):
    """And by that the backward pass is complete, and of the loss that is promised."""
    if name == "haiku" and task != TASK:
        with pytest.raises(UnavailableError, match="no ragged batches"):
            contenders.haiku(task)
        return
    training = build(name, task)
    params, x, lengths, cotangent = training.arguments
    evaluate = build(name, Task(**{**vars(task), "training": False})).function
    outputs, d_params, d_x = training()
    np.testing.assert_allclose(outputs, evaluate(params, x, lengths), atol=1e-6)
    assert jax.tree.map(jnp.shape, d_params) == jax.tree.map(jnp.shape, params)

    def loss(x):
        outputs = np.asarray(evaluate(params, x, lengths), np.float64)
        return np.sum(outputs * np.asarray(cotangent))

    direction = rng.normal(size=x.shape).astype(np.float32)
    # Float32: with 1e-2, rounding and curvature both stay below a thousandth.
    slope = (loss(x + 1e-2 * direction) - loss(x - 1e-2 * direction)) / 2e-2
    assert np.sum(np.asarray(d_x) * direction) == pytest.approx(slope, rel=1e-2)


def test_two_devices_sum_the_gradients_of_the_parameters():
    one, two = (contenders.ours(RAGGED, devices=count)() for count in (1, 2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert len(two[0].sharding.device_set) == 2


def test_the_backends_agree_and_bfloat16_is_coarse():
    run = functools.partial(contenders.ours, RAGGED)
    auto, scan, half = run()(), run(backend="scan")(), run(dtype=jnp.bfloat16)()
    np.testing.assert_allclose(auto[2], scan[2], atol=1e-6)
    assert half[0].dtype == jnp.bfloat16
    # Eight bits: near, and not the same.
    np.testing.assert_allclose(half[2], auto[2], atol=0.1)
    assert np.abs(half[2] - auto[2]).max() > 1e-4


@pytest.mark.parametrize("task", [RAGGED, BOTH_WAYS], ids=["ragged", "both-ways"])
def test_torch_packed_is_torch_padded_where_there_is_data(task):
    """Of the last direction that reads from behind, padding is the first it sees."""
    torch = pytest.importorskip("torch")
    found = []
    for make in (contenders.torch_padded, contenders.torch_packed):
        torch.manual_seed(0)
        outputs, gradients = make(task)()
        found.append((outputs.detach().numpy(), gradients[-1].numpy()))
    (padded, d_padded), (packed, d_packed) = found
    valid = np.arange(task.time) < task.arrays()[1][:, None]
    half = task.hidden
    np.testing.assert_allclose(packed[valid, :half], padded[valid, :half], atol=1e-6)
    assert (packed[~valid] == 0).all()
    assert (padded[~valid] != 0).any()
    assert (d_packed[valid] != 0).any()
    if not task.bidirectional:
        np.testing.assert_allclose(d_packed, d_padded, atol=1e-5)


@pytest.mark.parametrize("make", [contenders.torch_padded, contenders.torch_packed])
def test_torch_evaluates_without_a_graph(make):
    pytest.importorskip("torch")
    outputs = make(Task("lstm", 4, 6, 3, 4, training=False))()
    assert outputs.shape == (4, 6, 4)
    assert not outputs.requires_grad


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("torch", contenders.torch_padded),
        ("torch", contenders.torch_packed),
        ("keras", contenders.keras),
        ("haiku", contenders.haiku),
    ],
)
def test_who_is_not_installed_says_so(module, make, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    with pytest.raises(UnavailableError, match=f"^{module} is not installed$"):
        make(TASK)
    assert contenders.torch_threads() == 0 or module != "torch"


def test_a_library_that_lacks_a_library_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "half_there.py").write_text("import turtles_all_the_way")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="turtles_all_the_way"):
        contenders.load("half_there")


def test_keras_on_another_backend_is_no_contender(monkeypatch):
    other = types.SimpleNamespace(
        backend=types.SimpleNamespace(backend=lambda: "torch")
    )
    monkeypatch.setitem(sys.modules, "keras", other)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(UnavailableError, match="another backend than jax"):
        contenders.keras(TASK)


def test_temporary_bytes_are_those_of_xla():
    def twice(x):
        # The barrier keeps one array of 4,000 bytes between the two products.
        return jax.lax.optimization_barrier(x @ x) @ x

    x = jnp.ones((1000, 1000), jnp.float32)
    assert Compiled(jax.jit(twice), (x,)).temporary_bytes() == pytest.approx(
        4e6, rel=0.01
    )
