"""What the character model writes is shown as it is made."""

import io
import sys

from experiments.charlm import generator
from experiments.charlm import inference as charlm_inference
from experiments.charlm.generator import Writer
from experiments.charlm.inference import Drawing

PROMPT = "8+6=14. "


def test_a_text_is_shown_as_it_is_made(charlm_smoke, monkeypatch):
    """What is on a buffered standard output when each piece is asked for, and at the
    end: all the pieces before."""
    written, pieces, seen = io.BytesIO(), [], []
    make = Writer.write

    def watched(*arguments, **options):
        for piece in make(*arguments, **options):
            pieces.extend(piece)
            yield piece
            seen.append(written.getvalue().decode())

    monkeypatch.setattr(Writer, "write", watched)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(written)))  # pyright: ignore[reportArgumentType]
    drawing = Drawing(length=2 * generator.PIECE + 30)
    charlm_inference.write(
        charlm_smoke[0], drawing, PROMPT.encode(), seed=3, skip=False
    )
    assert [len(piece) for piece in pieces] == [generator.PIECE] * 2 + [30]
    assert seen == [PROMPT + "".join(pieces[: k + 1]) for k in range(3)]
    assert written.getvalue().decode() == f"{seen[-1]}\n"
