"""The same numbers as PyTorch: outputs, final states and all gradients; and the weights
under its names, there and back."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn
from jaxrnn import torch_weights
from tests import torch_parity
from tests.torch_parity import CASES, GOLDEN_CASES, LENGTHS, PRESENT, D, H

pytestmark = pytest.mark.optimized

RNG = np.random.default_rng(0)
HAS_TORCH = importlib.util.find_spec("torch") is not None

# Without torch the same comparison runs on stored answers: nothing is skipped.
COMPARISONS = [("golden", case) for case in GOLDEN_CASES]
if HAS_TORCH:
    COMPARISONS += [("torch", case) for case in CASES]


def ours(case, dtype, weights):
    """Our answers, in the shapes and under the names of `torch_parity.live`."""
    layer = case.layer(dtype)
    given = torch_parity.inputs(case, dtype)
    num_arrays = 2 if case.has_cells else 1

    def pack_state(arrays):
        """PyTorch's stacked arrays as our tuple of cell states."""
        cells = zip(*arrays, strict=True)
        return tuple(
            jaxrnn.LSTMState(*cell) if case.has_cells else cell[0] for cell in cells
        )

    def loss(variables, x, states):
        outputs, final = layer.apply(variables, x, LENGTHS, state=pack_state(states))
        columns = zip(*final, strict=True) if case.has_cells else [final]
        final = [jnp.stack(column) for column in columns]
        total = jnp.sum(outputs * given["cotangent"])
        for k, array in enumerate(final):
            total += jnp.sum(array * given[f"state_cotangent_{k}"])
        return total, (outputs, final)

    variables = torch_weights.from_torch(weights, layer)
    x = given["x"]
    states = [given[f"state_{k}"] for k in range(num_arrays)]
    gradients, (outputs, final) = jax.jit(
        jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    )(variables, x, states)
    by_name = torch_weights.to_torch(gradients[0], layer)
    return {
        "outputs": outputs,
        "x_gradient": gradients[1],
        **{f"final_{k}": a for k, a in enumerate(final)},
        **{f"state_gradient_{k}": g for k, g in enumerate(gradients[2])},
        **{f"gradient/{name}": g for name, g in by_name.items()},
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)]
)
@pytest.mark.parametrize(("source", "case"), COMPARISONS, ids=str)
def test_same_numbers_as_torch(source, case, dtype, tolerance, x64):
    if source == "torch":
        theirs = torch_parity.live(case, np.dtype(dtype))
    else:
        theirs = torch_parity.golden(case)
    weights = {
        name.removeprefix("weight/"): array
        for name, array in theirs.items()
        if name.startswith("weight/")
    }
    results = ours(case, np.dtype(dtype), weights)
    given = torch_parity.inputs(case, np.dtype(dtype))
    compared = set()
    for name, expected in theirs.items():
        if name.startswith("weight/") or (
            # Our one bias is their sum: its gradient is that of bias_ih. In a GRU they
            # differ in the part that the reset gate multiplies, compared below.
            name.startswith("gradient/bias_hh")
        ):
            continue
        actual = np.asarray(results[name])
        if name.startswith(("final", "state_gradient")):
            actual = actual[:, PRESENT]
        elif name in ("outputs", "x_gradient"):
            actual = actual[PRESENT]
        np.testing.assert_allclose(
            actual, expected, rtol=tolerance, atol=tolerance, err_msg=name
        )
        compared.add(name)
    if case.kind == "gru":
        for name in [n for n in theirs if n.startswith("gradient/bias_hh")]:
            np.testing.assert_allclose(
                results[name][2 * H :],
                theirs[name][2 * H :],
                rtol=tolerance,
                atol=tolerance,
                err_msg=name,
            )
    parameters = len(weights) - sum("bias_hh" in name for name in weights)
    assert len(compared) == 2 + 2 * (1 + case.has_cells) + parameters
    # The row of length 0: outputs zero, state untouched, gradients straight through.
    empty = int(np.flatnonzero(~PRESENT)[0])
    assert not np.any(results["outputs"][empty])
    assert not np.any(results["x_gradient"][empty])
    for k in range(1 + case.has_cells):
        np.testing.assert_array_equal(
            results[f"final_{k}"][:, empty], given[f"state_{k}"][:, empty]
        )
        np.testing.assert_array_equal(
            results[f"state_gradient_{k}"][:, empty],
            given[f"state_cotangent_{k}"][:, empty],
        )


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=str)
def test_weights_survive_the_way_to_torch_and_back(case, tmp_path):
    layer = case.layer(np.float32)
    variables = layer.init(jax.random.key(0), jnp.zeros((2, 3, D)))
    exported = torch_weights.to_torch(variables, layer, prefix="rnn.")
    names = {
        name.removeprefix("weight/")
        for name in torch_parity.golden(case)
        if name.startswith("weight/")
    }
    assert {name.removeprefix("rnn.") for name in exported} == names
    path = tmp_path / "weights.safetensors"
    torch_weights.save_safetensors(exported, path)
    loaded = torch_weights.load_safetensors(path)
    back = torch_weights.from_torch(loaded, layer, prefix="rnn.")
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(variables), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def state_dict(layer):
    variables = layer.init(jax.random.key(0), jnp.zeros((1, D)))
    return torch_weights.to_torch(variables, layer)


def test_all_faults_are_listed_at_once():
    layer = jaxrnn.LSTM(H, num_layers=2)
    weights = state_dict(layer)
    del weights["weight_hh_l0"], weights["bias_ih_l1"]
    weights["weight_hr_l0"] = np.zeros((2, H))
    weights["weight_ih_l1"] = np.zeros((16, 5))
    with pytest.raises(ValueError, match="does not fit the layer") as raised:
        torch_weights.from_torch(weights, layer)
    for fault in [
        "missing weight_hh_l0 (16, 4)",
        "missing bias_ih_l1 (16,)",
        "unexpected weight_hr_l0 (2, 4)",
        "weight_ih_l1 has shape (16, 5), expected (16, 4)",
    ]:
        assert fault in str(raised.value)


def test_weights_of_another_layer_do_not_export():
    variables = jaxrnn.GRU(H).init(jax.random.key(0), jnp.zeros((1, D)))
    with pytest.raises(ValueError, match="unexpected l0/b_n"):
        torch_weights.to_torch(variables, jaxrnn.LSTM(H))


def test_other_parts_of_a_model_are_left_alone():
    layer = jaxrnn.GRU(H)
    weights = state_dict(layer)
    model = {f"rnn.{k}": v for k, v in weights.items()} | {"head.weight": np.ones(3)}
    back = torch_weights.from_torch(model, layer, prefix="rnn.")
    expected = torch_weights.from_torch(weights, layer)
    jax.tree.map(np.testing.assert_array_equal, back, expected)
    with pytest.raises(ValueError, match=r"begins with 'lstm\.', only \['rnn\.weight"):
        torch_weights.from_torch(model, layer, prefix="lstm.")


def test_variables_without_parameters_name_what_is_missing():
    layer = jaxrnn.RNN(H)
    params = layer.init(jax.random.key(0), jnp.zeros((1, D)))["params"]
    with pytest.raises(ValueError, match=r"must have 'params', got only \['l0'\]"):
        torch_weights.to_torch(params, layer)
    with pytest.raises(ValueError, match="missing l0/w_h"):
        torch_weights.to_torch({"params": {}}, layer)


def test_a_layer_that_torch_has_not_takes_no_weights():
    layer = jaxrnn.Layer(jaxrnn.ResetBeforeGRUCell, features=H, use_bias=False)
    like = jaxrnn.GRU(H, use_bias=False)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, D)))
    # Every name and shape is that of the other GRU, whose numbers are others.
    weights = torch_weights.to_torch(variables, like)
    for call in (
        lambda: torch_weights.to_torch(variables, layer),
        lambda: torch_weights.from_torch(weights, layer),
    ):
        with pytest.raises(TypeError, match="got a layer of ResetBeforeGRUCell"):
            call()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 8 + b"{}"])
def test_a_file_that_is_none(content, tmp_path):
    path = Path(tmp_path / "broken.safetensors")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.safetensors is no readable"):
        torch_weights.load_safetensors(path)


def test_a_truncated_file(tmp_path):
    path = Path(tmp_path / "cut.safetensors")
    torch_weights.save_safetensors(state_dict(jaxrnn.RNN(H)), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.safetensors is no readable"):
        torch_weights.load_safetensors(path)


def test_bfloat16_goes_out_as_float32_and_comes_back():
    layer = jaxrnn.GRU(4, param_dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), jnp.ones((2, 3), jnp.bfloat16))
    weights = torch_weights.to_torch(variables, layer)
    assert {array.dtype.name for array in weights.values()} == {"float32"}
    jax.tree.map(
        np.testing.assert_array_equal,
        torch_weights.from_torch(weights, layer)["params"],
        variables["params"],
    )


def test_biases_are_rounded_once_they_are_added():
    weights = {
        "weight_ih_l0": np.ones((2, 1)),
        "weight_hh_l0": np.ones((2, 2)),
        "bias_ih_l0": np.array([100.3, 1.0]),
        "bias_hh_l0": np.array([-100.0, 2.0]),
    }
    layer = jaxrnn.RNN(2, param_dtype=jnp.bfloat16)
    found = torch_weights.from_torch(weights, layer)["params"]["l0"]["b"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, np.array([0.3, 3.0], jnp.bfloat16))


CELLS = {
    "RNNCell": (jaxrnn.RNNCell(H), jaxrnn.RNN(H)),
    "LSTMCell": (jaxrnn.LSTMCell(H), jaxrnn.LSTM(H)),
    "GRUCell": (jaxrnn.GRUCell(H), jaxrnn.GRU(H)),
    "LSTMCell without biases": (
        jaxrnn.LSTMCell(H, use_bias=False),
        jaxrnn.LSTM(H, use_bias=False),
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_the_weights_of_a_layer_of_one(name):
    cell, layer = CELLS[name]
    weights = {
        name: RNG.normal(size=array.shape) for name, array in state_dict(layer).items()
    }
    of_cell = {name.removesuffix("_l0"): array for name, array in weights.items()}
    found = torch_weights.from_torch(of_cell, cell)
    expected = torch_weights.from_torch(weights, layer)["params"]["l0"]
    jax.tree.map(np.testing.assert_array_equal, found["params"], expected)
    back = torch_weights.to_torch(found, cell, prefix="cell.")
    assert list(back) == [f"cell.{name}" for name in of_cell]
    again = torch_weights.from_torch(back, cell, prefix="cell.")
    jax.tree.map(np.testing.assert_array_equal, again, found)


@pytest.mark.parametrize(
    "name", ["RNNCell", "LSTMCell", "GRUCell"] if HAS_TORCH else []
)
def test_a_cell_of_torch_computes_the_same_here(name):
    import torch

    theirs = getattr(torch.nn, name)(D, H)
    ours, _ = CELLS[name]
    x = RNG.normal(size=(2, D)).astype(np.float32)
    arrays = RNG.normal(size=(2, 2, H)).astype(np.float32)
    if name == "LSTMCell":
        state, their_state = jaxrnn.LSTMState(*arrays), tuple(map(torch.tensor, arrays))
    else:
        state, their_state = arrays[0], torch.tensor(arrays[0])
    expected = theirs(torch.from_numpy(x), their_state)
    variables = torch_weights.from_torch(theirs.state_dict(), ours)
    after, _ = ours.apply(variables, state, x)
    for found, wanted in zip(
        jax.tree.leaves(after),
        expected if name == "LSTMCell" else [expected],
        strict=True,
    ):
        # One float32 step.
        np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-6)


def test_linear_and_embedding():
    weight, bias = RNG.normal(size=(5, 3)), RNG.normal(size=5)
    x = RNG.normal(size=(2, 3))
    dense = nn.Dense(5)
    variables = torch_weights.from_torch({"weight": weight, "bias": bias}, dense)
    found = dense.apply(variables, x.astype(np.float32))
    np.testing.assert_allclose(found, x @ weight.T + bias, rtol=1e-5, atol=1e-6)
    back = torch_weights.to_torch(variables, dense, prefix="out.")
    assert {name: array.shape for name, array in back.items()} == {
        "out.weight": (5, 3),
        "out.bias": (5,),
    }
    np.testing.assert_allclose(back["out.weight"], weight, rtol=1e-6)

    embed = nn.Embed(5, 3)
    variables = torch_weights.from_torch({"emb.weight": weight}, embed, prefix="emb.")
    found = embed.apply(variables, np.array([4, 0]))
    np.testing.assert_allclose(found, weight[[4, 0]], rtol=1e-6)
    back = torch_weights.to_torch(variables, embed)
    np.testing.assert_allclose(back["weight"], weight, rtol=1e-6)

    for module, entries, fault in [
        (dense, {"weight": weight}, r"missing bias \(5,\)"),
        (dense, {"weight": weight.T, "bias": bias}, r"\(3, 5\), expected \(5, 5\)"),
        (nn.Dense(5, use_bias=False), {"weight": weight, "bias": bias}, "unexpected b"),
        (embed, {"weight": weight[1:]}, r"\(4, 3\), expected \(5, 3\)"),
        (dense, {"fc.weight": weight, "fc.bias": bias}, r"did you mean prefix='fc\.'"),
    ]:
        with pytest.raises(ValueError, match=fault):
            torch_weights.from_torch(entries, module)


@pytest.mark.parametrize(
    ("rename", "hint"),
    [
        (lambda name: f"encoder.rnn.{name}", r"did you mean prefix='encoder\.rnn\.'\?"),
        (lambda name: name.replace("weight_hh_l0", "weight_hh_l0_raw"), "weight drop"),
        (lambda name: name.replace("weight_hh_l0", "weight_hh_l0_v"), "weight norm"),
        (
            lambda name: name.replace(
                "weight_hh_l0", "parametrizations.weight_hh_l0.original1"
            ),
            r"parametrize\.remove_parametrizations",
        ),
        (
            lambda name: name.removesuffix("_l0"),
            "of a cell: give its cell instead of the layer, or name them weight_ih_l0",
        ),
    ],
)
def test_names_of_which_it_is_clear_what_they_are(rename, hint):
    layer = jaxrnn.LSTM(H)
    weights = {rename(name): array for name, array in state_dict(layer).items()}
    with pytest.raises(ValueError, match=hint):
        torch_weights.from_torch(weights, layer)


def test_the_weights_of_a_layer_are_not_taken_by_a_cell():
    weights = state_dict(jaxrnn.GRU(H))
    with pytest.raises(ValueError, match="of a layer: give it instead of its cell"):
        torch_weights.from_torch(weights, jaxrnn.GRUCell(H))


def test_a_prefix_that_is_not_there_says_which_is():
    weights = {f"rnn.{k}": v for k, v in state_dict(jaxrnn.GRU(H)).items()}
    with pytest.raises(ValueError, match=r"did you mean prefix='rnn\.'\?"):
        torch_weights.from_torch(weights, jaxrnn.GRU(H), prefix="gru.")


def test_a_cell_with_a_projection_is_none_of_torch():
    with pytest.raises(TypeError, match="LSTMCell has no projection: load an LSTM"):
        torch_weights.from_torch({}, jaxrnn.LSTMCell(H, proj_size=2))


def test_files_keep_the_shapes_of_scalars(tmp_path):
    path = tmp_path / "scalar.safetensors"
    torch_weights.save_safetensors({"steps": np.array(7)}, path)
    assert torch_weights.load_safetensors(path)["steps"].shape == ()
    with pytest.raises(OSError, match="nowhere"):
        torch_weights.save_safetensors({"steps": np.array(7)}, tmp_path / "nowhere/x")
