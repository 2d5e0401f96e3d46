"""Parameters that carry the names of the mesh axes that they are split over."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

import jaxrnn
from jaxrnn import regularizers, torch_weights
from jaxrnn.models import LanguageModel, SequenceClassifier

X = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
zeros = nn.initializers.zeros_init()
CELLS = {
    name: kind
    for name, kind in vars(jaxrnn.cells).items()
    if isinstance(kind, type) and issubclass(kind, jaxrnn.cells.Cell)
    if name not in ("Cell", "LinearCell")
}
TOKENS = np.random.default_rng(1).integers(9, size=(3, 5))
LENGTHS = np.array([5, 3, 0])


def split(init, *names):
    return nn.with_partitioning(init, names)


def options():
    return {
        "kernel_init": split(nn.initializers.lecun_normal(), None, "model"),
        "recurrent_init": split(nn.initializers.orthogonal(), None, "model"),
        "bias_init": split(nn.initializers.normal(), "model"),
    }


CASES = {
    "LSTM": (lambda **o: jaxrnn.LSTM(4, num_layers=2, proj_size=2, **o), X),
    "GRU": (lambda **o: jaxrnn.GRU(4, bidirectional=True, **o), X),
    "RNN by scan": (lambda **o: jaxrnn.RNN(4, backend="scan", **o), X),
    "LSTM in chunks": (lambda **o: jaxrnn.LSTM(4, remat_chunk=2, **o), X),
    "Recurrent": (lambda **o: jaxrnn.Recurrent(jaxrnn.ResetBeforeGRUCell(4, **o)), X),
    "Stack": (lambda **o: jaxrnn.Stack([jaxrnn.GRU(4, **o), jaxrnn.LSTM(4, **o)]), X),
    "SequenceClassifier": (
        lambda **o: SequenceClassifier(9, 6, jaxrnn.LSTM(4, **o)),
        TOKENS,
    ),
    "LanguageModel": (lambda **o: LanguageModel(9, 6, jaxrnn.GRU(4, **o)), TOKENS),
}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("LSTM", "SequenceClassifier")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ],
)
def test_parameters_are_split_by_their_metadata(name):
    make, x = CASES[name]
    layer = make(**options())
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    key = jax.random.key(0)
    shardings = nn.get_sharding(jax.eval_shape(layer.init, key, x), mesh)
    variables = jax.jit(layer.init, out_shardings=shardings)(key, x)
    whole = nn.meta.unbox(jax.device_get(variables))
    split_leaves = 0
    for path, leaf in jax.tree.leaves_with_path(nn.meta.unbox(variables)):
        # Those of the cells: a half of the gates on each device.
        if path[-1].key in ("w_x", "w_h", "w_p", "b", "b_n"):
            last = (None,) * (leaf.ndim - 1) + ("model",)
            assert leaf.sharding.spec == PartitionSpec(*last)
            assert leaf.addressable_shards[0].data.shape[-1] == leaf.shape[-1] // 2
            split_leaves += 1
    assert split_leaves >= 3

    def loss(variables):
        results = layer.apply(variables, x, LENGTHS)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(results)), results

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, found), gradients = run(variables)
    (_, expected), wanted = run(whole)
    # Sums over two devices, in another order.
    near = {"rtol": 1e-4, "atol": 1e-5}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), found, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **near),
        nn.meta.unbox(gradients),
        wanted,
    )
    plain = make().init(key, x)
    assert jax.tree.structure(plain) == jax.tree.structure(whole)


def test_metadata_does_not_change_the_numbers():
    boxed = jaxrnn.LSTM(4, **options()).init(jax.random.key(0), X)
    plain = jaxrnn.LSTM(4, bias_init=nn.initializers.normal()).init(
        jax.random.key(0), X
    )
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(boxed), plain)


def test_weights_in_boxes_go_to_torch_and_are_dropped():
    layer = jaxrnn.LSTM(4, **options())
    boxed = layer.init(jax.random.key(0), X)
    plain = nn.meta.unbox(boxed)
    jax.tree.map(
        np.testing.assert_array_equal,
        torch_weights.to_torch(boxed, layer),
        torch_weights.to_torch(plain, layer),
    )
    dropped = regularizers.weight_drop(boxed, 0.5, jax.random.key(1))
    found = nn.meta.unbox(dropped)["params"]["l0"]
    assert 0 < (found["w_h"] == 0).mean() < 1
    np.testing.assert_array_equal(found["w_x"], plain["params"]["l0"]["w_x"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CELLS.keys() - {"ConvLSTMCell"}))
def test_every_cell_takes_initializers_with_metadata(name):
    """The parameters are those without it, in boxes."""
    plain = {"recurrent_init": nn.initializers.orthogonal()}
    plain |= {"kernel_init": nn.initializers.normal(), "bias_init": zeros}
    boxed = {key: split(init, None) for key, init in plain.items()}
    found, expected = (
        jaxrnn.Recurrent(CELLS[name](6, **options)).init(jax.random.key(0), X)
        for options in (boxed, plain)
    )
    found = nn.meta.unbox(found)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
