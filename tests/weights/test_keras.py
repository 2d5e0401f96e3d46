"""The numbers of live Keras layers, with the weights in and out."""

import os

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import weights
from tests.weights.parity import (
    TOLERANCE,
    D,
    H,
    T,
    assert_same_numbers,
    inputs,
    layer_of,
    variables_of,
)

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras")

# Keras reads its own variables in a way that numpy will stop to allow.
pytestmark = [
    pytest.mark.optimized,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def keras_in_float64(monkeypatch):
    """Keras's own code mixes dtypes and ranks.

    Its `tanh` on JAX casts float64 to float32: it would round each step, and SimpleRNN
    could not run at all, as the state has one dtype before a step and another after it.
    """
    monkeypatch.setattr("keras.src.backend.jax.numpy.tanh", jnp.tanh)
    # The policy of layers is made from floatx once, and then stays.
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def keras_layer(kind, use_bias=True, **more):
    options = {"return_sequences": True, "return_state": True}
    options |= {"use_bias": use_bias} | more
    if kind == "lstm":
        return keras.layers.LSTM(H, **options)
    if kind in ("gru", "reset-before"):
        return keras.layers.GRU(H, reset_after=kind == "gru", **options)
    return keras.layers.SimpleRNN(H, activation=kind, **options)


def built(theirs, rng):
    theirs.build((None, T, D))
    theirs.set_weights([rng.normal(size=w.shape) / 2 for w in theirs.get_weights()])
    return theirs


def stateless(theirs, arrays, x):
    """Its outputs with these weights; JAX sorts the names of a dict."""
    trainable = [arrays[w.path] for w in theirs.weights]
    seeds = [v.value for v in theirs.non_trainable_variables]
    return theirs.stateless_call(trainable, seeds, x)[0]


def run(theirs):
    """Outputs, and the `h` of both directions."""

    def call(arrays, x):
        outputs, *states = stateless(theirs, arrays, x)
        per_cell = 2 if "lstm" in theirs.weights[0].path else 1
        return outputs, states[::per_cell]

    return call


def by_path(theirs):
    return {w.path: jnp.asarray(w.numpy()) for w in theirs.weights}


def once(arrays):
    """Where both biases of a GRU are added, each has the gradient of their sum."""
    counted = np.ones((2, 3 * H))
    counted[1, : 2 * H] = 0
    return {
        name: a * counted if a.shape == counted.shape else a
        for name, a in arrays.items()
    }


@pytest.fixture(params=["lstm", "gru", "reset-before", "tanh", "relu"])
def kind(request):
    return request.param


@pytest.mark.parametrize("use_bias", [True, False])
def test_keras_weights_give_the_same_numbers_here(kind, use_bias, rng, x64):
    theirs = built(keras_layer(kind, use_bias), rng)
    layer = layer_of(kind, use_bias=use_bias)
    variables = weights.from_keras(by_path(theirs), layer)
    assert_same_numbers(
        layer,
        variables,
        run(theirs),
        by_path(theirs),
        lambda arrays: weights.from_keras(once(arrays), layer),
        inputs(rng),
    )
    jax.tree.map(
        np.testing.assert_array_equal, weights.from_keras(theirs, layer), variables
    )


@pytest.mark.parametrize("use_bias", [True, False])
def test_our_weights_give_the_same_numbers_in_keras(kind, use_bias, rng, x64):
    theirs = built(keras_layer(kind, use_bias), rng)
    layer = layer_of(kind, use_bias=use_bias)
    variables = variables_of(layer, rng)
    [cell] = weights.to_keras(variables, layer)
    theirs.set_weights([*cell.values()])
    assert_same_numbers(
        layer,
        variables,
        run(theirs),
        by_path(theirs),
        lambda arrays: weights.from_keras(once(arrays), layer),
        inputs(rng),
    )


@pytest.mark.parametrize(
    ("merge", "theirs_merge"), [("concat", "concat"), ("sum", "sum"), ("mean", "ave")]
)
def test_both_directions(merge, theirs_merge, kind, rng, x64):
    one = keras_layer(kind, return_state=False)
    theirs = built(keras.layers.Bidirectional(one, merge_mode=theirs_merge), rng)
    layer = jaxrnn.Bidirectional(layer_of(kind), layer_of(kind), merge=merge)
    variables = weights.from_keras(theirs, layer)

    def call(arrays, x):
        return stateless(theirs, arrays, x)

    x = inputs(rng)
    found, _ = layer.apply(variables, x)
    np.testing.assert_allclose(found, call(by_path(theirs), x), atol=TOLERANCE)
    again = weights.to_keras(variables, layer)
    theirs.set_weights([w for cell in again for w in cell.values()])
    np.testing.assert_allclose(found, call(by_path(theirs), x), atol=TOLERANCE)


def model(rng):
    """Two bidirectional layers, with other layers around them, one of them recurrent;
    the counters of names do not start at the first and pass from 9 to 10."""
    parts = [keras.layers.Embedding(9, D)]
    for k in (9, 10):
        one = keras_layer("gru", return_state=False, dropout=0.1)
        name = f"bidirectional_{k}"
        parts.append(keras.layers.Bidirectional(one, name=name))
    parts.append(keras_layer("lstm", return_state=False))
    parts.append(keras.layers.Dense(2))
    model = keras.Sequential(parts)
    model.build((None, T))
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("source", ["model", "arrays", "file"])
def test_layers_of_a_model_are_found(source, rng, x64, tmp_path):
    theirs = model(rng)
    path = tmp_path / "model.weights.h5"
    theirs.save_weights(path)
    given = {"model": theirs, "arrays": by_path(theirs), "file": path}[source]
    layer = layer_of("gru", num_layers=2, bidirectional=True)
    variables = weights.from_keras(given, layer)
    tokens = rng.integers(0, 9, (2, T))
    x = theirs.layers[0](tokens)
    expected = theirs.layers[2](theirs.layers[1](x))
    found, _ = layer.apply(variables, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_part_of_a_model_is_named(rng, x64):
    theirs = model(rng)
    layer = layer_of("gru", bidirectional=True)
    with pytest.raises(ValueError, match=r"must have 2 cells, .*, got 4: \['"):
        weights.from_keras(theirs, layer)
    prefix = f"{theirs.name}/bidirectional_10/"
    variables = weights.from_keras(theirs, layer, prefix=prefix)
    kernel = by_path(theirs)[
        f"{prefix}{theirs.layers[2].forward_layer.name}/gru_cell/kernel"
    ]
    np.testing.assert_array_equal(
        variables["params"]["l0"]["w_x"][:, :H], kernel[:, H : 2 * H]
    )


def test_names_without_an_order_are_refused(rng, x64):
    arrays = {}
    for name in ("upper", "lower"):
        theirs = built(keras_layer("gru"), rng)
        arrays |= {f"{name}/{w.path}": w.numpy() for w in theirs.weights}
    layer = layer_of("gru", num_layers=2)
    with pytest.raises(ValueError, match=r"lower/.* do not say which cell comes first"):
        weights.from_keras(arrays, layer)


def test_a_gru_says_which_of_both_it_is(rng, x64):
    theirs = built(keras_layer("reset-before"), rng)
    with pytest.raises(ValueError, match=r"bias has shape \(12,\), expected \(2, 12\)"):
        weights.from_keras(theirs, layer_of("gru"))


def test_other_activations_are_refused(rng, x64):
    theirs = built(keras_layer("lstm", recurrent_activation="hard_sigmoid"), rng)
    with pytest.raises(ValueError, match=r"recurrent_activation of .* must be"):
        weights.from_keras(keras.Sequential([theirs]), layer_of("lstm"))


@pytest.mark.parametrize(
    "content", [b"", b"\x89HDF\r\n\x1a\n", b"no file of this kind"]
)
def test_a_file_that_is_none(content, tmp_path):
    path = tmp_path / "broken.weights.h5"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.weights\.h5 is no readable"):
        weights.from_keras(path, jaxrnn.LSTM(H))


def test_a_cut_file(tmp_path, rng, x64):
    path = tmp_path / "cut.weights.h5"
    model(rng).save_weights(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut\.weights\.h5 is no readable"):
        weights.from_keras(path, layer_of("lstm"))


def test_a_file_without_such_a_layer(tmp_path):
    path = tmp_path / "other.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.ones((3, 2))
    match = r"no LSTMCell of 4 features below '', only \['layers/dense/vars/0 \(3, 2\)"
    with pytest.raises(ValueError, match=match):
        weights.from_keras(path, jaxrnn.LSTM(H))


def test_a_missing_file_is_named_by_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.weights\.h5"):
        weights.from_keras(tmp_path / "none.weights.h5", jaxrnn.LSTM(H))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kinds", ["LSTM LSTM LSTM", "LSTM GRU LSTM"])
def test_layers_that_alternate_keep_their_order(kinds):
    """In size or in kind."""
    sizes = (2, 3, 2) if len({*kinds.split()}) == 1 else (2, 2, 2)
    named = [*zip(kinds.split(), sizes, strict=True)]
    model = keras.Sequential(
        [getattr(keras.layers, k)(n, return_sequences=True) for k, n in named]
    )
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    expected = np.asarray(model(x))
    options = {"param_dtype": jnp.float64}
    layer = jaxrnn.Stack([getattr(jaxrnn, k)(n, **options) for k, n in named])
    found, _ = layer.apply(weights.from_keras(model, layer), x)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("theirs", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("ours", ["relu", "tanh"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_activation_of_a_simple_rnn_must_be_the_same(theirs, ours, wrapped):
    layer = keras.layers.SimpleRNN(4, activation=theirs)
    if wrapped:
        layer = keras.layers.RNN(keras.layers.SimpleRNNCell(4, activation=theirs))
    layer.build((2, 5, 3))
    if theirs == ours:
        weights.from_keras(layer, jaxrnn.RNN(4, activation=ours))
        return
    with pytest.raises(ValueError, match=f"must be {ours}, got {theirs}"):
        weights.from_keras(layer, jaxrnn.RNN(4, activation=ours))


def test_what_has_no_weights_or_another_format_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="no weights yet: call it once"):
        weights.from_keras(keras.layers.LSTM(4), jaxrnn.LSTM(4))
    (tmp_path / "model.keras").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"keras\.models\.load_model"):
        weights.from_keras(tmp_path / "model.keras", jaxrnn.LSTM(4))
