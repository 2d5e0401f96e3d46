"""Every cell in both programs, from the command line to the results."""

import json
import math
from typing import get_args

import pytest

from experiments.harness.cells import CellName
from jaxrnn.text import Vocab

pytestmark = pytest.mark.slow
# Half of the cells, each in one of the programs: all of them in both pass, which takes
# five minutes. The contract of each cell is in test_contract.
CELLS = get_args(CellName)


def finished(run, path, cell):
    """The results and the epochs of a smoke run with a cell."""
    code, _, err = run("--smoke", "--cell", cell, "--workdir", path)
    assert (code, err) == (0, "")
    results = json.loads((path / "results.json").read_text())
    assert results["cell"] == cell
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return results, [json.loads(line) for line in lines]


@pytest.mark.parametrize("cell", CELLS[::6])
def test_the_sentiment_model_learns_with(cell, tmp_path, program_run):
    results, epochs = finished(program_run, tmp_path, cell)
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    # Of 40 texts; by chance so many are right once in 300. The least seen is 82.5%.
    assert results["test_accuracy"] > 0.7


@pytest.mark.parametrize("cell", CELLS[1::3])
def test_the_character_model_learns_with(cell, tmp_path, charlm_run):
    _, epochs = finished(charlm_run, tmp_path, cell)
    first, *_, last = (line["validation_nats_window_64"] for line in epochs)
    # The ordinary differential equations with their small steps learn slowly.
    assert last < first
    assert last < 0.98 * math.log(len(Vocab.load(tmp_path / "vocab.txt")))
