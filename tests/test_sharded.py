"""Layers whose rows several devices share, under `jax.jit` and in `jax.shard_map`: each
device computes its own rows, and the numbers are those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import segments
from jaxrnn.products import product

pytestmark = pytest.mark.slow

ROWS = P("data")
LAYERS = {
    "LSTM": jaxrnn.LSTM(4, num_layers=2, bidirectional=True),
    "projected": jaxrnn.LSTM(4, proj_size=2),
    "GRU": jaxrnn.GRU(4),
    "RNN": jaxrnn.RNN(4),
    "scan": jaxrnn.GRU(4, backend="scan"),
    "chunks": jaxrnn.GRU(4, remat_chunk=2),
    "bfloat16": jaxrnn.GRU(4, dtype=jnp.bfloat16),
}


@pytest.fixture
def x(rng):
    return rng.normal(size=(4, 5, 3)).astype(np.float32)


def mesh(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,))


def loss(variables, layer, x, ids):
    outputs, state = layer.apply(variables, x, segment_ids=ids)
    total = sum((leaf**2).sum() for leaf in jax.tree.leaves(state))
    return (outputs**2).sum().astype(jnp.float32) + total, outputs


def both(layer):
    """Gradients and outputs, as a function of variables, inputs and segment ids."""

    def run(variables, x, ids):
        gradient = jax.grad(loss, has_aux=True)
        return gradient(variables, layer, x, ids)

    return run


def assert_same(found, expected):
    # Of some dozen terms in another order; bfloat16 rounds each product on its own.
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        tolerance = 1e-5 if a.dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(
            a.astype(np.float32), b.astype(np.float32), rtol=tolerance, atol=tolerance
        )


IDS = np.array([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 3, 0]])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("padded", [False, True])
def test_under_jit_no_device_computes_the_rows_of_others(name, padded, x):
    layer, ids = LAYERS[name], IDS if padded else None
    variables = layer.init(jax.random.key(0), x)
    expected = both(layer)(variables, x, ids)
    rows = NamedSharding(mesh(AxisType.Auto), ROWS)
    everywhere = NamedSharding(mesh(AxisType.Auto), P())
    given = (
        jax.device_put(variables, everywhere),
        jax.device_put(x, rows),
        None if ids is None else jax.device_put(ids, rows),
    )
    compiled = jax.jit(both(layer)).lower(*given).compile()
    gradients, outputs = compiled(*given)
    assert outputs.sharding.is_equivalent_to(rows, outputs.ndim)
    assert "all-gather" not in compiled.as_text()
    assert_same((gradients, outputs), expected)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "bfloat16"])
def test_where_types_know_of_devices(name, x):
    """A mesh with explicit axes, and `jax.shard_map` that checks what varies."""
    layer = LAYERS[name]
    variables = layer.init(jax.random.key(0), x)
    expected = both(layer)(variables, x, IDS)
    explicit = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        rows = NamedSharding(explicit, ROWS)
        given = variables, jax.device_put(x, rows), jax.device_put(IDS, rows)
        gradients, outputs = jax.jit(both(layer))(*given)
        assert outputs.sharding.spec[0] == "data"
        assert_same((gradients, outputs), expected)
        mapped = jax.shard_map(
            both(layer), in_specs=(P(), ROWS, ROWS), out_specs=(P(), ROWS)
        )
        assert_same(jax.jit(mapped)(*given), expected)


WHERE_TYPES_KNOW = {
    "explicit axes": lambda run, out: run,
    "shard_map": lambda run, out: jax.shard_map(
        run, in_specs=(P(), ROWS), out_specs=out
    ),
}


@pytest.mark.parametrize("place", WHERE_TYPES_KNOW.values(), ids=WHERE_TYPES_KNOW)
def test_half_precision_has_no_derivatives_of_weights_there(place, x):
    def total(w, x):
        return product(x, w, jnp.bfloat16).sum()

    def refused(run, weights):
        with pytest.raises(ValueError, match=r"no derivatives .* check_vma=False"):
            jax.make_jaxpr(place(run, P()))(weights, rows)

    w = np.array([[1, 2], [4, 8], [-1, 3]], np.float32)
    explicit = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        rows = jax.device_put(np.round(x), NamedSharding(explicit, ROWS))
        found = jax.jit(place(lambda w, x: product(x, w, jnp.bfloat16), ROWS))(w, rows)
        np.testing.assert_array_equal(found, np.round(x) @ w)
        found = jax.jit(place(jax.grad(total, argnums=1), ROWS))(w, rows)
        np.testing.assert_array_equal(found, np.full(x.shape, [3, 12, 2]))
        refused(jax.grad(total), w)
        for backend in ("auto", "scan"):
            layer = jaxrnn.GRU(4, dtype=jnp.bfloat16, backend=backend)
            shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
            variables = jax.tree.map(
                lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes
            )
            refused(lambda v, x, layer=layer: both(layer)(v, x, None)[0], variables)


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
def test_pooling_stays_where_the_rows_are(how, x):
    rows = NamedSharding(mesh(AxisType.Auto), ROWS)

    def run(x, ids):
        return jax.value_and_grad(lambda x: (segments.pool(x, ids, how, 3) ** 2).sum())(
            x
        )

    given = jax.device_put(x, rows), jax.device_put(IDS, rows)
    compiled = jax.jit(run).lower(*given).compile()
    assert "all-gather" not in compiled.as_text()
    assert_same(compiled(*given), run(jnp.asarray(x), jnp.asarray(IDS)))


@pytest.mark.parametrize("name", ["LSTM", "scan"])
def test_a_state_of_zeros_may_be_made_in_there(name, x):
    """As the caller's own it is not known to vary over the devices."""
    layer = LAYERS[name]
    variables = layer.init(jax.random.key(0), x)

    def run(variables, x):
        return layer.apply(variables, x, state=layer.initial_state(x.shape[:1]))[0]

    mapped = jax.shard_map(
        run, mesh=mesh(AxisType.Auto), in_specs=(P(), ROWS), out_specs=ROWS
    )
    assert_same(jax.jit(mapped)(variables, x), run(variables, x))
