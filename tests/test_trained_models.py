"""What a notebook or a script does with a trained model, and gets wrong."""

import re

import numpy as np
import pytest

from experiments.reader import Reader
from experiments.writer import Writer


def test_a_reader_judges_a_list_of_texts(smoke):
    reader = Reader.load(str(smoke[0]))
    found = reader.probabilities(reader.encode(["good", "bad", "good"]))
    assert found.shape == (3,)
    assert found[0] == found[2] != found[1]
    with pytest.raises(TypeError, match="must be a list of texts, got 'good'"):
        reader.encode("good")


@pytest.mark.parametrize(
    ("length", "texts", "message"),
    [
        (-1, 1, "length must be at least 0, got -1"),
        (10, 0, "texts must be at least 1, got 0"),
    ],
)
def test_a_writer_says_what_it_cannot_write(charlm_smoke, length, texts, message):
    trained = Writer.load(str(charlm_smoke[0]))
    [[first], *_] = trained.write(trained.beginning, 3, 1, seed=0)
    assert np.isin(list(first), trained.vocab.tokens).all()
    with pytest.raises(ValueError, match=re.escape(message)):
        next(trained.write(trained.beginning, length, texts, seed=0))
