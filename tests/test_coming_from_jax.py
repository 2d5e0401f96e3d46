"""Each row of docs/migrating.md's table that begins with Keras, Flax or Haiku runs on
both sides, with the same weights, and gives the same numbers."""

import jax
import numpy as np
import pytest
from flax import linen as flax_nn

import jaxrnn
from jaxrnn import segments
from tests.coming_from import (
    IDS,
    RNG,
    VALID,
    D,
    H,
    X,
    assert_same,
    compare,
    evaluate,
    names,
    rows,
)

# Keras reads its own variables in a way that numpy will stop to allow.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Keras: gates i f g o as here, of its GRU z r n.


def keras_cell(weights, gates="ifgo", names=("w_x", "w_h", "b")):
    arrays = [np.array(w) for w in weights]
    if gates == "zrn":
        arrays = [w[..., reorder(w.shape[-1], [1, 0, 2])] for w in arrays]
    return dict(zip(names, arrays, strict=True))


def reorder(width, blocks):
    return np.arange(width).reshape(len(blocks), -1)[blocks].ravel()


def randomized(theirs):
    """Built, with biases other than the zeros that Keras begins with."""
    theirs.build((None, 5, D))
    theirs.set_weights([RNG.normal(size=w.shape) / 8 for w in theirs.get_weights()])
    return theirs


def keras_layer(theirs, ours):
    weights = randomized(theirs).get_weights()
    outputs, state = ours.apply({"params": {"l0": keras_cell(weights)}}, X)
    expected, h, c = theirs(X)
    assert_same(expected, outputs)
    assert_same(h, state[-1].h)
    assert_same(c, state[-1].c)


def keras_last(there, here):
    theirs = randomized(names("Keras")[0]["LSTM"](H))
    call = there.replace("LSTM(64)", "layer")
    expected = evaluate("Keras", call, "there", layer=theirs)
    variables = {"params": {"l0": keras_cell(theirs.get_weights())}}
    given = {"layer": jaxrnn.LSTM(H), "variables": variables}
    assert_same(expected, evaluate("Keras", here, "here", **given))


def keras_gru(theirs, ours):
    w_x, w_h, b = randomized(theirs).get_weights()
    cell = keras_cell([w_x, w_h, b], "zrn")
    of_inputs, of_state = cell["b"]
    # The reset gate multiplies the bias of the state's part of the gate n alone.
    cell["b"] = of_inputs + np.where(np.arange(3 * H) < 2 * H, of_state, 0)
    cell["b_n"] = of_state[2 * H :]
    outputs, _ = ours.apply({"params": {"l0": cell}}, X)
    assert_same(theirs(X), outputs)


def keras_simple_rnn(theirs, ours):
    cell = keras_cell(randomized(theirs).get_weights())
    outputs, _ = ours.apply({"params": {"l0": cell}}, X)
    assert_same(theirs(X), outputs)


def keras_initial_state(there, here):
    theirs = randomized(names("Keras")[0]["LSTM"](H))
    given = {name: RNG.normal(size=(3, H)).astype(np.float32) for name in "hc"}
    call = there.replace("LSTM(64)", "layer")
    expected = evaluate("Keras", call, "there", layer=theirs, **given)
    given |= {"variables": {"params": {"l0": keras_cell(theirs.get_weights())}}}
    assert_same(
        expected, evaluate("Keras", here, "here", layer=jaxrnn.LSTM(H), **given)
    )


def keras_mask(there, here):
    theirs = names("Keras")[0]["LSTM"](H, return_sequences=True, zero_output_for_mask=1)
    weights = randomized(theirs).get_weights()
    expected = evaluate("Keras", there, "there", layer=theirs)
    variables = {"params": {"l0": keras_cell(weights)}}
    layer = jaxrnn.LSTM(H)
    outputs, _ = evaluate("Keras", here, "here", layer=layer, variables=variables)
    assert_same(expected, outputs)


def keras_bidirectional(theirs, ours):
    weights = randomized(theirs).get_weights()
    params = {
        "forward": {"l0": keras_cell(weights[:3])},
        "backward": {"l0": keras_cell(weights[3:])},
    }
    outputs, _ = ours.apply({"params": params}, X)
    assert_same(theirs(X), outputs)


def keras_reset_before(theirs, ours):
    weights = randomized(theirs).get_weights()
    params = {"cell": keras_cell(weights, "zrn")}
    # Keras weighs the old state with z where PyTorch does too.
    outputs, _ = ours.apply({"params": params}, X)
    assert_same(theirs(X), outputs)


# Flax: the cells are the same modules, so are their parameters.


def flax_lengths(there, here):
    theirs = flax_nn.RNN(flax_nn.GRUCell(H))
    params = theirs.init(jax.random.key(0), X)["params"]
    call = there.replace("nn.RNN(cell)", "layer")
    expected = theirs.bind({"params": params})
    expected = evaluate("Flax", call, "there", layer=expected)
    outputs, _ = evaluate("Flax", here, "here", variables={"params": params})
    assert_same(np.where(VALID[..., None], expected, 0), outputs)


def flax_call(there, here):
    """In the other direction, or from a given state."""
    params = flax_nn.RNN(flax_nn.GRUCell(H)).init(jax.random.key(0), X)["params"]
    carry = RNG.normal(size=(3, H)).astype(np.float32)
    layer, call = there.rsplit("(x", 1)
    layer = evaluate("Flax", layer, "there").bind({"params": params})
    expected = evaluate("Flax", f"layer(x{call}", "there", layer=layer, carry=carry)
    ours = jaxrnn.Recurrent(flax_nn.GRUCell(H))
    given = {"layer": ours, "variables": {"params": params}, "carry": carry}
    outputs, _ = evaluate("Flax", here, "here", **given)
    assert_same(expected, outputs)


def flax_bidirectional(theirs, ours):
    params = theirs.init(jax.random.key(0), X)["params"]
    cells = [params[f"{d}_rnn"]["cell"] for d in ("forward", "backward")]
    both = dict(zip(("forward", "backward"), ({"cell": c} for c in cells), strict=True))
    outputs, _ = ours.apply({"params": both}, X)
    assert_same(theirs.apply({"params": params}, X), outputs)


# Haiku: one matrix for inputs and state, gates i g f o, and 1 added to f.


def haiku_cell(module):
    order = reorder(4 * H, [0, 2, 1, 3])
    w = np.asarray(module["w"])[:, order]
    b = np.asarray(module["b"])[order]
    b = b + np.repeat([0.0, 1.0, 0.0, 0.0], H)
    return {"w_x": w[:-H], "w_h": w[-H:], "b": b.astype(np.float32)}


def haiku_outputs(run):
    hk = names("Haiku")[0]["hk"]
    network = hk.without_apply_rng(hk.transform(run))
    params = network.init(jax.random.key(0))
    outputs, _ = network.apply(params)
    return outputs, [haiku_cell(module) for module in params.values()]


def haiku_unroll(there, here):
    hk = names("Haiku")[0]["hk"]

    def run():
        core = hk.LSTM(H)
        state = core.initial_state(3)
        return evaluate("Haiku", there, "there", core=core, state=state)

    expected, [cell] = haiku_outputs(run)
    variables, layer = {"params": {"l0": cell}}, jaxrnn.LSTM(H)
    outputs, _ = evaluate("Haiku", here, "here", layer=layer, variables=variables)
    assert_same(expected, outputs)


def haiku_stack(there, here):
    def run():
        core = evaluate("Haiku", there, "there")
        hk = names("Haiku")[0]["hk"]
        return hk.dynamic_unroll(core, X, core.initial_state(3), time_major=False)

    expected, cells = haiku_outputs(run)
    params = {f"layers_{k}": {"l0": cell} for k, cell in enumerate(cells)}
    outputs, _ = evaluate("Haiku", here, "here").apply({"params": params}, X)
    assert_same(expected, outputs)


def haiku_resets(there, here):
    hk = names("Haiku")[0]["hk"]
    resets = np.asarray(segments.starts(IDS))

    def run():
        core = evaluate("Haiku", there, "there", core=hk.LSTM(H))
        state = core.initial_state(3)
        return hk.dynamic_unroll(core, (X, resets), state, time_major=False)

    expected, [cell] = haiku_outputs(run)
    variables, layer = {"params": {"l0": cell}}, jaxrnn.LSTM(H)
    outputs, _ = evaluate("Haiku", here, "here", layer=layer, variables=variables)
    assert_same(expected, outputs)


# What stands here, and how the layers of a row compare; or the calls themselves.
LAYERS = {
    "LSTM(64)": keras_layer,
    "GRU(64)": keras_gru,
    "RNN(64)": keras_simple_rnn,
    'Bidirectional(LSTM(64), LSTM(64), merge="sum")': keras_bidirectional,
    "Recurrent(ResetBeforeGRUCell(64))": keras_reset_before,
    "Bidirectional(Recurrent(a), Recurrent(b))": flax_bidirectional,
}
CALLS = {
    ("Keras", "layer.apply(variables, x)[1][-1].h"): keras_last,
    (
        "Keras",
        "layer.apply(variables, x, segment_ids=segments.from_mask(mask))",
    ): keras_mask,
    (
        "Keras",
        "layer.apply(variables, x, state=(LSTMState(h, c),))[1][-1].h",
    ): keras_initial_state,
    (
        "Flax",
        "Recurrent(cell).apply(variables, x, lengths=lengths)",
    ): flax_lengths,
    ("Flax", "layer.apply(variables, x, reverse=True)"): flax_call,
    ("Flax", "layer.apply(variables, x, state=(carry,))"): flax_call,
    ("Haiku", "layer.apply(variables, x)"): haiku_unroll,
    ("Haiku", "layer.apply(variables, x, segment_ids=ids)"): haiku_resets,
    ("Haiku", "Stack([LSTM(64), LSTM(64)])"): haiku_stack,
}


def test_every_row_has_its_comparison():
    assert len(rows("Keras", "Flax", "Haiku")) == len(LAYERS) + len(CALLS)


@pytest.mark.parametrize(("framework", "there", "here"), rows("Keras", "Flax", "Haiku"))
def test_both_sides_of_a_row_give_the_same_numbers(framework, there, here):
    compare(framework, there, here, LAYERS, CALLS)
