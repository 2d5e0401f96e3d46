"""What `experiments.imdb` does with a trained model: predictions, explanations."""

import io
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.harness.files import decode_utf8
from experiments.harness.html_report import write_page
from experiments.harness.workdir import About, WorkDir
from experiments.imdb import attribution
from experiments.imdb.predictor import LONGEST_TEXT, Reader
from experiments.imdb.tables import read_table, write_table


def predict(texts: Iterable[str], path: Path, devices: int | None) -> None:
    """Prints label, probability of the label and text, separated by tabs, of each text.

    One line for each: line breaks and tabs in a text become spaces. A text without
    words, or with too many, has a remark for a label and no probability. Where texts
    may have several labels, these and their probabilities stand in the order of the
    classes with the separator between them, and a remark where there are none.
    """
    reader = Reader.load(path, devices)
    lines = read_lines(texts)
    WorkDir(path).tell_unfinished("predicting")
    examples = reader.encode(lines)
    found = reader.probabilities(examples, progress=True)
    for line, ids, probabilities in zip(lines, examples.ids, found, strict=True):
        print(f"{_answer(reader, ids, probabilities)}\t{' '.join(line.split())}")


def _answer(reader: Reader, ids: np.ndarray, probabilities: np.ndarray) -> str:
    """Label and probability with a tab, or why there are none."""
    if np.isnan(probabilities).any():
        remark = "no words" if ids.size == 0 else f"over {LONGEST_TEXT:,} words"
        return f"({remark})\t"
    labels = reader.labels(probabilities)
    if not labels:
        return "(no label)\t"
    shares = [f"{probabilities[reader.classes.index(name)]:.4f}" for name in labels]
    separator = reader.separator or ""  # of one label it is not seen
    # Labels are whatever a table has: one line and two tabs for each text all the same.
    told = "".join(c if c.isprintable() else " " for c in separator.join(labels))
    return f"{told}\t{separator.join(shares)}"


def predict_csv(
    table_path: Path,
    text_column: str | None,
    path: Path,
    devices: int | None,
    out: Path,
) -> None:
    """Writes a CSV file again to `out`, with columns for label and probabilities.

    They are empty in rows whose text has no words, or too many. Where texts may have
    several labels, the column of the label has those with a probability above 0.5, with
    the separator between them: none, or any number.

    Raises:
        ValueError: `out` is the file to read, or a file cannot be read or written.
    """
    if out.exists() and out.samefile(table_path):
        raise ValueError(f"--out {out} is the file to read: give another")
    reader = Reader.load(path, devices)
    table = read_table(table_path)
    column = table.find("text", text_column)
    WorkDir(path).tell_unfinished("predicting")
    examples = reader.encode([row[column] for _, row in table.rows])
    found = reader.probabilities(examples, progress=True)
    known = np.asarray(~np.isnan(found).any(axis=1))
    separator = reader.separator or ""  # of one label it is not seen
    labels = [
        separator.join(reader.labels(row)) if usable else ""
        for row, usable in zip(found, known, strict=True)
    ]
    shares = [
        [f"{p:.4f}" if usable else "" for p, usable in zip(values, known, strict=True)]
        for values in found.T
    ]
    name, what = "predicted_label", "a predicted label"
    if reader.multi_label:
        name, what = "predicted_labels", "probabilities of labels"
    names = [name, *(f"probability_{name}" for name in reader.classes)]
    write_table(out, table, names, [labels, *shares])
    print(f"{out}: {known.sum():,} of {known.size:,} rows have {what}")


def explain(texts: Iterable[str], path: Path, devices: int | None, page: Path) -> None:
    """Writes a page that shows the attribution of each word, and prints where it is.

    Texts without words are not on the page, and are named.

    Raises:
        ValueError: no text has words, or they are too long or too many for a page.
    """
    reader = Reader.load(path, devices)
    about = WorkDir(path).settings_as(About).dataset
    lines = read_lines(texts)
    usable = [k for k, ids in enumerate(reader.encode(lines).ids) if ids.size]
    if not usable:
        raise ValueError("no text has words to explain: --explain needs one")
    reviews = attribution.describe(reader, {k + 1: lines[k] for k in usable})
    WorkDir(path).tell_unfinished("explaining")
    if reader.multi_label:
        ends = ("not the likeliest label", "the likeliest label")
    elif len(reader.classes) == 2:
        ends = reader.classes
    else:
        ends = ("another label", "the predicted label")
    data = {
        "model": f"Model in {path}, trained on {about}",
        "ends": ends,
        "reviews": reviews,
    }
    write_page(page, attribution.TEMPLATE, "Word attributions", data)
    described = {review["number"]: review for review in reviews}
    for number in range(1, len(lines) + 1):
        if number not in described:
            print(f"(no words)\t\ttext {number}: not on the page")
            continue
        review = described[number]
        print(
            f"{review['label']}\t{review['probability']:.4f}\ttext {number}: "
            f"attributions sum to the {review['score']} up to "
            f"{review['residual']:+.4f} ({review['steps']} integration steps)"
        )
    print(f"wrote the word attributions to {page}")


def export(path: Path, directory: Path) -> None:
    """Writes the model in a work directory as files that JAX alone can run.

    Raises:
        ValueError: there is no model.
        OSError: there is something in the directory, or it cannot be written.
    """
    reader = Reader.load(path, devices=1)
    WorkDir(path).tell_unfinished("exporting")
    reader.export(directory)
    print(f"{directory}: the model in {path}, for JAX without jaxrnn (see load.py)")


def read_lines(texts: Iterable[str]) -> list[str]:
    """The texts, with the lines of standard input in place of `-`.

    Raises:
        ValueError: there are none, or they are not UTF-8.
    """
    lines: list[str] = []
    for text in texts:
        lines += _standard_input() if text == "-" else [text]
    if not lines:
        raise ValueError("standard input is empty: give one text per line")
    return lines


def _standard_input() -> list[str]:
    content = sys.stdin.buffer.read()
    text = decode_utf8(content, "standard input", "give UTF-8")
    return io.StringIO(text, newline=None).readlines()
