"""The NNX modules against the Linen modules, and as a user of NNX uses them."""

import copy
import dataclasses
import inspect
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx

import jaxrnn
from jaxrnn import cells, models, sampling, torch_weights
from jaxrnn import nnx as rnn
from jaxrnn.batching import pad
from tests import contract

B, T, D, H = 3, 5, 3, 4
LENGTHS = np.array([5, 0, 3])
IDS = np.array([[1, 1, 2, 2, 2], [0, 0, 0, 0, 0], [1, 0, 2, 3, 0]])
TOKENS = np.array([[1, 2, 3, 4, 5], [6, 0, 0, 0, 0], [2, 2, 1, 0, 0]])


def rngs(seed=0):
    return nnx.Rngs(params=seed, dropout=seed + 1)


def test_nobody_needs_to_import_it(monkeypatch):
    monkeypatch.delattr(jaxrnn, "nnx")
    assert jaxrnn.nnx is rnn
    with pytest.raises(AttributeError, match="'jaxrnn' has no attribute 'lstm'"):
        _ = jaxrnn.lstm


# Linen module, and how the NNX module is created.
LAYERS = {
    "rnn": (
        jaxrnn.RNN(H, activation="relu"),
        lambda: rnn.RNN(D, H, activation="relu", rngs=rngs()),
    ),
    "lstm": (
        jaxrnn.LSTM(H, num_layers=2, bidirectional=True, dropout=0.5),
        lambda: rnn.LSTM(
            D, H, num_layers=2, bidirectional=True, dropout=0.5, rngs=rngs()
        ),
    ),
    "gru": (
        jaxrnn.GRU(H, zoneout_h=0.3),
        lambda: rnn.GRU(D, H, zoneout_h=0.3, rngs=rngs()),
    ),
    "layer": (
        jaxrnn.Layer(cells.MGUCell, features=H, learned_initial_state=True),
        lambda: rnn.Layer(cells.MGUCell, D, H, learned_initial_state=True, rngs=rngs()),
    ),
    "recurrent": (
        jaxrnn.Recurrent(nn.OptimizedLSTMCell(H)),
        lambda: rnn.Recurrent(nn.OptimizedLSTMCell(H), D, rngs=rngs()),
    ),
}


def leaves(tree):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(tree)}


def assert_same(found, expected, **tolerance):
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, err_msg=name, **tolerance)


def assert_equal(found, expected):
    assert_same(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_created_with_the_parameters_of_linens(name, rng):
    definition, create = LAYERS[name]
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    variables = definition.init(nnx.Rngs(params=0).params(), x)
    layer = create()
    assert_equal(nnx.to_pure_dict(nnx.state(layer, nnx.Param)), variables["params"])
    found, back = rnn.to_linen(layer)
    assert found == definition
    assert_equal(back, variables)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_linens_does(name, rng):
    """Outputs, states, all gradients, and what is dropped with the same key."""
    definition, create = LAYERS[name]
    layer = create()
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    _, variables = rnn.to_linen(layer)
    state = layer.initial_state((B,))
    assert layer.num_states == len(state)
    assert layer.supports_step == definition.supports_step
    assert layer.resolved_backends == definition.resolved_backends

    for options in ({"lengths": LENGTHS}, {"segment_ids": IDS}, {"reverse": True}):

        def theirs(variables, x, state, options=options):
            outputs, last = definition.apply(variables, x, state=state, **options)
            total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))
            return jnp.sum(outputs**2) + total, (outputs, last)

        def ours(layer, x, state, options=options):
            outputs, last = layer(x, state=state, deterministic=True, **options)
            total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))
            return jnp.sum(outputs**2) + total, (outputs, last)

        expected, results = jax.jit(jax.grad(theirs, argnums=(0, 1, 2), has_aux=True))(
            variables, x, state
        )
        (of_layer, of_x, of_state), found = nnx.jit(
            nnx.grad(ours, argnums=(0, 1, 2), has_aux=True)
        )(layer, x, state)
        assert_equal(found, results)
        gradient = {"params": nnx.to_pure_dict(of_layer)}
        assert_equal((gradient, of_x, of_state), expected)

    key = jax.random.key(7)
    expected = definition.apply(variables, x, train=True, rngs={"dropout": key})
    assert_equal(layer(x, rngs=key), expected)
    if layer.supports_step:
        expected = definition.apply(variables, x[:, 0], state, method="step")
        assert_equal(layer.step(x[:, 0], state), expected)


def deep(seed=0):
    """Layers in layers, and the same in Linen."""
    keys = rngs(seed)
    layer = rnn.Stack(
        [
            rnn.Bidirectional(
                rnn.LSTM(D, H, rngs=keys), rnn.GRU(D, H, rngs=keys), rngs=keys
            ),
            rnn.Layer(cells.JANETCell, 2 * H, H, rngs=keys),
        ],
        dropout=0.5,
        layer_norm=True,
        rngs=keys,
    )
    definition = jaxrnn.Stack(
        [
            jaxrnn.Bidirectional(jaxrnn.LSTM(H), jaxrnn.GRU(H)),
            jaxrnn.Layer(cells.JANETCell, features=H),
        ],
        dropout=0.5,
        layer_norm=True,
    )
    return layer, definition


def test_layers_in_layers_have_the_names_of_linens(rng):
    layer, definition = deep()
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    expected = definition.init(jax.random.key(0), x)["params"]
    assert leaves(params).keys() == leaves(expected).keys()
    assert rnn.to_linen(layer)[0] == definition
    found = layer(x, LENGTHS, deterministic=True)
    assert_equal(found, definition.apply({"params": params}, x, LENGTHS))
    # A part of it can be replaced.
    layer.layers_1 = rnn.GRU(2 * H, H, rngs=rngs())
    changed = definition.clone(layers=(definition.layers[0], jaxrnn.GRU(H)))
    assert rnn.to_linen(layer)[0] == changed
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    found = layer(x, LENGTHS, deterministic=True)
    assert_equal(found, changed.apply({"params": params}, x, LENGTHS))
    layer.layers_1 = nnx.Linear(2 * H, H, rngs=rngs())
    with pytest.raises(TypeError, match="layers_1 must be a module"):
        layer(x)


@pytest.mark.parametrize("kind", ["classifier", "language"])
def test_a_model_computes_what_linens_does(kind):
    keys = rngs()
    encoder = rnn.LSTM(D, H, rngs=keys)
    if kind == "classifier":
        model = rnn.SequenceClassifier(7, D, encoder, num_classes=3, rngs=keys)
        definition = models.SequenceClassifier(7, D, jaxrnn.LSTM(H), num_classes=3)
    else:
        model = rnn.LanguageModel(7, D, encoder, tie_embeddings=True, rngs=keys)
        definition = models.LanguageModel(7, D, jaxrnn.LSTM(H), tie_embeddings=True)
    found, variables = rnn.to_linen(model)
    assert found == definition
    names = leaves(definition.init(jax.random.key(0), TOKENS)).keys()
    assert leaves(variables).keys() == names
    expected = definition.apply(variables, TOKENS, LENGTHS)
    assert_equal(model(TOKENS, LENGTHS), expected)
    assert model.embed["embedding"].shape == (7, D)
    if kind == "language":
        state = model.initial_state((B,))
        table = definition.apply(variables, method="input_projection_table")
        assert_equal(model.input_projection_table(), table)
        expected = definition.apply(variables, TOKENS[:, 0], state, method="step")
        assert_same(model.step(TOKENS[:, 0], state), expected, rtol=0, atol=1e-6)
        found = model.step(TOKENS[:, 0], state, table)
        assert_same(found, expected, rtol=0, atol=1e-6)
        expected = definition.apply(variables, TOKENS, LENGTHS, method="pre_logits")
        assert_equal(model.pre_logits(TOKENS, LENGTHS), expected)
    else:
        expected = definition.apply(variables, TOKENS, segment_ids=IDS, num_segments=3)
        assert_equal(model(TOKENS, None, IDS, num_segments=3), expected)
        x = model.embed_tokens(TOKENS)
        found = model.from_embeddings(x, None, IDS, num_segments=3)
        assert_same(found, expected, rtol=1e-6, atol=1e-6)


def test_embedding_and_output_are_created_with_the_key_of_rngs():
    keys = rngs()
    encoder = rnn.GRU(D, H, rngs=keys)
    model = rnn.LanguageModel(7, D, encoder, rngs=keys)
    keys = rngs()
    keys.params()  # of the encoder
    definition = models.LanguageModel(7, D, jaxrnn.GRU(H))
    expected = definition.init(keys.params(), TOKENS)["params"]
    _, variables = rnn.to_linen(model)
    for name in ("embed", "output"):
        assert_equal(variables["params"][name], expected[name])


class Adapter:
    """An NNX module where `contract` expects a Linen module."""

    def __init__(self, definition):
        self.definition = definition

    def __getattr__(self, name):
        return getattr(self.definition, name)

    def apply(self, variables, *args, method="__call__", train=False, **options):
        module = rnn.from_linen(self.definition, variables)
        if method == "__call__":
            options["deterministic"] = not train
        return getattr(module, method)(*args, **options)


CHECKED = {
    "lstm": (jaxrnn.LSTM(H, num_layers=2), "ff"),
    "gru-bidirectional": (jaxrnn.GRU(H, bidirectional=True), "fb"),
    "stack": (
        jaxrnn.Stack([jaxrnn.GRU(H), jaxrnn.Layer(cells.MGUCell, features=H)]),
        "ff",
    ),
}
CHECKS = [
    contract.padded_equals_cut,
    contract.padding_is_not_read,
    contract.reverse_is_flipped,
    contract.packed_equals_alone,
    contract.steps_equal_the_whole,
    contract.any_batch_axes,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "name",
    [
        "stack",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("lstm", "gru-bidirectional")
        ),
    ],
)
def test_contract(name, check, rng):
    definition, directions = CHECKED[name]
    check(contract.Subject(Adapter(definition), directions, rng))


def test_training_and_evaluation_as_of_any_module(rng):
    layer = rnn.GRU(D, H, num_layers=2, dropout=0.5, rngs=rngs())
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    definition, variables = rnn.to_linen(layer)
    whole = definition.apply(variables, x)[0]
    first, second = layer(x)[0], layer(x)[0]  # in training, as nnx.Dropout is
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_array_equal(layer(x, deterministic=True)[0], whole)
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0], whole)
    layer.train()
    assert np.abs(layer(x)[0] - whole).max() > 0.01
    # The stream is the one of the rngs that it was created with.
    twin = rnn.GRU(D, H, num_layers=2, dropout=0.5, rngs=rngs())
    np.testing.assert_array_equal(twin(x)[0], first)


def test_modules_of_one_definition_have_parameters_of_their_own(rng):
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    one = rnn.Recurrent(cells.GRUCell(H), D, rngs=rngs())
    copied = nnx.clone(one)
    weight = copied.cell["w_x"]
    weight[...] = 2 * weight[...]
    definition, variables = rnn.to_linen(copied)
    both = rnn.Stack([rnn.Bidirectional(one, copied)])
    outputs, _ = both(x, LENGTHS)
    assert_equal(outputs[..., :H], one(x, LENGTHS)[0])
    backward = definition.apply(variables, x, LENGTHS, reverse=True)[0]
    assert_equal(outputs[..., H:], backward)
    found, variables = rnn.to_linen(both)
    assert_equal(found.apply(variables, x, LENGTHS)[0], outputs)


def test_a_module_in_two_places_is_one(rng):
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    layer = rnn.GRU(D, H, rngs=rngs())
    both = rnn.Bidirectional(layer, layer, merge="sum")
    assert len(nnx.to_flat_state(nnx.state(both, nnx.Param))) == 4
    once = lambda layer: layer(x)[0].sum() + layer(x, reverse=True)[0].sum()  # noqa: E731
    found = nnx.grad(lambda both: both(x)[0].sum())(both)
    expected = nnx.to_pure_dict(nnx.grad(once)(layer))
    # The same numbers, added in another order.
    assert_same(nnx.to_pure_dict(found)["backward"], expected, rtol=0, atol=1e-5)


def test_where_nothing_is_random_there_are_no_keys(rng):
    """So that JAX's transformations take functions that use the module."""
    layer = rnn.Stack([rnn.GRU(D, H, rngs=nnx.Rngs(params=0))])
    assert not leaves(nnx.state(layer, nnx.RngState))
    layer.train()
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    expected, _ = layer(x)
    found = jax.vmap(lambda x: layer(x)[0])(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.any(jax.grad(lambda x: layer(x)[0].sum())(x))


def test_keys_come_from_the_outermost_module_that_has_some(rng):
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    inside = rnn.GRU(D, H, zoneout_h=0.5, rngs=rngs())
    outside = rnn.Bidirectional(inside, rnn.GRU(D, H, rngs=rngs()))
    assert outside.rngs is None
    key = inside.rngs.fork()()
    twin = rnn.Bidirectional(*map(nnx.clone, (outside.forward, outside.backward)))
    assert_equal(twin(x), outside(x))
    assert np.abs(outside(x)[0] - outside(x)[0]).max() > 0.01
    evaluated = nnx.view(outside, deterministic=True)
    assert_equal(evaluated(x), outside(x, deterministic=True))
    assert_equal(outside(x, rngs=key), outside(x, rngs=key))
    definition, variables = rnn.to_linen(outside)
    without = rnn.from_linen(definition, variables)
    assert_equal(without(x, rngs=key), outside(x, rngs=key))
    with pytest.raises(ValueError, match="has no keys for it: give rngs"):
        without(x)


def rows(rng, number):
    rows = [rng.integers(1, 10, size=n) for n in rng.integers(1, 9, size=number)]
    tokens, lengths = pad(rows)
    return tokens, lengths, np.array([9 in row for row in rows]).astype(np.float32)


def classifier(seed=0):
    keys = rngs(seed)
    encoder = rnn.GRU(8, 16, bidirectional=True, rngs=keys)
    return rnn.SequenceClassifier(10, 8, encoder, dropout=0.1, rngs=keys)


@nnx.jit
def train_step(model, optimizer, tokens, lengths, labels):
    def loss(model):
        logits = model(tokens, lengths)
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

    nats, gradient = nnx.value_and_grad(loss)(model)
    with jax.numpy_dtype_promotion("standard"):  # Optax's numbers of steps need it.
        optimizer.update(model, gradient)
    return nats


@pytest.mark.slow
def test_it_learns_with_an_optimizer_and_comes_back_from_disk(rng, tmp_path):
    tokens, lengths, labels = rows(rng, 128)
    model = classifier()
    optimizer = nnx.Optimizer(model, optax.adam(2e-2), wrt=nnx.Param)
    model.train()
    for _ in range(60):
        nats = train_step(model, optimizer, tokens, lengths, labels)
    assert nats < 0.2
    model.eval()
    right = (model(tokens, lengths) > 0) == (labels > 0.5)
    assert right.mean() > 0.95

    graph, state = nnx.split(model)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
        fresh = classifier(seed=5)
        fresh.eval()
        template = nnx.to_pure_dict(nnx.state(fresh))
        restored = checkpointer.restore(tmp_path / "model", template)
    nnx.update(fresh, restored)
    np.testing.assert_array_equal(fresh(tokens, lengths), model(tokens, lengths))
    merged = nnx.merge(graph, state)
    np.testing.assert_array_equal(merged(tokens, lengths), model(tokens, lengths))
    twin = copy.deepcopy(model)
    train_step(twin, nnx.Optimizer(twin, optax.sgd(1.0), wrt=nnx.Param), *rows(rng, 8))
    assert np.abs(twin(tokens, lengths) - merged(tokens, lengths)).max() > 0


def test_a_part_of_the_parameters_can_be_trained(rng):
    tokens, lengths, labels = rows(rng, 16)
    model = classifier()
    output = nnx.All(nnx.Param, nnx.PathContains("output"))
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=output)

    def loss(model):
        logits = model(tokens, lengths)
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

    gradient = nnx.grad(loss, argnums=nnx.DiffState(0, output))(model)
    optimizer.update(model, gradient)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    changed = {
        name.split("'")[1]
        for name, leaf in leaves(before).items()
        if (leaves(after)[name] != leaf).any()
    }
    assert changed == {"output"}


def test_an_ensemble_by_vmap(rng):
    x = rng.normal(size=(B, T, D)).astype(np.float32)

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def create(rngs):
        return rnn.LSTM(D, H, rngs=rngs)

    @nnx.vmap(in_axes=(0, None, None))
    def run(layer, x, lengths):
        return layer(x, lengths, deterministic=True)[0]

    ensemble = create(nnx.Rngs(0))
    found = run(ensemble, x, LENGTHS)
    graph, state = nnx.split(ensemble)
    for k in range(3):
        one = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[k], state))  # noqa: B023
        expected = one(x, LENGTHS, deterministic=True)[0]
        np.testing.assert_allclose(found[k], expected, rtol=0, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_layers_on_top_of_each_other_by_scan(rng):
    x = rng.normal(size=(B, T, H)).astype(np.float32)

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def create(rngs):
        return rnn.GRU(H, H, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(layer, x):
        return layer(x, LENGTHS)[0]

    stack = create(nnx.Rngs(0))
    graph, state = nnx.split(stack)
    expected = x
    for k in range(3):
        one = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[k], state))  # noqa: B023
        expected, _ = one(expected, LENGTHS)
    np.testing.assert_allclose(run(stack, x), expected, rtol=0, atol=1e-6)


def test_text_is_generated_with_split_and_merge():
    keys = rngs()
    model = rnn.LanguageModel(7, D, rnn.GRU(D, H, rngs=keys), rngs=keys)
    graph, params = nnx.split(model)

    def step(params, tokens, state):
        return nnx.merge(graph, params).step(tokens, state)

    keys = jax.random.split(jax.random.key(0), 2)
    state, prompt = model.initial_state((2,)), np.array([[1], [2]])
    drawn = sampling.generate(step, state, prompt, 6, keys, params=params)
    definition, variables = rnn.to_linen(model)

    def linen_step(variables, tokens, state):
        return definition.apply(variables, tokens, state, method="step")

    expected = sampling.generate(linen_step, state, prompt, 6, keys, params=variables)
    np.testing.assert_array_equal(drawn.tokens, expected.tokens)


def test_pytorchs_weights_through_linen():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LSTM(D, H, batch_first=True)
    definition = jaxrnn.LSTM(H)
    variables = torch_weights.from_torch(theirs.state_dict(), definition)
    x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    found, _ = rnn.from_linen(definition, variables)(x)
    expected = theirs(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_partitioned_parameters_are_split():
    """As NNX splits those of its own modules, over the mesh that is set."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    x = jnp.ones((B, T, D))
    expected, _ = rnn.GRU(D, H, rngs=rngs())(x)
    auto = (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((2,), ("model",), auto)):
        layer = rnn.GRU(D, H, kernel_init=init, rngs=rngs())
        w_x = layer.l0["w_x"]
        assert w_x.get_metadata()["out_sharding"] == (None, "model")
        assert {s.data.shape for s in w_x[...].addressable_shards} == {(D, 3 * H // 2)}
        np.testing.assert_allclose(layer(x)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "layers in layers"])
def test_a_second_call_compiles_nothing(kind, rng):
    from tests.harness.test_training_loop import compilations

    layer = rnn.LSTM(D, H, rngs=rngs()) if kind == "layer" else deep()[0]
    x = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    state = layer.initial_state((B,))

    def calls():
        layer(x, LENGTHS)
        layer(x, LENGTHS, deterministic=True)
        if layer.supports_step:
            layer.step(x[:, 0], state)

    calls()
    with compilations() as events:
        for _ in range(10):
            calls()
    assert not events


def of_linen(features, num_layers):
    x = jnp.zeros((1, 1, D))
    return jaxrnn.GRU(features, num_layers=num_layers).init(jax.random.key(0), x)


class OwnLayer(nn.Module):
    """What a stack takes, and no module of ours."""

    def step(self, x, state):
        return x, state

    def initial_state(self, batch_shape):
        return ()


@pytest.mark.parametrize(
    ("create", "error", "words"),
    [
        (lambda: rnn.GRU(0, H, rngs=rngs()), ValueError, "in_features must be at"),
        (lambda: rnn.GRU(D, H, hidden_size=3, rngs=rngs()), TypeError, "is features"),
        (lambda: rnn.Layer(int, D, H, rngs=rngs()), TypeError, "cell_type"),
        (
            lambda: rnn.Bidirectional(jaxrnn.GRU(H), rnn.GRU(D, H, rngs=rngs())),
            TypeError,
            "forward must be a module of jaxrnn.nnx",
        ),
        (
            lambda: rnn.Stack(
                [rnn.GRU(D, H, rngs=rngs()), rnn.GRU(H, H, rngs=rngs())],
                layer_norm=True,
            ),
            ValueError,
            "norm_1.*give rngs",
        ),
        (
            lambda: rnn.LanguageModel(7, 9, rnn.GRU(D, H, rngs=rngs()), rngs=rngs()),
            ValueError,
            "reads 3 features, but the embedding has 9",
        ),
        (lambda: rnn.from_linen(nn.Dense(3), {}), TypeError, "ToNNX"),
        (lambda: rnn.from_linen(jaxrnn.GRU(H), {"l0": {}}), ValueError, "'params'"),
        (
            lambda: rnn.from_linen(
                jaxrnn.Bidirectional(jaxrnn.GRU(H), jaxrnn.GRU(H)), {"params": {}}
            ),
            ValueError,
            "missing backward/l0/b .*missing forward/l0/w_x",
        ),
        (
            lambda: rnn.from_linen(jaxrnn.GRU(H, num_layers=2), of_linen(2 * H, 3)),
            ValueError,
            r"this GRU: unexpected l2/b .*l0/w_h has shape \(8, 24\), expected "
            r"\(4, 12\)",
        ),
        (
            lambda: rnn.from_linen(
                models.LanguageModel(7, D, jaxrnn.GRU(H)),
                {"params": {"encoder": of_linen(H, 1)["params"]}},
            ),
            ValueError,
            "missing embed/embedding",
        ),
        (
            lambda: rnn.from_linen(jaxrnn.Stack([OwnLayer()]), {"params": {}}),
            TypeError,
            "got OwnLayer",
        ),
        (lambda: rnn.to_linen(nnx.Linear(2, 3, rngs=rngs())), TypeError, "jaxrnn.nnx"),
    ],
)
def test_refusals(create, error, words):
    with pytest.raises(error, match=words):
        create()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3,), {"hidden_features": 8}, "no argument 'hidden_features': here .*feature"),
        ((), {"input_size": 3, "features": 8}, "'input_size': here it is in_features"),
        ((3, 8, 2), {}, "LSTM: too many positional arguments"),
        ((3,), {}, "LSTM: missing a required argument: 'features'"),
        ((3, 8), {"num_layer": 2}, "LSTM has no argument 'num_layer'"),
    ],
)
def test_arguments_of_other_libraries_have_a_hint(arguments, options, message):
    with pytest.raises(TypeError, match=message):
        rnn.LSTM(*arguments, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("option", "here"),
    [
        ("train", "deterministic="),
        ("mask", "segment_ids=segments"),
        ("initial_carry", "state="),
    ],
)
def test_a_call_of_other_libraries_has_a_hint(option, here):
    layer = rnn.LSTM(3, 8, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=f"LSTM has no argument '{option}': .*{here}"):
        layer(jnp.ones((2, 5, 3)), **{option: None})


def test_a_table_of_a_model_and_the_model_after_it():
    encoder = rnn.GRU(3, 8, rngs=nnx.Rngs(0))
    layer, x = rnn.Stack([encoder]), jnp.ones((2, 5, 3))
    table = nnx.tabulate(layer, x, console_kwargs={"width": 200})
    assert "Stack Summary" in table
    assert "296" in table  # parameters: 3 * 24 + 8 * 24 + 24 + 8
    assert layer(x)[0].shape == (2, 5, 8)


def test_functions_for_linen_say_how_to_convert(tmp_path):
    layer = rnn.LSTM(3, 4, rngs=nnx.Rngs(0))
    remedy = r"jaxrnn\.nnx\.to_linen\(module\)"
    for use in (
        lambda: jaxrnn.serving.export(layer, {}, tmp_path / "model"),
        lambda: jaxrnn.torch_weights.from_torch({}, layer),
        lambda: jaxrnn.weights.from_linen({}, layer),
        lambda: jaxrnn.save(tmp_path / "model", layer),
        lambda: jaxrnn.models.LanguageModel(5, 3, layer),
    ):
        with pytest.raises(TypeError, match=remedy):
            use()


@pytest.mark.parametrize("name", sorted(set(rnn.__all__) - {"from_linen", "to_linen"}))
def test_type_checkers_know_every_option(name):
    """Those of Linen's module but what NNX modules have as arguments of their own."""
    signature = inspect.signature(getattr(rnn, name).__init__).parameters
    known = {*signature}
    if "options" in signature:
        known |= {*get_type_hints(get_args(signature["options"].annotation)[0])}
    linen = {
        field.name
        for field in dataclasses.fields(getattr(rnn, name)._linen)
        if field.init and field.name not in ("parent", "name")
    }
    assert known - {"self", "in_features", "rngs", "options"} == linen


def test_noise_of_a_cell_is_drawn_in_training():
    layer = rnn.Layer(
        cells.LeakyRNNCell, 3, 4, cell_options={"noise": 0.5}, rngs=nnx.Rngs(0)
    )
    x = jnp.ones((2, 5, 3))
    assert (layer(x)[0] != layer(x)[0]).any()
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0], layer(x)[0])


def test_noise_of_a_layer_that_takes_the_place_of_another():
    rngs = nnx.Rngs(0)
    stack = rnn.Stack([rnn.GRU(3, 4, rngs=rngs)], rngs=rngs)
    noisy = {"noise": 0.5}
    stack.layers_0 = rnn.Layer(cells.LeakyRNNCell, 3, 4, cell_options=noisy, rngs=rngs)
    x = jnp.ones((2, 5, 3))
    assert (stack(x)[0] != stack(x)[0]).any()


def test_both_directions_must_read_as_many_features():
    forward, backward = (rnn.GRU(n, 4, rngs=nnx.Rngs(0)) for n in (3, 5))
    with pytest.raises(ValueError, match="forward reads 3 features and backward 5"):
        rnn.Bidirectional(forward, backward)
