"""Inference with a trained language model: sampling, scoring, activations."""

import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from experiments.charlm import activations, datasets
from experiments.charlm.config import open_workdir
from experiments.charlm.dynamic import Rule
from experiments.charlm.generator import Writer
from experiments.charlm.units import WORDS, Units
from experiments.harness import html_report
from experiments.harness.arguments import default_is
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
from jaxrnn.text import UNK

STANDARD_INPUT = Path("-")
PREVIEW = {"character": 200, "byte": 200, "word": 50}  # of each how many


@dataclass(frozen=True)
class Sampling:
    """Used with --sample."""

    prompt: Annotated[str | None, default_is("a line feed, which is not shown")] = None
    """Text to continue; @FILE reads a file and - standard input."""
    length: int = 1000
    """Characters, bytes or words to generate."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy decoding."""
    top_k: Annotated[int | None, default_is("all")] = None
    """Sample from the K most likely characters (bytes, words) only."""
    top_p: Annotated[float | None, default_is("all")] = None
    """Sample from the fewest characters with this total probability (nucleus)."""
    min_p: Annotated[float | None, default_is("all")] = None
    """Sample from characters at least this many times as likely as the likeliest."""
    num_samples: int = 1
    """Number of texts, each from the prompt."""

    def check(self) -> None:
        """Check all that does not depend on a vocabulary.

        Raises:
            ValueError: a value is out of range; the option is named.
        """
        if self.prompt == "":
            raise ValueError("--prompt is empty: give at least one character")
        if self.prompt == "@":
            raise ValueError(
                "--prompt @ names no file: give @FILE, or - and the text on standard "
                "input"
            )
        COUNT.check(self, "length")
        COUNT._replace(most=100_000).check(self, "num_samples")
        CHARACTERS.check(self, "top_k")
        AMOUNT.check(self, "temperature")
        SHARE_ABOVE_0.check(self, "top_p")
        SHARE.check(self, "min_p")

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `jaxrnn.sampling.truncate`."""
        names = ("temperature", "top_k", "top_p", "min_p")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Analysis:
    """Analyse a file with the trained model."""

    score: Annotated[Path | None, default_is("none")] = None
    """Print the cross-entropy of the trained model on this file.
    - is standard input."""
    per_character: bool = False
    """With --score: also that of each character, byte or word."""
    neurons: Annotated[Path | None, default_is("none")] = None
    """Write a page with the activations of the hidden units on this file, or on -.
    The page has its first 10,000 characters, bytes or words."""
    html: Annotated[Path | None, default_is("neurons.html in the workdir")] = None
    """With --neurons: where to write the page."""

    def check(self) -> None:
        """Check that the options fit together.

        Raises:
            ValueError: they do not; the missing option is named.
        """
        if self.per_character and self.score is None:
            raise ValueError("--per-character needs --score FILE")
        if self.html and self.neurons is None:
            raise ValueError("--html needs --neurons FILE")
        if self.score == self.neurons == STANDARD_INPUT:
            raise ValueError(
                "standard input is read once: give --score or --neurons a file"
            )

    @property
    def requested(self) -> bool:
        """Whether there is a file to analyse."""
        return self.score is not None or self.neurons is not None


def read_prompt(prompt: str | None) -> bytes | None:
    """Return the prompt of `Sampling`, from wherever it is.

    Raises:
        ValueError: it cannot be read, or is empty.
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


def check_prompt(
    writer: Writer,
    sampling: Sampling,
    prompt: bytes | None,
    *,
    skip: bool,
) -> str:
    """Return the prompt in the model's vocabulary, "" for none.

    Between words it has the white space that the model writes there. The model need not
    be trained.

    Raises:
        ValueError: the vocabulary is smaller than --top-k or lacks characters.
    """
    size = len(writer.vocab)
    if sampling.top_k is not None and sampling.top_k > size:
        raise ValueError(
            f"--top-k must be at most {size}, the size of the model's vocabulary, "
            f"got {sampling.top_k}"
        )
    if prompt is None:
        return ""
    units = writer.units
    text = datasets.decode(prompt, "the prompt", units.by_byte)
    text = writer.known(text, "the prompt", skip=skip)
    return "".join(units.written(itertools.chain.from_iterable(units.tokens(text))))


def sample(
    path: Path, sampling: Sampling, prompt: bytes | None, *, seed: int, skip: bool
) -> None:
    """Print texts by the model in a work directory, the first one as it is generated.

    `skip` leaves out what is not in the vocabulary of the prompt.

    Raises:
        ValueError: there is no model, or `check_prompt` raises.
    """
    _, writer = load(path, "sampling")
    shown = check_prompt(writer, sampling, prompt, skip=skip)

    def show(text: str) -> None:
        sys.stdout.buffer.write(text.encode(writer.units.encoding))
        sys.stdout.buffer.flush()

    others = [shown] * (sampling.num_samples - 1)
    pieces = writer.write(
        shown or writer.beginning,
        sampling.length,
        sampling.num_samples,
        seed,
        **sampling.options,
    )
    for first, *rest in pieces:
        show(shown + first)
        shown = ""
        others = [text + piece for text, piece in zip(others, rest, strict=True)]
    show("\n" + "".join(f"----\n{text}\n" for text in others))


def preview(writer: Writer, seed: int) -> str:
    """Return a short sample that is safe to print during training.

    Control characters, and bytes that are not UTF-8, are replaced.
    """
    units = writer.units
    pieces = writer.write(writer.beginning, PREVIEW[units.name], 1, seed)
    text = "".join(piece for [piece] in pieces)
    if units.by_byte:
        text = text.encode("latin-1").decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\t\n" else "\ufffd" for c in text)


def analyse(
    path: Path,
    analysis: Analysis,
    *,
    skip: bool,
    dynamic: tuple[Rule, str] | None = None,
) -> None:
    """Do what the options ask for, with the model in a work directory.

    `skip` leaves out characters of the files that are not in the vocabulary. With
    `dynamic`, a rule and the training part, a score is also made by that evaluation.

    Raises:
        ValueError: there is no model, or a file cannot be read or encoded.
    """
    if analysis.score is not None:
        each = analysis.per_character
        score(path, analysis.score, skip=skip, each=each, dynamic=dynamic)
    if analysis.neurons is not None:
        page = analysis.html or path / "neurons.html"
        write_activations(path, analysis.neurons, page, skip=skip)


def read_file(file: Path, units: Units) -> tuple[str, str]:
    """Return what a file is called, and its text; `-` is standard input.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    if file == STANDARD_INPUT:
        name, content = "standard input", sys.stdin.buffer.read()
        return name, datasets.decode(content, name, units.by_byte)
    return str(file), datasets.read(file, units.by_byte)


def score(
    path: Path,
    file: Path,
    *,
    skip: bool,
    each: bool,
    dynamic: tuple[Rule, str] | None = None,
) -> None:
    """Print the mean cross-entropy of a file, in nats and bits per character or byte.

    Of words it is in nats, and as perplexity. The mean is over all but the first; with
    `each` the values come before it. With `dynamic`, as in `analyse`, that of dynamic
    evaluation follows.

    Raises:
        ValueError: there is no model, or the file cannot be read or encoded.
    """
    _, writer = load(path, "scoring")
    units = writer.units
    name, text = read_file(file, units)
    text = writer.known(text, name, skip=skip)
    ids = writer.encode(text)
    if ids.size < 2:
        raise ValueError(f"{name} has only one {units.name}: at least two are needed")
    tokens = itertools.chain.from_iterable(units.tokens(text))
    next(tokens)
    total, done = 0.0, 0
    with progress_bar("scoring", ids.size - 1) as advance:
        for part in writer.nats(ids):
            if each:
                for value in part:
                    print(f"{units.spell(next(tokens))}\t{value:.4f}")
            total += float(part.sum(dtype=np.float64))
            done += part.size
            advance(done)
    predicted = f"{done:,} predicted"
    if units is WORDS:
        unknown = np.mean(ids[1:] == writer.vocab.encode([UNK]))
        predicted += f", {unknown:.1%} of them unknown"
    print(f"{name}: {in_words(total / done, units)} ({predicted})")
    if dynamic:
        rule, training_part = dynamic
        nats = writer.dynamic_nats(ids, writer.encode(training_part), rule)
        print(f"{name}: {in_words(nats, units)} with dynamic evaluation")


def in_words(nats: float, units: Units) -> str:
    """Return a mean cross-entropy, with what is usual for the units.

    >>> in_words(4.0, WORDS)
    '4.0000 nats, perplexity 54.60 per word'
    """
    if units is WORDS:
        perplexity = float(metrics.perplexity(nats))
        return f"{nats:.4f} nats, perplexity {perplexity:,.2f} per word"
    bits = float(metrics.nats_to_bits(nats))
    return f"{nats:.4f} nats, {bits:.4f} bits per {units.name}"


def write_activations(path: Path, file: Path, page: Path, *, skip: bool) -> None:
    """Write a page with the activations of the units on a file; print where it is.

    Raises:
        ValueError: there is no model, the file cannot be read or encoded, or the page
            cannot be written.
    """
    workdir, writer = load(path, "analysing")
    units = writer.units
    name, text = read_file(file, units)
    text = writer.known(text, name, skip=skip)
    reading, size = name, units.count(text)
    if size > activations.LONGEST:
        first = f"{activations.LONGEST:,} of {size:,}"
        reading = f"the first {first} {units.plural} of {name}"
    about = workdir.settings_as(About).dataset
    data = {
        "model": f"Model in {path}, trained on {about}, reading {reading}",
        "bytes": units.by_byte,
        **activations.describe(writer, text),
    }
    title = "Activations of the hidden units"
    html_report.write_page(page, activations.TEMPLATE, title, data)
    print(f"{page}: {len(data['units'])} of {data['of']} units, reading {reading}")


def export(path: Path, directory: Path) -> None:
    """Write the model in a work directory as files that JAX alone can run.

    Raises:
        ValueError: there is no model.
        OSError: there is something in the directory, or it cannot be written.
    """
    _, writer = load(path, "exporting")
    writer.export(directory)
    print(f"{directory}: the model in {path}, for JAX without jaxrnn (see load.py)")


def load(path: Path, doing: str) -> tuple[WorkDir, Writer]:
    """Return a work directory and its model; say it where the run is not finished.

    Raises:
        ValueError: there is no model.
    """
    workdir, writer = open_workdir(path), Writer.load(path)
    workdir.tell_unfinished(doing)
    return workdir, writer
