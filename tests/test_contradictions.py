"""Command lines that contradict themselves are refused before any work is done."""

import pytest

from tests.test_imdb import assert_refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predict"], "--predict needs at least one text, or -"),
        (["--explain"], "--explain needs at least one text, or -"),
    ],
)
def test_of_the_sentiment_program(program_run, tmp_path, arguments, message):
    path = tmp_path / "run"
    assert_refused(program_run("--workdir", path, *arguments), message)
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text"], "--text needs at least one file or folder"),
    ],
)
def test_of_the_character_model(charlm_run, tmp_path, arguments, message):
    path = tmp_path / "run"
    assert_refused(charlm_run("--workdir", path, *arguments), message)
    assert not path.exists()


def test_a_text_may_be_any_word(program_run, tmp_path):
    """As one that stands for no value elsewhere."""
    result = program_run("--workdir", tmp_path, "--predict", "None")
    assert_refused(result, f"there is no trained model in {tmp_path}")
