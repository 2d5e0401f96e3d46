"""A trained character model, as a notebook or a script uses it."""

import re

import numpy as np
import pytest

from experiments.charlm import generator
from experiments.charlm.generator import Writer
from jaxrnn import sampling


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


def test_texts_do_not_depend_on_the_devices_that_share_them(charlm_smoke, monkeypatch):
    """With `stop` and `top_k` there is one: others would wait for it."""
    trained = Writer.load(charlm_smoke[0])
    devices, stream = [], sampling.stream

    def watched(step, decode_state, length, key, **options):
        devices.append(len(key.sharding.device_set))
        return stream(step, decode_state, length, key, **options)

    monkeypatch.setattr(sampling, "stream", watched)

    def write(**options):
        [*pieces] = trained.write(trained.beginning, 20, 6, seed=0, **options)
        return pieces

    alone = write()
    monkeypatch.setattr(generator, "ROWS", 3)
    assert write() == alone
    assert len({text for [*texts] in alone for text in texts}) > 1
    write(top_k=5)
    write(stop=[0, 1])
    assert devices == [1, 2, 1, 1]


@pytest.mark.parametrize("piece", [10, 2])
def test_a_text_ends_with_its_stop_string(charlm_smoke, monkeypatch, piece):
    """Also where it is cut into pieces, some of them after the end of others."""
    monkeypatch.setattr(generator, "PIECE", piece)
    trained = Writer.load(charlm_smoke[0])

    def write(**options):
        pieces = trained.write(trained.beginning, 25, 3, seed=0, **options)
        return ["".join(parts) for parts in zip(*pieces, strict=True)]

    whole, stop = write(), ". "
    found = write(stop=trained.vocab.encode(list(stop)))
    assert found == [text[: text.index(stop) + len(stop)] for text in whole]
    assert len({len(text) for text in found}) > 1
