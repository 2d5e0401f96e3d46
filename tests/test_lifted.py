"""Flax's lifted transformations of every layer and model: right, or refused."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn
from jaxrnn import cells
from jaxrnn.models import LanguageModel, SequenceClassifier

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, 4)).astype(np.float32)
TOKENS = RNG.integers(7, size=(3, 5))
LENGTHS = np.array([5, 3, 0])
IDS = np.array([[1, 1, 2, 2, 3], [1, 1, 1, 0, 0], [0, 0, 1, 1, 2]])

# The class, and what it is made of: outputs as wide as inputs, for `nn.scan`.
LAYERS = {
    "Recurrent": (jaxrnn.Recurrent, lambda: {"cell": jaxrnn.LSTMCell(4)}),
    "of Flax": (jaxrnn.Recurrent, lambda: {"cell": nn.GRUCell(4)}),
    "RNN": (jaxrnn.RNN, lambda: {"features": 4}),
    "LSTM": (jaxrnn.LSTM, lambda: {"features": 4, "num_layers": 2, "dropout": 0.5}),
    "GRU": (jaxrnn.GRU, lambda: {"features": 2, "bidirectional": True}),
    "Layer": (jaxrnn.Layer, lambda: {"cell_type": cells.MGUCell, "features": 4}),
    "Stack": (
        jaxrnn.Stack,
        lambda: {"layers": [jaxrnn.LSTM(3), jaxrnn.GRU(4)], "dropout": 0.5},
    ),
    "Bidirectional": (
        jaxrnn.Bidirectional,
        lambda: {"forward": jaxrnn.GRU(2), "backward": jaxrnn.RNN(2)},
    ),
}
MODELS = {
    "SequenceClassifier": (
        SequenceClassifier,
        lambda: {
            "vocab_size": 7,
            "embed_features": 4,
            "encoder": jaxrnn.LSTM(4),
            "dropout": 0.5,
            "word_dropout": 0.25,
        },
    ),
    "LanguageModel": (
        LanguageModel,
        lambda: {
            "vocab_size": 7,
            "embed_features": 4,
            "encoder": jaxrnn.LSTM(4),
            "dropout": 0.5,
        },
    ),
}
ALL = LAYERS | MODELS

identity = functools.partial(
    nn.map_variables, mapped_collections="params", trans_in_fn=lambda params: params
)
# They pass on everything there is.
WHOLE = {
    "remat": nn.remat,
    "checkpoint": nn.checkpoint,
    "jit": nn.jit,
    "map_variables": identity,
}
stacked = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
vmap = functools.partial(nn.vmap, in_axes=None, axis_size=2, **stacked)
scan = functools.partial(nn.scan, in_axes=nn.broadcast, length=2, **stacked)


def make(name, transform=lambda cls: cls):
    cls, fields = ALL[name]
    return transform(cls)(**fields())


def inputs(name):
    return TOKENS if name in MODELS else X


@functools.cache
def variables_of(name):
    """With values of their own everywhere: zero biases would hide much."""
    variables = jax.jit(make(name).init)(KEY, inputs(name))
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    noise = [0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])


def assert_same(found, expected):
    # The same sums in another program.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


def calls(name):
    """Arguments, and keywords."""
    yield (), {}
    yield (LENGTHS,), {}
    yield (), {"lengths": LENGTHS}
    more = {"num_segments": 3} if name == "SequenceClassifier" else {}
    yield (), {"segment_ids": IDS, **more}
    if name != "SequenceClassifier":
        state = make(name).initial_state((3,))
        yield (LENGTHS,), {"state": jax.tree.map(lambda leaf: leaf + 1, state)}
    if name in LAYERS:
        yield (), {"segment_ids": IDS, "reverse": True}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("transform", WHOLE)
def test_a_layer_is_the_same_under_a_transformation(name, transform):
    plain, lifted = make(name), make(name, WHOLE[transform])
    variables = variables_of(name)
    given = [
        (args, options)
        for args, options in calls(name)
        # Some trace it, which the next test has.
        if "num_segments" not in options or transform == "map_variables"
    ]

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, variables):
        return [
            model.apply(variables, inputs(name), *args, **options)
            for args, options in given
        ]

    assert_same(run(lifted, variables), run(plain, variables))


@pytest.mark.parametrize("transform", ["remat", "jit"])
def test_a_number_of_segments_that_is_traced_is_refused(transform):
    lifted = make("SequenceClassifier", WHOLE[transform])
    with pytest.raises(TypeError, match="num_segments must be an integer, got"):
        lifted.apply(
            variables_of("SequenceClassifier"), TOKENS, segment_ids=IDS, num_segments=3
        )


def dropping(name, model, variables, train):
    """The mean of what many draws return, and whether they all are the same."""

    def one(key):
        found = model.apply(variables, inputs(name), train=train, rngs={"dropout": key})
        return jax.tree.leaves(found)[0]

    found = jax.jit(jax.vmap(one))(jax.random.split(KEY, 500))
    found = np.asarray(found)
    return found.mean(axis=0), bool((found == found[0]).all())


@pytest.mark.parametrize(
    "name", ["LSTM", "Stack", "SequenceClassifier", "LanguageModel"]
)
@pytest.mark.parametrize("transform", ["remat", "jit", "map_variables"])
def test_training_is_known_inside_of_a_transformation(name, transform):
    plain, lifted = make(name), make(name, WHOLE[transform])
    variables = variables_of(name)
    still, all_same = dropping(name, lifted, variables, train=False)
    assert all_same
    assert_same(still, jax.tree.leaves(plain.apply(variables, inputs(name)))[0])
    found, all_same = dropping(name, lifted, variables, train=True)
    assert not all_same
    expected, _ = dropping(name, plain, variables, train=True)
    np.testing.assert_allclose(found, expected, atol=0.25)  # means of 500 draws


def test_flags_that_jit_traces():
    layer, variables = make("LSTM"), variables_of("LSTM")
    run = jax.jit(layer.apply)
    for reverse in (False, True):
        expected = layer.apply(variables, X, LENGTHS, reverse=reverse)
        assert_same(run(variables, X, LENGTHS, reverse=reverse), expected)
    assert run._cache_size() == 1
    rngs = {"dropout": KEY}
    dropped = run(variables, X, train=True, rngs=rngs)
    assert_same(dropped, layer.apply(variables, X, train=True, rngs=rngs))
    gradient, expected = (
        jax.grad(lambda v, run=run: run(v, X, LENGTHS, reverse=True)[0].sum())(
            variables
        )
        for run in (run, layer.apply)
    )
    assert_same(gradient, expected)


@pytest.mark.parametrize("name", ["Recurrent", "LSTM", "Stack", "Bidirectional"])
@pytest.mark.parametrize("transform", ["remat", "checkpoint", "jit", "map_variables"])
def test_a_transformed_layer_inside_of_others(name, transform):
    """Which give it `train` and, the backward one, `reverse`."""

    def outer(wrap):
        cls, fields = LAYERS[name]
        return SequenceClassifier(
            7,
            4,
            jaxrnn.Stack(
                [
                    jaxrnn.Bidirectional(wrap(cls)(**fields()), wrap(cls)(**fields())),
                    wrap(cls)(**fields()),
                ]
            ),
        )

    plain, lifted = outer(lambda cls: cls), outer(WHOLE[transform])
    variables = jax.jit(plain.init)(KEY, TOKENS)

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, variables):
        def loss(variables):
            logits = model.apply(variables, TOKENS, LENGTHS)
            others = model.apply(variables, TOKENS, segment_ids=np.minimum(IDS, 1))
            return logits.sum() + (others**2).sum()

        return jax.value_and_grad(loss)(variables)

    assert_same(run(lifted, variables), run(plain, variables))
    train = jax.jit(functools.partial(lifted.apply, train=True))
    assert np.isfinite(train(variables, TOKENS, rngs={"dropout": KEY})).all()


def copies(name):
    variables = variables_of(name)
    second = jax.tree.map(lambda leaf: 0.5 * leaf, variables)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), variables, second)
    return variables, second, both


@pytest.mark.parametrize("name", ALL)
def test_copies_of_a_layer_by_vmap(name):
    model, lifted = make(name), make(name, vmap)
    *each, both = copies(name)
    given = [(), (LENGTHS,), (None, np.minimum(IDS, 1))]
    found = jax.jit(lambda v: [lifted.apply(v, inputs(name), *args) for args in given])
    alone = jax.jit(lambda v: [model.apply(v, inputs(name), *args) for args in given])
    expected = [alone(variables) for variables in each]
    assert_same(found(both), jax.tree.map(lambda *leaves: np.stack(leaves), *expected))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_top_of_each_other_by_scan(name):
    """Each layer reads what the last one wrote, and all states come out."""
    layer = make(name)
    *each, both = copies(name)
    given = [(), (LENGTHS,), (None, IDS)]
    alone = jax.jit(lambda v, xs: [layer.apply(v, *a) for a in xs])
    xs, states = [(X, *args) for args in given], []
    for variables in each:
        results = alone(variables, xs)
        xs = [(y, *args) for (y, _), args in zip(results, given, strict=True)]
        states.append([state for _, state in results])
    stacked_states = jax.tree.map(lambda *leaves: np.stack(leaves), *states)

    @jax.jit
    def run(variables):
        results = []
        for args in given:
            axes = (nn.broadcast,) * len(args)
            lift = functools.partial(nn.scan, in_axes=axes, length=2, **stacked)
            results.append(make(name, lift).apply(variables, X, *args))
        return results

    expected = [(y, state) for (y, *_), state in zip(xs, stacked_states, strict=True)]
    assert_same(run(both), expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("transform", [vmap, scan], ids=["vmap", "scan"])
def test_keywords_that_flax_would_drop_are_refused(name, transform):
    lifted = make(name, transform)
    for _, options in calls(name):
        if not options:
            continue
        with pytest.raises(TypeError, match=f"drop arguments .*{next(iter(options))}"):
            lifted.apply({}, inputs(name), **options)
    with pytest.raises(TypeError, match=r"drop arguments .*\['train'\].* by position"):
        lifted.apply({}, inputs(name), train=True)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("transform", [vmap, scan], ids=["vmap", "scan"])
def test_what_a_layer_of_layers_gives_by_name_is_refused_too(name, transform):
    stack = jaxrnn.Stack([make(name, transform)])
    with pytest.raises(TypeError, match=r"drop arguments .*\['reverse'\]"):
        stack.init(KEY, X, reverse=True)


def test_keywords_that_say_nothing_may_be_dropped():
    lifted = make("LSTM", vmap)
    variables = lifted.init(KEY, X)
    plain = lifted.apply(variables, X)
    found = lifted.apply(variables, X, lengths=None, state=None, train=False)
    assert_same(found, plain)


@pytest.mark.parametrize("name", LAYERS)
def test_a_stack_not_a_sequential(name):
    sequential = nn.Sequential([make(name), make(name)])
    with pytest.raises(TypeError, match=r"lengths must be .* tuple.* Stack"):
        sequential.init(KEY, X)


@pytest.mark.parametrize("name", ALL)
def test_operations_are_counted(name):
    # As an error Flax would catch a warning.
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        table = make(name).tabulate(KEY, inputs(name), compute_flops=True)
    assert "flops" in table
    assert [str(warning.message) for warning in warned] == []


@pytest.mark.parametrize("name", ALL)
def test_a_model_that_is_not_bound_says_how_it_is_called(name):
    layer, own = make(name), "has no variables of its own: "
    message = own + r".*init\(key, x\).*apply\(variables, x\)"
    with pytest.raises(TypeError, match=message):
        layer(inputs(name))
    if getattr(layer, "supports_step", False):
        message = own + r'.*apply\(variables, \.\.\., method="step"\)'
        with pytest.raises(TypeError, match=message):
            layer.step(inputs(name)[:, 0], layer.initial_state((3,)))
