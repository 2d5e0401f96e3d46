"""Each row of docs/migrating.md's table that begins with PyTorch runs on both sides,
with the same weights, and gives the same numbers."""

import numpy as np
import pytest

import jaxrnn
from jaxrnn import torch_weights
from tests.coming_from import D, H, X, assert_same, compare, evaluate, names, rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supp:UserWarning"),
]


def from_torch(theirs, ours):
    return torch_weights.from_torch(theirs.state_dict(), ours)


def torch_layer(theirs, ours):
    outputs, state = ours.apply(from_torch(theirs, ours), X)
    expected, final = theirs.eval()(names("PyTorch")[0]["x"])
    assert_same(expected.detach(), outputs)
    if isinstance(final, tuple):
        h, c = final
        assert_same(h.detach(), np.stack([s.h for s in state]))
        assert_same(c.detach(), np.stack([s.c for s in state]))
    else:
        assert_same(final.detach(), np.stack(state))


def torch_cell(theirs, ours):
    x = names("PyTorch")[0]["x"][:, 0]
    layer = jaxrnn.LSTM(H)
    weights = {f"{name}_l0": w for name, w in theirs.state_dict().items()}
    params = torch_weights.from_torch(weights, layer)["params"]["l0"]
    state, output = ours.apply({"params": params}, ours.initial_state((3,)), X[:, 0])
    h, c = theirs(x)
    assert_same(h.detach(), output)
    assert_same(c.detach(), state.c)


def torch_pair(**options):
    theirs = names("PyTorch")[0]["nn"].LSTM(D, H, batch_first=True, **options)
    ours = jaxrnn.LSTM(H, **options)
    return theirs, ours, from_torch(theirs, ours)


def torch_call(there, here):
    theirs, ours, variables = torch_pair()
    outputs, (h_n, c_n) = evaluate("PyTorch", there, "there", layer=theirs)
    mine, state = evaluate("PyTorch", here, "here", layer=ours, variables=variables)
    assert_same(outputs.detach(), mine)
    assert_same(h_n[-1].detach(), state[-1].h)
    assert_same(c_n[-1].detach(), state[-1].c)


def torch_initial_state(there, here):
    torch = pytest.importorskip("torch")
    theirs, ours, variables = torch_pair()
    h_0, c_0 = torch.randn(2, 1, 3, H, generator=torch.Generator().manual_seed(0))
    given = {"h_0": h_0, "c_0": c_0}
    expected, _ = evaluate("PyTorch", there, "there", layer=theirs, **given)
    given = {name: value.numpy() for name, value in given.items()}
    given |= {"layer": ours, "variables": variables}
    outputs, _ = evaluate("PyTorch", here, "here", **given)
    assert_same(expected.detach(), outputs)


def torch_packed(there, here):
    theirs, ours, variables = torch_pair(bidirectional=True)
    packed, (h_n, _) = evaluate("PyTorch", there, "there", layer=theirs)
    rnn = names("PyTorch")[0]["nn"].utils.rnn
    outputs, _ = rnn.pad_packed_sequence(packed, batch_first=True)
    mine, state = evaluate("PyTorch", here, "here", layer=ours, variables=variables)
    assert_same(outputs.detach(), mine)
    assert_same(h_n.detach(), np.stack([s.h for s in state]))


def torch_state(there, here):
    theirs, ours, variables = torch_pair(num_layers=2)
    _, (h_n, c_n) = theirs(names("PyTorch")[0]["x"])
    _, state = ours.apply(variables, X)
    expected = evaluate("PyTorch", there, "there", h_n=h_n, c_n=c_n)
    for value, mine in zip(
        expected, evaluate("PyTorch", here, "here", state=state), strict=True
    ):
        assert_same(value.detach(), mine)


def torch_import(there, here):
    theirs, ours, _ = torch_pair()
    weights = names("PyTorch")[0]["nn"].LSTM(D, H).state_dict()
    evaluate("PyTorch", there, "there", layer=theirs, weights=weights)
    variables = evaluate("PyTorch", here, "here", layer=ours, weights=weights)
    outputs, _ = ours.apply(variables, X)
    assert_same(theirs(names("PyTorch")[0]["x"])[0].detach(), outputs)


def torch_export(there, here):
    theirs, ours, variables = torch_pair()
    expected = evaluate("PyTorch", there, "there", layer=theirs)
    found = evaluate("PyTorch", here, "here", layer=ours, variables=variables)
    assert found.keys() == expected.keys()
    for name in ("weight_ih_l0", "weight_hh_l0"):
        np.testing.assert_array_equal(found[name], expected[name])


# What stands here, and how the layers of a row compare; or the calls themselves.
LAYERS = {
    "LSTM(64, num_layers=2, bidirectional=True)": torch_layer,
    "LSTM(64, num_layers=2, dropout=0.5)": torch_layer,
    "LSTM(64, proj_size=16)": torch_layer,
    'RNN(64, activation="relu")': torch_layer,
    "GRU(64, use_bias=False)": torch_layer,
    "LSTMCell(64)": torch_cell,
}
CALLS = {
    ("PyTorch", "layer.apply(variables, x)"): torch_call,
    (
        "PyTorch",
        "layer.apply(variables, x, state=(LSTMState(h_0[0], c_0[0]),))",
    ): torch_initial_state,
    ("PyTorch", "layer.apply(variables, x, lengths=lengths)"): torch_packed,
    ("PyTorch", "(state[-1].h, state[-1].c)"): torch_state,
    ("PyTorch", "torch_weights.from_torch(weights, layer)"): torch_import,
    ("PyTorch", "torch_weights.to_torch(variables, layer)"): torch_export,
}


def test_tensors_and_modules_of_torch_are_not_taken_for_arrays():
    torch = pytest.importorskip("torch")
    theirs, layer, variables = torch_pair()
    message = r"lengths must be an array .*, got a Tensor: give numpy\.asarray\(lengths"
    with pytest.raises(TypeError, match=message):
        layer.apply(variables, np.ones((3, 5, D)), torch.tensor([5, 3, 0]))
    with pytest.raises(TypeError, match=r"got LSTM.*: give its state_dict\(\)"):
        torch_weights.from_torch(theirs, layer)
    with pytest.raises(TypeError, match=r"'lstm\.pt': read the file by load_safetens"):
        torch_weights.from_torch("lstm.pt", layer)


def test_every_row_has_its_comparison():
    assert len(rows("PyTorch")) == len(LAYERS) + len(CALLS)


@pytest.mark.parametrize(("framework", "there", "here"), rows("PyTorch"))
def test_both_sides_of_a_row_give_the_same_numbers(framework, there, here):
    compare(framework, there, here, LAYERS, CALLS)
