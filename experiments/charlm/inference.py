"""What `experiments.charlm` does with a trained model: it writes, judges texts, and
shows what its units do."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.charlm import activations, datasets
from experiments.charlm.generator import Writer
from experiments.harness import html_report
from experiments.harness.files import read_bytes
from experiments.harness.progress import progress_bar
from experiments.harness.validation import (
    AMOUNT,
    CHARACTERS,
    COUNT,
    SHARE,
    SHARE_ABOVE_0,
)
from experiments.harness.workdir import About, WorkDir
from jaxrnn import metrics

GLIMPSE = 200  # characters


@dataclass(frozen=True)
class Drawing:
    """How to write."""

    prompt: str | None = None
    """With --sample: text to go on with; @FILE reads a file and - standard input.
    By default a text begins as after a line break."""
    length: int = 1000
    """Characters to write."""
    temperature: float = 1.0
    """Below 1 the likely characters become likelier; 0 takes the likeliest."""
    top_k: int | None = None
    """Draw from so many of the likeliest characters only."""
    top_p: float | None = None
    """Draw from the fewest characters that together are at least so probable."""
    min_p: float | None = None
    """Draw from those at least so probable, relative to the likeliest."""
    num_samples: int = 1
    """Texts to write, each from the prompt."""

    def check(self) -> None:
        """Whether it can be done, but for what a vocabulary decides.

        Raises:
            ValueError: it cannot; the option is named.
        """
        if self.prompt == "":
            raise ValueError("--prompt is empty: give at least one character")
        if self.prompt == "@":
            raise ValueError(
                "--prompt @ names no file: give @FILE, or - and the text on standard "
                "input"
            )
        COUNT.check(self, "length", "num_samples")
        CHARACTERS.check(self, "top_k")
        AMOUNT.check(self, "temperature")
        SHARE_ABOVE_0.check(self, "top_p")
        SHARE.check(self, "min_p")

    @property
    def options(self) -> dict[str, Any]:
        """Those of `jaxrnn.sampling.truncate`."""
        names = ("temperature", "top_k", "top_p", "min_p")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Reading:
    """What to tell of a file."""

    score: Path | None = None
    """Tell how well the trained model predicts this file."""
    per_character: bool = False
    """With --score: tell it of each character, or byte."""
    neurons: Path | None = None
    """Show on a page what each unit of the trained model does as it reads this file.
    At most 10,000 characters."""
    html: Path | None = None
    """With --neurons: the page to write, default neurons.html."""

    def check(self) -> None:
        """Whether it fits together.

        Raises:
            ValueError: it does not.
        """
        if self.per_character and self.score is None:
            raise ValueError("--per-character needs --score FILE")
        if self.html and self.neurons is None:
            raise ValueError("--html needs --neurons FILE")

    @property
    def requested(self) -> bool:
        """Whether there is a file to read."""
        return self.score is not None or self.neurons is not None


@dataclass(frozen=True)
class _Model(About):
    """What the settings of a run say of the text that its model knows."""

    bytes: bool


def read_prompt(prompt: str | None) -> bytes | None:
    """What a `Drawing` has for a prompt, from wherever it is.

    Raises:
        ValueError: it cannot be read, or there is nothing in it.
    """
    if prompt is None:
        return None
    if prompt == "-":
        content = sys.stdin.buffer.read()
    elif prompt.startswith("@"):
        content = read_bytes(Path(os.path.expanduser(prompt[1:])))
    else:
        content = os.fsencode(prompt)
    if not content:
        raise ValueError("the prompt is empty: give at least one character")
    return content


def begin(
    writer: Writer,
    drawing: Drawing,
    prompt: bytes | None,
    *,
    by_byte: bool,
    skip: bool,
) -> str:
    """The prompt as the model knows it, which need not be trained; "" for none.

    Raises:
        ValueError: the model has too few characters, or not those.
    """
    known = len(writer.vocab)
    if drawing.top_k is not None and drawing.top_k > known:
        raise ValueError(
            f"--top-k must be at most {known}, the characters that the model knows, "
            f"got {drawing.top_k}"
        )
    if prompt is None:
        return ""
    text = datasets.decode(prompt, "the prompt", by_byte)
    return writer.known(text, "the prompt", skip=skip)


def write(
    path: Path, drawing: Drawing, prompt: bytes | None, *, seed: int, skip: bool
) -> None:
    """Prints what the model in a work directory writes, the first text as it is made.

    `skip` leaves out what the model has never seen of the prompt.

    Raises:
        ValueError: there is no model, or it cannot do what is asked.
    """
    workdir, writer = _load(path, "writing")
    encoding = _encoding(workdir)
    by_byte = encoding == "latin-1"
    shown = begin(writer, drawing, prompt, by_byte=by_byte, skip=skip)

    def show(text: str) -> None:
        sys.stdout.buffer.write(text.encode(encoding))
        sys.stdout.buffer.flush()

    others = [shown] * (drawing.num_samples - 1)
    pieces = writer.write(
        shown or writer.beginning,
        drawing.length,
        drawing.num_samples,
        seed,
        **drawing.options,
    )
    for first, *rest in pieces:
        show(shown + first)
        shown = ""
        others = [text + piece for text, piece in zip(others, rest, strict=True)]
    show("\n" + "".join(f"----\n{text}\n" for text in others))


def glimpse(writer: Writer, seed: int, by_byte: bool) -> str:
    """Some characters that the model writes now; what would command a terminal, or is
    no text, is replaced."""
    pieces = writer.write(writer.beginning, GLIMPSE, 1, seed)
    text = "".join(piece for [piece] in pieces)
    if by_byte:
        text = text.encode("latin-1").decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\t\n" else "\ufffd" for c in text)


def read(path: Path, reading: Reading, *, skip: bool) -> None:
    """Tells of files what is wanted, by the model in a work directory.

    `skip` leaves out what the model has never seen of them.

    Raises:
        ValueError: there is no model, or a file cannot be judged or shown.
    """
    if reading.score is not None:
        judge(path, reading.score, skip=skip, each=reading.per_character)
    if reading.neurons is not None:
        page = reading.html or Path("neurons.html")
        picture(path, reading.neurons, page, skip=skip)


def judge(path: Path, file: Path, *, skip: bool, each: bool) -> None:
    """Prints the mean nats and bits of the characters of a file, or of its bytes, all
    but the first, under the model in a work directory; and before it those of `each`.

    `skip` leaves out what the model has never seen of the file.

    Raises:
        ValueError: there is no model, or the file cannot be judged.
    """
    workdir, writer = _load(path, "judging")
    by_byte = _encoding(workdir) == "latin-1"
    unit, spell = ("byte", ascii) if by_byte else ("character", repr)
    text = writer.known(datasets.read(file, by_byte), str(file), skip=skip)
    if len(text) < 2:
        raise ValueError(f"{file} has but one {unit}, which nothing predicts")
    total, done = 0.0, 0
    with progress_bar("judging", len(text) - 1) as advance:
        for part in writer.nats(text):
            if each:
                characters = text[done + 1 : done + 1 + part.size]
                for character, value in zip(characters, part, strict=True):
                    print(f"{spell(character)}\t{value:.4f}")
            total += float(part.sum(dtype=np.float64))
            done += part.size
            advance(done)
    mean = total / done
    bits = float(metrics.nats_to_bits(mean))
    print(f"{file}: {mean:.4f} nats, {bits:.4f} bits per {unit} ({done:,} predicted)")


def picture(path: Path, file: Path, page: Path, *, skip: bool) -> None:
    """Writes a page of what the units of the model in a work directory do as it reads a
    file, and prints where it is.

    `skip` leaves out what the model has never seen of the file.

    Raises:
        ValueError: there is no model, or no page can be made of the file.
    """
    workdir, writer = _load(path, "reading")
    by_byte = _encoding(workdir) == "latin-1"
    text = writer.known(datasets.read(file, by_byte), str(file), skip=skip)
    about = workdir.settings_as(About).dataset
    data = {
        "model": f"Model in {path}, trained on {about}, reading {file}",
        "bytes": by_byte,
        **activations.describe(writer, text, str(file)),
    }
    html_report.write_page(page, activations.TEMPLATE, "What the units remember", data)
    print(f"{page} shows {len(data['units'])} of {data['of']} units")


def _load(path: Path, doing: str) -> tuple[WorkDir, Writer]:
    workdir, writer = WorkDir(path), Writer.load(path)
    workdir.tell_unfinished(doing)
    return workdir, writer


def _encoding(workdir: WorkDir) -> str:
    """Of characters that stand for bytes, or for themselves."""
    return "latin-1" if workdir.settings_as(_Model).bytes else "utf-8"
