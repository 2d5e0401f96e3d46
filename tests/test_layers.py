"""The layers' parameters, options and errors. What they compute is the business of
`contract` and of the comparison with PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn
from jaxrnn._validation import warn_once

X = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


def shapes(layer):
    params = layer.init(jax.random.key(0), X)["params"]
    return jax.tree.map(jnp.shape, params)


def test_parameter_tree_spelled_out():
    assert shapes(jaxrnn.LSTM(4, num_layers=2, bidirectional=True)) == {
        "l0": {"w_x": (3, 16), "w_h": (4, 16), "b": (16,)},
        "l0_reverse": {"w_x": (3, 16), "w_h": (4, 16), "b": (16,)},
        "l1": {"w_x": (8, 16), "w_h": (4, 16), "b": (16,)},
        "l1_reverse": {"w_x": (8, 16), "w_h": (4, 16), "b": (16,)},
    }
    assert shapes(jaxrnn.LSTM(4, num_layers=2, proj_size=2, use_bias=False)) == {
        "l0": {"w_x": (3, 16), "w_h": (2, 16), "w_p": (4, 2)},
        "l1": {"w_x": (2, 16), "w_h": (2, 16), "w_p": (4, 2)},
    }
    assert shapes(jaxrnn.GRU(4)) == {
        "l0": {"w_x": (3, 12), "w_h": (4, 12), "b": (12,), "b_n": (4,)}
    }
    assert shapes(jaxrnn.RNN(4)) == {"l0": {"w_x": (3, 4), "w_h": (4, 4), "b": (4,)}}


def test_options_reach_every_cell():
    layer = jaxrnn.LSTM(
        4,
        num_layers=2,
        bidirectional=True,
        forget_bias=3.0,
        kernel_init=nn.initializers.constant(0.5),
        recurrent_init=nn.initializers.constant(0.25),
        bias_init=nn.initializers.constant(1),
    )
    for cell in layer.init(jax.random.key(0), X)["params"].values():
        assert (cell["w_x"] == 0.5).all()
        assert (cell["w_h"] == 0.25).all()
        assert cell["b"].tolist() == [1] * 4 + [4] * 4 + [1] * 8


@pytest.mark.parametrize(
    ("merge", "combine"),
    [
        ("concat", lambda a, b: np.concatenate([a, b], axis=-1)),
        ("sum", np.add),
        ("mean", lambda a, b: (a + b) / 2),
        ("mul", np.multiply),
        ("stack", lambda a, b: np.stack([a, b], axis=2)),
    ],
)
def test_merge(merge, combine):
    ahead, behind = jaxrnn.GRU(4), jaxrnn.GRU(4)
    both = jaxrnn.Bidirectional(ahead, behind, merge=merge)
    variables = both.init(jax.random.key(0), X)
    outputs, _ = both.apply(variables, X)
    alone = {
        name: layer.apply({"params": variables["params"][name]}, X, reverse=reverse)[0]
        for name, layer, reverse in [
            ("forward", ahead, False),
            ("backward", behind, True),
        ]
    }
    # The same products in another program: equal to rounding.
    np.testing.assert_allclose(
        outputs, combine(alone["forward"], alone["backward"]), atol=1e-6
    )


def test_both_topologies_of_deep_bidirectional_networks():
    torch_style = jaxrnn.LSTM(4, num_layers=2, bidirectional=True)
    variables = torch_style.init(jax.random.key(0), X)
    by_hand = jaxrnn.Stack(
        [
            jaxrnn.Bidirectional(jaxrnn.LSTM(4), jaxrnn.LSTM(4)),
            jaxrnn.Bidirectional(jaxrnn.LSTM(4), jaxrnn.LSTM(4)),
        ]
    )
    p = variables["params"]
    renamed = {
        f"layers_{k}": {
            "forward": {"l0": p[f"l{k}"]},
            "backward": {"l0": p[f"l{k}_reverse"]},
        }
        for k in range(2)
    }
    expected, expected_state = torch_style.apply(variables, X)
    outputs, state = by_hand.apply({"params": renamed}, X)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, expected_state
    )
    independent = jaxrnn.Bidirectional(
        jaxrnn.LSTM(4, num_layers=2), jaxrnn.LSTM(4, num_layers=2)
    )
    variables = independent.init(jax.random.key(0), X)
    # The second layer sees one direction only.
    assert variables["params"]["forward"]["l1"]["w_x"].shape == (4, 16)
    changed = X.copy()
    changed[:, -1] += 1
    before, after = (independent.apply(variables, x)[0] for x in (X, changed))
    np.testing.assert_array_equal(before[:, :-1, :4], after[:, :-1, :4])
    assert (before[:, :-1, 4:] != after[:, :-1, 4:]).any(axis=-1).all()


def test_the_same_cell_draws_other_gates():
    params = jaxrnn.LSTM(4).init(jax.random.key(0), X)["params"]["l0"]
    for name in ("w_x", "w_h"):
        gates = np.split(np.asarray(params[name]), 4, axis=1)
        assert len({gate.tobytes() for gate in gates}) == 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_in_half_precision(dtype):
    orthogonal = nn.initializers.orthogonal()  # It does not know them.
    layer = jaxrnn.LSTM(4, proj_size=2, param_dtype=dtype, kernel_init=orthogonal)
    outputs, state = layer.init_with_output(jax.random.key(0), X.astype(dtype))[0]
    assert outputs.dtype == dtype
    assert state[0].c.dtype == jnp.float32
    params = layer.init(jax.random.key(0), X.astype(dtype))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_a_jitted_step_may_reuse_the_zero_state():
    layer = jaxrnn.GRU(4, num_layers=2)
    variables = layer.init(jax.random.key(0), X)
    step = functools.partial(layer.apply, method="step")
    expected, _ = step(variables, X[:, 0], layer.initial_state((2,)))
    reusing = jax.jit(step, donate_argnums=2)
    found, _ = reusing(variables, X[:, 0], layer.initial_state((2,)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # jit rounds anew


def test_no_rows_or_no_steps():
    layer = jaxrnn.LSTM(4, bidirectional=True)
    variables = layer.init(jax.random.key(0), X)
    initial = jax.tree.map(lambda leaf: leaf + 1, layer.initial_state((2,)))
    ids = np.zeros((2, 0), np.int32)
    outputs, final = layer.apply(variables, X[:, :0], state=initial, segment_ids=ids)
    assert outputs.shape == (2, 0, 8)
    jax.tree.map(np.testing.assert_array_equal, final, initial)
    outputs, _ = layer.apply(variables, X[:0], lengths=np.zeros(0, np.int32))
    assert outputs.shape == (0, 5, 8)


def test_bfloat16_keeps_a_float32_state():
    layer = jaxrnn.LSTM(4, dtype=jnp.bfloat16)
    outputs, state = layer.init_with_output(jax.random.key(0), X)[0]
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    full = jaxrnn.LSTM(4)
    variables = full.init(jax.random.key(0), X)
    expected, expected_state = full.apply(variables, X)
    outputs, state = layer.apply(variables, X)
    # Factors of 8 significant bits, five steps.
    np.testing.assert_allclose(
        outputs.astype(jnp.float32), expected, atol=5 * 2**-8, rtol=0
    )
    np.testing.assert_allclose(state[0].c, expected_state[0].c, atol=5 * 2**-8, rtol=0)
    assert (state[0].c != expected_state[0].c).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxrnn.LSTM(0), "features must be at least 1, got 0"),
        (lambda: jaxrnn.LSTM(4, num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: jaxrnn.LSTM(4, dropout=1.5), "dropout must be from 0 to 1, got 1.5"),
        (lambda: jaxrnn.LSTM(4, backend="cuda"), "got 'cuda'"),
        (lambda: jaxrnn.LSTM(4, proj_size=4), "below features"),
        (lambda: jaxrnn.RNN(4, activation="gelu"), "got 'gelu'"),
        (
            lambda: jaxrnn.Bidirectional(jaxrnn.GRU(4), jaxrnn.GRU(4), merge="ave"),
            "got 'ave'",
        ),
        (
            lambda: jaxrnn.Bidirectional(jaxrnn.GRU(4), jaxrnn.GRU(1), merge="sum"),
            "needs outputs of one shape",
        ),
        (lambda: jaxrnn.Stack([]), "at least one layer"),
        (lambda: jaxrnn.Recurrent(jaxrnn.GRUCell(0)), "features must be at least 1"),
        (
            lambda: jaxrnn.GRU(4, kernel_init=lambda key, shape, dtype: jnp.ones(12)),
            r"one gate's matrix, \(3, 4\), got \(12,\)",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), X)


STATE = jaxrnn.LSTM(4).initial_state((2,))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[..., :2], {}, "2 features, but the weights were made for 3"),
        (X[0, 0], {}, "need a time axis"),
        (np.zeros((2, 5, 3), np.int32), {}, "floating point, got int32"),
        # It has the right kind, of which nothing is to be said.
        (
            X,
            {"state": jaxrnn.LSTM(4).initial_state((3,))},
            r"expected .*\(2, 4\)\)(?!:)",
        ),
        (X, {"state": jaxrnn.GRU(4).initial_state((2,))}, "expected"),
        (
            X,
            {"state": STATE + STATE},
            "1 cells, as initial_state returns it, got 2 ent",
        ),
        (X, {"state": STATE[0]}, "1 cells, as initial_state returns it, got LSTMState"),
        (X, {"state": (tuple(STATE[0]),)}, r"is \(\(2, 4\).*: make it LSTMState\(h, c"),
        (X, {"lengths": np.array([6, 1])}, "length 6 is above the 5 steps"),
        (
            X,
            {"lengths": np.array([1, 1]), "segment_ids": np.ones((2, 5), int)},
            "not both",
        ),
    ],
)
def test_bad_calls(x, options, message):
    layer = jaxrnn.LSTM(4)
    variables = layer.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=message):
        layer.apply(variables, x, **options)


@pytest.mark.parametrize("kind", [jaxrnn.RNN, jaxrnn.LSTM, jaxrnn.GRU])
def test_pytorchs_two_sizes_are_not_taken_for_others(kind):
    assert kind(4, num_layers=5).num_layers == 5
    with pytest.raises(TypeError, match="features by position and all else by name"):
        kind(3, 5)


@pytest.mark.parametrize(
    "kind", [jaxrnn.RNNCell, jaxrnn.LSTMCell, jaxrnn.GRUCell, jaxrnn.ResetBeforeGRUCell]
)
def test_nor_are_those_of_a_cell(kind):
    with pytest.raises(TypeError, match="use_bias must be True or False, got 64"):
        kind(32, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxrnn.LSTM(hidden_size=4), "'hidden_size': here it is features"),
        (lambda: jaxrnn.LSTM(input_size=3, features=4), "'input_size': .*first inputs"),
        (lambda: jaxrnn.GRU(4, batch_first=True), "'batch_first': .*batch, time, feat"),
        (lambda: jaxrnn.GRU(4, time_major=True), r"'time_major': .*swapaxes\(0, 1\)"),
        (lambda: jaxrnn.GRU(4, bias=False), "'bias': here it is use_bias"),
        (lambda: jaxrnn.RNN(4, nonlinearity="relu"), "'nonlinearity': .*activation"),
        (lambda: jaxrnn.LSTM(units=4), "'units': here it is features"),
        (lambda: jaxrnn.LSTM(4, return_sequences=True), "'return_sequences': .*always"),
        (lambda: jaxrnn.LSTM(4, hiden=3), "LSTM has no argument 'hiden'$"),
        (
            lambda: jaxrnn.models.SequenceClassifier(9, embedding_dim=4),
            "'embedding_dim': here it is embed_features",
        ),
        (
            lambda: jaxrnn.Bidirectional(
                jaxrnn.GRU(4), jaxrnn.GRU(4), merge_mode="sum"
            ),
            "'merge_mode': here it is merge",
        ),
    ],
)
def test_arguments_of_other_libraries_get_a_hint(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": X[..., 0] > 0}, r"'mask': .*segment_ids=segments.from_mask\(mask\)"),
        ({"hx": None}, "'hx': here it is state="),
        ({"initial_state": None}, "'initial_state': here it is state="),
        ({"seq_lengths": None}, "'seq_lengths': here it is lengths="),
        ({"training": True}, "'training': here it is train="),
        ({"time_major": True}, r"'time_major': .*x.swapaxes\(0, 1\)"),
        ({"trian": True}, "LSTM has no argument 'trian'"),
    ],
)
def test_arguments_of_other_calls_get_a_hint(options, message):
    with pytest.raises(TypeError, match=message):
        jaxrnn.LSTM(4).init(jax.random.key(0), X, **options)


@pytest.mark.parametrize("layers", [1, 2])
def test_pytorchs_pair_of_states_gets_a_hint(layers):
    h = np.zeros((layers, 2, 4), np.float32)
    layer = jaxrnn.LSTM(4, num_layers=layers)
    with pytest.raises(ValueError, match=r"LSTMState\(h, c\)"):
        layer.init(jax.random.key(0), X, state=(h, h))


@pytest.mark.parametrize(
    "make",
    [
        lambda layers: jaxrnn.LSTM(4, num_layers=layers, dropout=0.5),
        lambda layers: jaxrnn.Stack([jaxrnn.GRU(4)] * layers, dropout=0.5),
    ],
    ids=["LSTM", "Stack"],
)
def test_dropout_with_no_place_for_it_warns_once(make):
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"dropout=0\.5 acts between layers"):
        layer = make(1)
    rngs = {"dropout": jax.random.key(0)}  # Warnings are errors here.
    variables = layer.init(jax.random.key(0), X)
    make(1).apply(variables, X, train=True, rngs=rngs)
    make(2)


@pytest.mark.parametrize(
    ("position", "given", "got"),
    [
        (0, STATE, "tuple"),
        (0, STATE[0], "LSTMState"),
        (0, {"h": STATE[0].h}, "dict"),
        (0, STATE[0].h, "float32"),
        (1, STATE, "tuple"),
        (1, X[..., 0], "float32"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: jaxrnn.Recurrent(jaxrnn.LSTMCell(4)),
        lambda: jaxrnn.LSTM(4),
        lambda: jaxrnn.Stack([jaxrnn.LSTM(4)]),
        lambda: jaxrnn.Bidirectional(jaxrnn.LSTM(4), jaxrnn.LSTM(4)),
    ],
    ids=["Recurrent", "LSTM", "Stack", "Bidirectional"],
)
def test_a_state_in_the_place_of_lengths_or_segment_ids(make, position, given, got):
    layer, name = make(), ("lengths", "segment_ids")[position]
    message = f"{name} must be an array of integers, got {got}.*state=.*Stack"
    with pytest.raises(TypeError, match=message):
        layer.init(jax.random.key(0), X, *[None] * position, given)


def test_lengths_of_another_type_are_told_no_more_than_that():
    with pytest.raises(TypeError, match=r"lengths must be .* integers, got float32\n"):
        jaxrnn.LSTM(4).init(jax.random.key(0), X, [5.0, 1])


@pytest.mark.parametrize("lengths", [[5, 1], (5, 1), np.array([5, 1], np.uint8)])
def test_lengths_by_position(lengths):
    layer = jaxrnn.LSTM(4)
    variables = layer.init(jax.random.key(0), X)
    outputs, state = layer.apply(variables, X, lengths)
    alone, alone_state = layer.apply(variables, X[1, :1])
    # The same sums; XLA may order them otherwise for another shape.
    np.testing.assert_allclose(outputs[1, :1], alone, atol=1e-6)
    np.testing.assert_allclose(state[0].c[1], alone_state[0].c, atol=1e-6)
    assert not outputs[1, 1:].any()


def test_segment_ids_by_position():
    layer = jaxrnn.LSTM(4)
    variables = layer.init(jax.random.key(0), X)
    ids = np.array([[1, 1, 2, 2, 2]] * 2)
    outputs, _ = layer.apply(variables, X, None, ids)
    alone, _ = layer.apply(variables, X[:, 2:])
    np.testing.assert_allclose(outputs[:, 2:], alone, atol=1e-6)


def test_sequential_is_refused_as_it_would_hand_on_the_state():
    sequential = nn.Sequential([jaxrnn.LSTM(4), jaxrnn.LSTM(4)])
    with pytest.raises(TypeError, match=r"lengths .* tuple.* Stack, not a flax"):
        sequential.init(jax.random.key(0), X)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_the_initial_distributions_of_torch(kind):
    """The quantiles of the weights against draws by numpy of what PyTorch documents;
    biases, some of which are sums of two draws, by their spread."""
    h, d = 64, 50
    layer = getattr(jaxrnn, kind)(h, torch_init=True, num_layers=2, bidirectional=True)
    x = np.zeros((1, 1, d), np.float32)
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    bound, levels = h**-0.5, np.linspace(0, 1, 21)
    draws = np.random.default_rng(0).uniform(-bound, bound, size=100_000)
    for name in ("w_x", "w_h"):
        values = np.concatenate([np.ravel(cell[name]) for cell in params.values()])
        np.testing.assert_allclose(
            np.quantile(values, levels), np.quantile(draws, levels), atol=0.03 * bound
        )
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[kind]
    biases = np.stack([cell["b"].reshape(gates, h) for cell in params.values()])
    double = biases[:, :2] if kind == "GRU" else biases
    assert np.abs(double).max() > 1.2 * bound  # a single draw is not
    # The variance of the sum is twice that of one, bound**2 / 3; of 256 values or more.
    assert abs(double.mean()) < 4 * bound * (2 / 3) ** 0.5 / 16
    assert double.std() == pytest.approx(bound * (2 / 3) ** 0.5, rel=0.2)
    if kind == "GRU":
        b_n = np.stack([cell["b_n"] for cell in params.values()])
        for single in (biases[:, 2], b_n):
            assert np.abs(single).max() <= bound
            assert single.std() == pytest.approx(bound * (1 / 3) ** 0.5, rel=0.2)


def test_a_subclass_starts_as_its_cell_does():
    class Own(jaxrnn.LSTMCell):
        pass

    own, cell = (
        jaxrnn.Recurrent(kind(4, torch_init=True)).init(jax.random.key(0), X)
        for kind in (Own, jaxrnn.LSTMCell)
    )
    jax.tree.map(np.testing.assert_array_equal, own, cell)


def test_an_initialisation_that_torch_has_not():
    with pytest.raises(ValueError, match="is not for a ResetBeforeGRUCell"):
        jaxrnn.ResetBeforeGRUCell(4, torch_init=True)
