"""The cells that the command lines name: all there are, in both programs' models."""

from typing import get_args

import jax
import jax.numpy as jnp
import pytest

from experiments.charlm import config as charlm
from experiments.charlm import model as charlm_model
from experiments.harness.cells import LAYERS, CellName, has_recurrent_matrix
from experiments.imdb import model as imdb
from jaxrnn import cells

TOKENS = jax.ShapeDtypeStruct((2, 6), jnp.int32)
KEY = jax.random.key(0)


def cell_type(name):
    return LAYERS[name](8).cell_type


def test_every_cell_has_a_name():
    assert [*LAYERS] == [*get_args(CellName)]
    named = {cell_type(name) for name in LAYERS}
    public = {getattr(cells, name) for name in cells.__all__ if name.endswith("Cell")}
    assert public - named == {cells.Cell, cells.LinearCell, cells.ConvLSTMCell}


@pytest.mark.parametrize("name", get_args(CellName))
def test_both_models_take_every_cell(name):
    settings = charlm.Settings(cell=name, embed=3, hidden=4, layers=2)
    model = charlm_model.make_model(settings, vocab_size=7)
    (logits, state), variables = jax.eval_shape(model.init_with_output, KEY, TOKENS)
    assert logits.shape == (2, 6, 7)
    assert len(state) == 2
    weights = variables["params"]["encoder"]["l0"]
    assert ("w_h" in weights) == has_recurrent_matrix(name)

    # Its steps too, with the table that generation reads.
    def step(variables, token, state):
        table = model.apply(variables, method="input_projection_table")
        return model.apply(
            variables, token, state, input_projection_table=table, method="step"
        )

    token = jax.ShapeDtypeStruct((2,), jnp.int32)
    logits, after = jax.eval_shape(step, variables, token, state)
    assert logits.shape == (2, 7)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)

    settings = imdb.Settings(cell=name, embed=3, hidden=4)
    model = imdb.make_model(settings, vocab_size=7)
    logits, _ = jax.eval_shape(model.init_with_output, KEY, TOKENS)
    assert logits.shape[0] == 2


def test_weights_of_a_matrix_that_there_is_not_cannot_be_dropped():
    with pytest.raises(ValueError, match="--cell min-gru has no matrix"):
        charlm.Settings(cell="min-gru", weight_drop=0.1).check()
