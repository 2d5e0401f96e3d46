"""The table of calls in docs/migrating.md, and the names that they refer to."""

import os
import re
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_nn

import jaxrnn

D, H = 32, 64
PAGE = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text()
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, D)).astype(np.float32)
LENGTHS = np.array([5, 2, 3])
VALID = np.arange(5) < LENGTHS[:, None]
IDS = np.array([[1, 1, 1, 2, 2], [1, 2, 2, 2, 3], [1, 1, 1, 1, 1]])


def rows(*frameworks):
    """(framework, there, here) of their rows; the cells hold nothing but code."""
    table = PAGE.split("## Calls")[1].split("\n## ")[0]
    found = re.findall(r"^\| (\w+) \| `([^`]*)` \| `([^`]*)` \|$", table, re.MULTILINE)
    return [row for row in found if row[0] in frameworks]


def names(framework):
    """What the calls of a row may refer to: there, and here."""
    here = {**vars(jaxrnn), "x": jnp.asarray(X), "lengths": LENGTHS, "mask": VALID}
    here |= {"ids": IDS}
    if framework == "PyTorch":
        torch = pytest.importorskip("torch")
        rnn = torch.nn.utils.rnn
        there = {"nn": torch.nn, "pack_padded_sequence": rnn.pack_padded_sequence}
        there |= {"x": torch.from_numpy(X), "lengths": torch.from_numpy(LENGTHS)}
        return there, here
    if framework == "Keras":
        os.environ["KERAS_BACKEND"] = "jax"
        layers = pytest.importorskip("keras").layers
        return {**vars(layers), "x": X, "mask": VALID}, here
    if framework == "Flax":
        cells = {name: flax_nn.GRUCell(H) for name in ("cell", "a", "b")}
        return {"nn": flax_nn, "x": X, "lengths": LENGTHS, **cells}, here | cells
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        hk = pytest.importorskip("haiku")
    return {"hk": hk, "x": jnp.asarray(X)}, here


def evaluate(framework, code, side, **more):
    """The value of a call that stands `there` or `here`; `more` are names in it."""
    there, here = names(framework)
    return eval(code, (there if side == "there" else here) | more)


def assert_same(there, here):
    # float32, five steps, sums of at most 128 products.
    np.testing.assert_allclose(here, np.asarray(there), rtol=1e-4, atol=1e-5)


def compare(framework, there, here, layers, calls):
    """Both sides of a row: what stands here is among `layers`, which says how the two
    values compare, or with its framework among `calls`, which evaluates them too."""
    if here in layers:
        theirs = evaluate(framework, there, "there")
        layers[here](theirs, evaluate(framework, here, "here"))
    else:
        calls[framework, here](there, here)
