"""The same layer in several libraries: with the same weights they give what ours gives,
outputs and gradients, where there is data."""

import functools
import sys
import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import frameworks
from experiments.bench.frameworks import Compiled, Task, UnavailableError
from experiments.harness.cells import LAYERS
from jaxrnn import torch_weights

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

FULL = Task("lstm", batch=4, time=6, inputs=3, hidden=4)
RAGGED = Task("gru", 4, 6, 3, 4, ragged=True)
BOTH_WAYS = Task("rnn", 4, 6, 3, 4, ragged=True, bidirectional=True)
CELLS = ["lstm", "gru", "rnn"]
FLAX_GATES = {"lstm": "ifgo", "gru": "rzn", "rnn": [""]}


@pytest.fixture(autouse=True)
def as_their_users_run_them():
    """With JAX's own promotion rules: others do not keep to strict ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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
    assert FULL.arrays()[1] is None


def from_flax(params, cell):
    """The weights by PyTorch's names; likewise below."""
    params, found = params["params"], {}
    directions = {"": params.get("forward_rnn", params)}
    if "backward_rnn" in params:
        directions["_reverse"] = params["backward_rnn"]
    for suffix, rnn in directions.items():
        for side in "ih":
            gates = [rnn["cell"][side + gate] for gate in FLAX_GATES[cell]]
            bias = [gate.get("bias", np.zeros(4, np.float32)) for gate in gates]
            kernel = np.concatenate([gate["kernel"] for gate in gates], axis=-1)
            found[f"weight_{side}h_l0{suffix}"] = kernel.T
            found[f"bias_{side}h_l0{suffix}"] = np.concatenate(bias)
    return found


def from_keras(params, cell):
    found = {}
    for suffix, own in {"": params[:3], "_reverse": params[3:]}.items():
        if not own:
            continue
        w_x, w_h, b = map(np.asarray, own)
        b_x, b_h = b if b.ndim == 2 else (b, np.zeros_like(b))
        if cell == "gru":  # z r n
            order = np.r_[4:8, 0:4, 8:12]
            w_x, w_h, b_x, b_h = (a[..., order] for a in (w_x, w_h, b_x, b_h))
        found |= {f"weight_ih_l0{suffix}": w_x.T, f"weight_hh_l0{suffix}": w_h.T}
        found |= {f"bias_ih_l0{suffix}": b_x, f"bias_hh_l0{suffix}": b_h}
    return found


def from_haiku(params, cell):
    assert cell == "lstm"
    linear = params["lstm/linear"]
    order = np.r_[0:4, 8:12, 4:8, 12:16]  # i g f o
    w, b = (np.asarray(linear[name])[..., order] for name in "wb")
    return {
        "weight_ih_l0": w[:3].T,
        "weight_hh_l0": w[3:].T,
        "bias_ih_l0": b,
        "bias_hh_l0": np.repeat([0.0, 1.0, 0.0, 0.0], 4),  # Of the gate f.
    }


OTHERS = {
    "flax": (frameworks.flax, from_flax),
    "keras": (frameworks.keras, from_keras),
    "haiku": (frameworks.haiku, from_haiku),
}


@functools.cache  # Every library meets the same compiled function.
def ours(task):
    return frameworks.ours(task)


def agrees_with_ours(task, weights, outputs, d_weights, d_x):
    """Whether ours finds the same with these weights; weights by PyTorch's names."""
    layer = LAYERS[task.cell](task.hidden, bidirectional=task.bidirectional)
    function, (_, *batch) = ours(task)
    variables = torch_weights.from_torch(weights, layer)
    expected, d_variables, d_expected = function(variables, *batch)
    lengths = task.arrays()[1]
    valid = np.arange(task.time) < (task.time if lengths is None else lengths[:, None])
    valid = np.broadcast_to(valid, (task.batch, task.time))
    # Float32: twelve products on top of each other, of numbers around one.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(np.asarray(outputs)[valid], np.asarray(expected)[valid])
    close(np.asarray(d_x)[valid], np.asarray(d_expected)[valid])
    gradients = torch_weights.from_torch(d_weights, layer)["params"]
    for place, cell in d_variables["params"].items():
        for name in ("w_x", "w_h"):  # A bias is sometimes two, each with its gradient.
            close(gradients[place][name], cell[name])


def build(make, task):
    """A contender, or the test is skipped."""
    try:
        return make(task)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.filterwarnings("default")  # Theirs are not ours to mend.
@pytest.mark.parametrize(
    ("name", "task"),
    [
        *[("flax", replace(BOTH_WAYS, cell=cell)) for cell in CELLS],
        *[("keras", replace(BOTH_WAYS, cell=cell)) for cell in CELLS],
        ("haiku", FULL),
    ],
    ids=lambda value: getattr(value, "cell", value),
)
def test_the_same_weights_give_the_same_outputs_and_gradients(name, task, rng):
    make, to_torch = OTHERS[name]
    function, (params, *batch) = build(make, task)
    # Not as they begin: most biases are zero then.
    params = jax.tree.map(lambda p: p + rng.normal(0, 0.3, p.shape).astype("f"), params)
    outputs, d_params, d_x = function(params, *batch)
    weights, d_weights = (to_torch(tree, task.cell) for tree in (params, d_params))
    agrees_with_ours(task, weights, outputs, d_weights, d_x)


@pytest.mark.parametrize(
    ("make", "task"),
    [
        *[(frameworks.torch_packed, replace(BOTH_WAYS, cell=cell)) for cell in CELLS],
        (frameworks.torch_padded, FULL),
    ],
    ids=lambda value: value.cell if isinstance(value, Task) else value.__name__,
)
def test_torch_gives_the_same_outputs_and_gradients(make, task):
    """Padded it does so where all rows are full."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    outputs, (*gradients, d_x) = make(task)()
    torch.manual_seed(0)
    layers = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
    layer = layers[task.cell](3, 4, bidirectional=task.bidirectional)
    weights = layer.state_dict()
    d_weights = dict(zip(weights, gradients, strict=True))
    agrees_with_ours(task, weights, outputs.detach(), d_weights, d_x)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "make", [frameworks.ours, *(make for make, _ in OTHERS.values())]
)
def test_evaluating_gives_the_outputs_of_training(make):
    task = replace(FULL, cell="rnn")
    function, (params, x, lengths, cotangent) = build(make, task)
    outputs, _, _ = function(params, x, lengths, cotangent)
    evaluate = make(replace(task, training=False)).function
    np.testing.assert_allclose(evaluate(params, x, lengths), outputs, atol=1e-6)


@pytest.mark.parametrize("task", [RAGGED, replace(FULL, bidirectional=True)])
def test_haiku_reads_full_rows_in_one_direction(task):
    with pytest.raises(UnavailableError, match="no ragged batches and no bidirection"):
        frameworks.haiku(task)


def test_two_devices_sum_the_gradients_of_the_parameters():
    one, two = (frameworks.ours(RAGGED, devices=count)() for count in (1, 2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert len(two[0].sharding.device_set) == 2


def test_the_backends_agree_and_bfloat16_is_coarse():
    run = functools.partial(frameworks.ours, RAGGED)
    auto, scan, half = run()(), run(backend="scan")(), run(dtype=jnp.bfloat16)()
    np.testing.assert_allclose(auto[2], scan[2], atol=1e-6)
    assert half[0].dtype == jnp.bfloat16
    # Eight bits: near, and not the same. A few roundings of 2**-9 on top of each other.
    greatest = np.abs(auto[2]).max()
    np.testing.assert_allclose(half[2], auto[2], atol=2**-6 * greatest)
    assert np.abs(half[2] - auto[2]).max() > 1e-4


@pytest.mark.parametrize("make", [frameworks.torch_padded, frameworks.torch_packed])
def test_torch_evaluates_without_a_graph(make):
    pytest.importorskip("torch")
    outputs = make(Task("lstm", 4, 6, 3, 4, training=False))()
    assert outputs.shape == (4, 6, 4)
    assert not outputs.requires_grad


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("torch", frameworks.torch_padded),
        ("torch", frameworks.torch_packed),
        ("keras", frameworks.keras),
        ("haiku", frameworks.haiku),
    ],
)
def test_who_is_not_installed_says_so(module, make, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    with pytest.raises(UnavailableError, match=f"^{module} is not installed$"):
        make(FULL)
    assert frameworks.torch_threads() == 0 or module != "torch"


def test_a_library_that_lacks_a_library_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "half_there.py").write_text("import turtles_all_the_way")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="turtles_all_the_way"):
        frameworks.load("half_there")


def test_keras_on_another_backend_is_no_contender(monkeypatch):
    other = types.SimpleNamespace(
        backend=types.SimpleNamespace(backend=lambda: "torch")
    )
    monkeypatch.setitem(sys.modules, "keras", other)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(UnavailableError, match="another backend than jax"):
        frameworks.keras(FULL)


def test_temporary_bytes_are_those_of_xla():
    def twice(x):
        # The barrier keeps one array of 4,000 bytes between the two products.
        return jax.lax.optimization_barrier(x @ x) @ x

    x = jnp.ones((1000, 1000), jnp.float32)
    assert Compiled(jax.jit(twice), (x,)).temporary_bytes() == pytest.approx(
        4e6, rel=0.01
    )
