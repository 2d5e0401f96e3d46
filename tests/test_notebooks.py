"""The notebooks: they run from clean, and what is committed is a whole, real run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "experiments" / "notebooks"
BASICS = "RNN_basics"
SENTIMENT = "Sentiment_analysis_on_IMDB_with_LSTMs"
CHARACTERS = "Character_level_language_model"
NOTEBOOKS = pytest.mark.parametrize("name", [BASICS, SENTIMENT, CHARACTERS])


def read(name):
    """A notebook and its code cells."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures(cells):
    return sum("image/png" in out.get("data", {}) for c in cells for out in c.outputs)


def printed(cells, stream="stdout"):
    outputs = [out for cell in cells for out in cell.outputs]
    return "".join(out.text for out in outputs if out.get("name") == stream)


@NOTEBOOKS
def test_it_runs_from_clean(name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXRNN_NOTEBOOK", "short")
    # Named directories must have the data; others take their place only at home.
    monkeypatch.setenv("HOME", str(tmp_path))
    # Nothing listens there, so the texts are the same with and without a network.
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    notebook, cells = read(name)
    committed = figures(cells)
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert figures(cells) == committed


@NOTEBOOKS
def test_what_is_committed_is_a_whole_run(name):
    _, cells = read(name)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert figures(cells) >= 4
    assert not printed(cells, "stderr")
    assert not any(out.output_type == "error" for c in cells for out in c.outputs)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 600_000


@NOTEBOOKS
def test_it_tells_nothing_of_the_machine_it_ran_on(name):
    _, cells = read(name)
    text = "".join(cell.source for cell in cells) + printed(cells)
    paths = re.findall(r"/(?:home|root|tmp|opt|usr|work|mnt|Users)/\S+", text)
    assert paths == []


@pytest.mark.parametrize(
    ("name", "pattern", "low", "high"),
    [
        (BASICS, r"LSTM +error of the last 50 steps: (\S+)", 0, 0.005),
        (BASICS, r"RNN +error of the last 50 steps: (\S+)", 0.02, 0.2),
        (SENTIMENT, r"test accuracy (\S+)% of 25,000 reviews \(imdb_reviews", 84, 92),
        (CHARACTERS, r"(?s)tiny_shakespeare.*epoch 4: .*?, (\S+) held", 1.5, 1.75),
    ],
    ids=["lstm", "rnn", "sentiment", "characters"],
)
def test_the_committed_run_is_of_the_full_setting(name, pattern, low, high):
    [value] = re.findall(pattern, printed(read(name)[1]))
    assert low <= float(value) <= high
