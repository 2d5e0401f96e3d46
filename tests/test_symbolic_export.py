"""`jax.export` of layers and models for any number of rows and steps, written to bytes
and read again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

import jaxrnn
from jaxrnn.models import LanguageModel, SequenceClassifier

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, 4)).astype(np.float32)
TOKENS = RNG.integers(7, size=(3, 5)).astype(np.int32)
LENGTHS = np.array([5, 3, 0], np.int32)
IDS = np.array([[1, 1, 2, 2, 0], [1, 2, 2, 2, 2], [0, 0, 0, 1, 1]], np.int32)

LAYERS = {
    "LSTM": jaxrnn.LSTM(4, num_layers=2, bidirectional=True),
    "projected LSTM": jaxrnn.LSTM(4, proj_size=2),
    "GRU by scan": jaxrnn.GRU(4, backend="scan"),
    "Recurrent": jaxrnn.Recurrent(nn.GRUCell(4)),
    "Stack": jaxrnn.Stack([jaxrnn.LSTM(6), jaxrnn.GRU(4)]),
    "Bidirectional": jaxrnn.Bidirectional(jaxrnn.RNN(2), jaxrnn.GRU(2)),
}
MODELS = {
    "SequenceClassifier": SequenceClassifier(
        7, 4, jaxrnn.LSTM(4), ("first", "last", "max", "mean")
    ),
    "LanguageModel": LanguageModel(7, 4, jaxrnn.LSTM(4), tie_embeddings=True),
}
WITHOUT_STEP = {"LSTM", "Bidirectional"}


def exported(function, *arguments):
    """What comes back from bytes; an axis of 3 is `b`, one of 5 is `t`."""
    names = {3: "b", 5: "t"}
    scope = export.SymbolicScope()

    def spec(leaf):
        axes = ", ".join(names.get(size, str(size)) for size in leaf.shape)
        shape = export.symbolic_shape(axes, scope=scope)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    specs = jax.tree.map(spec, arguments)
    written = export.export(jax.jit(function))(*specs).serialize()
    return export.deserialize(written).call


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # The same operations, compiled for other shapes.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


def cut(tree):
    """Fewer rows and steps: other numbers for `b` and `t`."""

    def leaf(array):
        index = [slice(2 if n == 3 else 4 if n == 5 else n) for n in array.shape]
        return array[tuple(index)]

    return jax.tree.map(leaf, tree)


@pytest.mark.parametrize("name", LAYERS | MODELS)
def test_any_number_of_rows_and_steps(name):
    model, x = (LAYERS | MODELS)[name], TOKENS if name in MODELS else X
    run = functools.partial(model.apply, model.init(jax.random.key(0), x))
    for ragged in [(), (LENGTHS,), (None, np.minimum(IDS, 1))]:
        call = exported(run, x, *ragged)
        assert_same(call(x, *ragged), run(x, *ragged))
        fewer = (x[:2], *(None if r is None else r[:2] for r in ragged))
        assert_same(call(*fewer), run(*fewer))
        if not ragged:
            assert_same(call(x[:2, :4]), run(x[:2, :4]))


@pytest.mark.parametrize("name", [*LAYERS, "LanguageModel"])
def test_with_a_state_in_and_out(name):
    model, x = (LAYERS | MODELS)[name], TOKENS if name in MODELS else X
    variables = model.init(jax.random.key(0), x)
    state = jax.tree.map(lambda leaf: leaf + 1, model.initial_state((3,)))

    def run(x, ids, state):
        return model.apply(variables, x, segment_ids=ids, state=state)

    call = exported(run, x, IDS, state)
    for arguments in [(x, IDS, state), cut((x, IDS, state))]:
        assert_same(call(*arguments), run(*arguments))


@pytest.mark.parametrize("name", sorted({*LAYERS, "LanguageModel"} - WITHOUT_STEP))
def test_a_step(name):
    model, x = (LAYERS | MODELS)[name], TOKENS if name in MODELS else X
    variables = model.init(jax.random.key(0), x)
    step = functools.partial(model.apply, variables, method="step")
    state = model.initial_state((3,))
    call = exported(step, x[:, 0], state)
    assert_same(call(x[:, 0], state), step(x[:, 0], state))
    assert_same(call(*cut((x[:, 0], state))), step(*cut((x[:, 0], state))))


def test_chunks_need_a_number_of_steps():
    layer = jaxrnn.GRU(4, remat_chunk=2)
    variables = layer.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"needs a number of steps, got t: .*=None"):
        exported(functools.partial(layer.apply, variables), X)


def test_sizes_are_still_checked():
    with pytest.raises(TypeError, match="batch_shape must be an integer, got 'b'"):
        jaxrnn.GRU(4).initial_state(("b",))
    assert jnp.shape(jaxrnn.GRU(4).initial_state((2,))[0]) == (2, 4)
