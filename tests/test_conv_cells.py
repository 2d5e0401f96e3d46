"""The convolutional LSTM in one, two and three dimensions, against the loop of the
paper and Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrnn import Layer, Recurrent, Stack
from jaxrnn.cells import ConvLSTMCell
from tests import oracles_structured

pytestmark = pytest.mark.slow

D, H, T = 2, 3, 4
SPACES = {
    "1d": ((5,), (3,)),
    "2d": ((4, 3), (3, 2)),  # a kernel of 2 reaches further behind than before
    "3d": ((2, 3, 2), (1, 3, 3)),
}
IDS = np.array([[1, 1, 0, 2], [1, 0, 1, 0]])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_equals_the_paper_on_packed_rows(space, reverse, rng, x64):
    size, kernel = SPACES[space]
    layer = Recurrent(ConvLSTMCell(H, kernel_size=kernel, param_dtype=jnp.float64))
    x = rng.normal(size=(2, T, *size, D))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes["params"]["cell"]) == {
        "w_x": (*kernel, D, 4 * H),
        "w_h": (*kernel, H, 4 * H),
        "b": (4 * H,),
    }
    variables = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)
    weights = variables["params"]["cell"]
    state = layer.cell.initialize_carry(jax.random.key(0), (2, *size, D))
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), state)

    @jax.jit
    def run(variables, x):
        def loss(variables, x):
            outputs, final = layer.apply(
                variables, x, state=(state,), segment_ids=IDS, reverse=reverse
            )
            return jnp.sum(outputs**2), (outputs, final)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables, x)

    (_, (outputs, ((h, c),))), _ = run(variables, x)
    for r, ids in enumerate(IDS):
        numbers = sorted(set(ids) - {0}, reverse=reverse)
        for number in numbers:
            steps = np.flatnonzero(ids == number)[:: -1 if reverse else 1]
            before = jax.tree.map(lambda leaf, r=r: leaf[r], state)
            if number > 1:
                before = jax.tree.map(np.zeros_like, before)
            expected, final = oracles_structured.conv_lstm(x[r, steps], before, weights)
            np.testing.assert_allclose(outputs[r, steps], expected, atol=1e-12)
        np.testing.assert_allclose(h[r], final[0], atol=1e-12)
        np.testing.assert_allclose(c[r], final[1], atol=1e-12)
        assert not outputs[r, ids == 0].any()

    padding = np.expand_dims(IDS == 0, tuple(range(2, x.ndim)))
    nans, zeros = (run(variables, np.where(padding, v, x)) for v in (np.nan, 0.0))
    jax.tree.map(np.testing.assert_array_equal, nans, zeros)


def test_equals_flax(rng):
    x = rng.normal(size=(2, T, 5, 4, D)).astype(np.float32)
    ours = Recurrent(ConvLSTMCell(H, kernel_size=(3, 3)))
    theirs = nn.RNN(nn.ConvLSTMCell(H, kernel_size=(3, 3)))
    variables = theirs.init(jax.random.key(0), x)
    weights = variables["params"]["cell"]

    def reordered(kernel):  # theirs lie in the order i g f o
        i, g, f, o = jnp.split(kernel, 4, axis=-1)
        return jnp.concatenate([i, f, g, o], axis=-1)

    # Theirs adds 1 to the forget gate at every step.
    b = reordered(weights["ih"]["bias"] + weights["hh"]["bias"]).at[H : 2 * H].add(1)
    params = {
        "w_x": reordered(weights["ih"]["kernel"]),
        "w_h": reordered(weights["hh"]["kernel"]),
        "b": b,
    }
    outputs, _ = ours.apply({"params": {"cell": params}}, x)
    np.testing.assert_allclose(outputs, theirs.apply(variables, x), atol=1e-6)


def test_steps_equal_the_whole_and_layers_stack(rng):
    x = rng.normal(size=(2, T, 5, D)).astype(np.float32)
    layer = Layer(
        ConvLSTMCell, features=H, num_layers=2, cell_options={"kernel_size": (3,)}
    )
    by_hand = Stack([Recurrent(ConvLSTMCell(H, kernel_size=(3,))) for _ in range(2)])
    (outputs, final), variables = layer.init_with_output(jax.random.key(0), x)
    p = variables["params"]
    renamed = {f"layers_{k}": {"cell": p[f"l{k}"]} for k in range(2)}
    expected, _ = by_hand.apply({"params": renamed}, x)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    state = jax.tree.map(jnp.zeros_like, final)
    for t in range(T):
        y, state = layer.apply(variables, x[:, t], state, method="step")
        np.testing.assert_allclose(outputs[:, t], y, atol=1e-6)


@pytest.mark.parametrize("kernel", [(), (1, 1, 1, 1), (0,)])
def test_bad_kernels(kernel):
    with pytest.raises(ValueError, match="kernel_size must"):
        ConvLSTMCell(H, kernel_size=kernel)
