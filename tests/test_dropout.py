"""Dropout between layers: where, when and of what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn


class Identity(nn.Module):
    def __call__(self, x, *ragged, **options):
        return x, ()

    def step(self, x, state):
        return x, state

    def initial_state(self, batch_shape):
        return ()


def test_dropout_acts_between_layers_in_training_only():
    layer = jaxrnn.RNN(64, num_layers=2, dropout=0.25)
    x = np.ones((8, 5, 3), np.float32)
    variables = layer.init(jax.random.key(0), x)

    def run(seed, train=True):
        key = jax.random.key(seed)
        return layer.apply(variables, x, train=train, rngs={"dropout": key})[0]

    np.testing.assert_array_equal(run(0), run(0))
    assert (run(0) != run(1)).mean() > 0.9
    expected, _ = layer.apply(variables, x)
    np.testing.assert_array_equal(run(0, train=False), expected)

    # With the identity as second layer the dropped units show: of 8 * 5 * 64 = 2,560
    # a quarter, give or take five standard errors of 0.86%.
    outputs = jaxrnn.Stack([jaxrnn.RNN(64), Identity()], dropout=0.25).apply(
        {"params": {"layers_0": {"l0": variables["params"]["l0"]}}},
        x,
        train=True,
        rngs={"dropout": jax.random.key(2)},
    )[0]
    assert abs((outputs == 0).mean() - 0.25) < 0.043
    # The last layer's outputs are not dropped.
    assert not (run(0) == 0).any()


def test_dropout_never_acts_on_the_inputs_and_differs_at_each_step():
    ones = np.ones((4, 50, 20), np.float32)
    stack = jaxrnn.Stack([Identity(), Identity()], dropout=0.5)
    dropped, _ = stack.apply({}, ones, train=True, rngs={"dropout": jax.random.key(0)})
    # Dropped once, not twice: half of 4,000, give or take five standard errors.
    assert abs((dropped == 0).mean() - 0.5) < 0.04
    assert (dropped[:, 0] != dropped[:, 1]).mean() > 0.4

    nested = jaxrnn.Stack([stack, Identity()])
    trained, _ = nested.apply({}, ones, train=True, rngs={"dropout": jax.random.key(0)})
    assert (trained == 0).any()
    assert (nested.apply({}, ones)[0] == 1).all()


def test_locked_dropout_drops_the_same_features_at_all_steps_of_a_row():
    ones = np.ones((200, 5, 20), np.float32)
    stack = jaxrnn.Stack([Identity(), Identity()], dropout=0.25, locked_dropout=True)
    rngs = {"dropout": jax.random.key(0)}
    dropped = np.asarray(stack.apply({}, ones, train=True, rngs=rngs)[0])
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1], ones.shape))
    # A quarter of 4,000, give or take five standard errors of 0.68%; rows differ.
    assert abs((dropped[:, 0] == 0).mean() - 0.25) < 0.034
    assert (dropped[0] != dropped[1]).any()
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.75, rtol=1e-6)
    assert (stack.apply({}, ones)[0] == 1).all()


def test_a_layer_of_several_locks_the_dropout_between_them():
    layer = jaxrnn.RNN(16, num_layers=2, dropout=0.5, locked_dropout=True)
    x = np.ones((3, 6, 4), np.float32)
    variables = layer.init(jax.random.key(0), x)
    # The second layer has no memory and one unit reads one feature: what it dropped
    # shows at each step.
    variables["params"]["l1"]["w_x"] = jnp.eye(16)
    variables["params"]["l1"]["w_h"] = jnp.zeros((16, 16))
    rngs = {"dropout": jax.random.key(1)}
    outputs = np.asarray(layer.apply(variables, x, train=True, rngs=rngs)[0])
    dropped = outputs == 0
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1], (3, 6, 16)))
    # Of 48, half, give or take five standard errors of 7.2%.
    assert abs(dropped[:, 0].mean() - 0.5) < 0.36


class Recorded(Identity):
    """Sows what it reads."""

    @nn.compact
    def __call__(self, x, *ragged, **options):
        self.sow("intermediates", "x", x)
        return x, ()


@pytest.mark.parametrize("ids", [None, np.array([[1, 1, 2]])])
def test_locked_dropout_of_images_is_locked_over_time(ids):
    """Not over their width, which is where the time of a sequence of vectors is."""
    conv = jaxrnn.Recurrent(jaxrnn.cells.ConvLSTMCell(2))
    layer = jaxrnn.Stack([conv, Recorded()], dropout=0.5, locked_dropout=True)
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4, 2)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x)
    _, seen = layer.apply(
        {"params": variables["params"]},
        x,
        segment_ids=ids,
        train=True,
        rngs={"dropout": jax.random.key(0)},
        mutable="intermediates",
    )
    (read,) = jax.tree.leaves(seen)
    dropped = np.asarray(read == 0)
    assert 0.2 < dropped.mean() < 0.8
    np.testing.assert_array_equal(dropped[:, 0], dropped[:, 1])
    assert (dropped[:, 0] == dropped[:, 2]).all() == (ids is None)
    assert (dropped[..., 0, :] != dropped[..., 1, :]).any()


def test_locked_dropout_of_a_language_model_is_that_of_each_sequence():
    model = jaxrnn.models.LanguageModel(
        7, 3, jaxrnn.LSTM(64), dropout=0.5, locked_dropout=True
    )
    tokens, ids = np.ones((1, 4), int), np.array([[1, 1, 2, 2]])
    variables = model.init(jax.random.key(0), tokens)
    outputs, _ = model.apply(
        variables,
        tokens,
        segment_ids=ids,
        train=True,
        rngs={"dropout": jax.random.key(0)},
        method="pre_logits",
    )
    dropped = np.asarray(outputs[0] == 0)
    np.testing.assert_array_equal(dropped[[0, 2]], dropped[[1, 3]])
    assert 0.3 < (dropped[0] != dropped[2]).mean() < 0.7
