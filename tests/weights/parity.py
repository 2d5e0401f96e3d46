"""The comparison of a layer of this library with one of another, by two functions of
the same arguments that each compute outputs and final states."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn

B, T, D, H = 3, 6, 5, 4
TOLERANCE = 1e-10  # In float64: a few hundred roundings of 1e-16.


def inputs(rng):
    return rng.normal(size=(B, T, D))


def randomized(tree, rng):
    """Weights other than those that a library begins with: biases are zero there."""
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, tree)


def ours(layer):
    """A function of the variables and inputs: outputs, and the `h` of all cells."""

    def run(variables, x):
        outputs, state = layer.apply(variables, x)
        return outputs, [cell.h if hasattr(cell, "h") else cell for cell in state]

    return run


def variables_of(layer, rng):
    x = jnp.zeros((1, T, D), jnp.float64)
    return randomized(layer.init(jax.random.key(0), x), rng)


def value_and_gradients(run, weights, x, rng_seed=0):
    """Outputs with final states, and the gradients by weights and inputs of a sum in
    which each number has another factor."""
    rng = np.random.default_rng(rng_seed)

    def loss(weights, x):
        found = jax.tree.leaves(run(weights, x))
        return sum(jnp.sum(a * rng.normal(size=a.shape)) for a in found), found

    gradients, found = jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, x)
    return found, *gradients


def assert_close(found, expected, tolerance=TOLERANCE):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_same_numbers(
    layer, variables, theirs, weights, load, x, tolerance=TOLERANCE
):
    """Outputs, final states and all gradients; `load` makes our variables of their
    weights, and so of their gradients: but for what it adds, which is no gradient."""
    expected, their_gradients, x_gradient = value_and_gradients(theirs, weights, x)
    found, gradients, our_x_gradient = value_and_gradients(ours(layer), variables, x)
    assert_close(found, expected, tolerance)
    assert_close(our_x_gradient, x_gradient, tolerance)
    zeros = jax.tree.map(np.zeros_like, their_gradients)
    moved = jax.tree.map(np.subtract, load(their_gradients), load(zeros))
    assert jax.tree.structure(moved) == jax.tree.structure(gradients)
    assert_close(gradients, moved, tolerance)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def layer_of(kind, **options):
    """In float64: `lstm`, `gru`, `reset-before`, `tanh` or `relu`."""
    options["param_dtype"] = jnp.float64
    if kind == "lstm":
        return jaxrnn.LSTM(H, **options)
    if kind == "gru":
        return jaxrnn.GRU(H, **options)
    if kind == "reset-before":
        return jaxrnn.Recurrent(jaxrnn.ResetBeforeGRUCell(H, **options))
    return jaxrnn.RNN(H, activation=kind, **options)
