"""`docs/cells.md`: every cell is in it, with the number of weights that it has."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.harness.cells import LAYERS
from jaxrnn import cells

ROOT = Path(__file__).parent.parent
ROWS = [
    [column.strip() for column in line.strip("|\n").split("|")]
    for line in (ROOT / "docs" / "cells.md").read_text().splitlines()
    if re.match(r"\|.*`\w+Cell`", line)
]


def test_every_cell_is_there_once():
    named = [row[1].strip("`") for row in ROWS]
    public = {name for name in cells.__all__ if name.endswith("Cell")}
    assert sorted(named) == sorted(public - {"Cell", "LinearCell"})


@pytest.mark.parametrize("row", [row for row in ROWS if row[0]], ids=lambda row: row[0])
def test_names_and_numbers_of_weights(row):
    name, cell, _, _, formula, time, _ = row
    d, h = 12, 8
    layer = LAYERS[name.strip("`")](h)
    assert layer.cell_type.__name__ == cell.strip("`")
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((2, d)))
    number = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    terms = [
        float(factor or 1) * (d if "d" in of else 1) * h ** (2 if "²" in of else 1)
        for factor, of in re.findall(r"([\d.]*)(dh|h²|h)", formula)
    ]
    assert number == sum(terms)
    # Relative to the LSTM: measured for every cell.
    assert float(time) == 1 if name == "`lstm`" else 0 < float(time) < 10
