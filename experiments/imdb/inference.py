"""What `experiments.imdb` does with a trained model: it judges reviews, and explains
why."""

import io
import sys
from collections.abc import Iterable
from pathlib import Path

from experiments.harness.files import decode_utf8
from experiments.harness.html_report import write_page
from experiments.harness.workdir import About, WorkDir
from experiments.imdb import attribution
from experiments.imdb.predictor import Reader

LABELS = ("negative", "positive")


def predict(texts: Iterable[str], path: Path, devices: int | None) -> None:
    """Prints label, probability of the label and text of each review, with tabs."""
    reader = Reader.load(path, devices)
    lines = read_lines(texts)
    WorkDir(path).tell_unfinished("judging")
    found = reader.probabilities(reader.encode(lines))
    for line, p in zip(lines, found, strict=True):
        print(f"{LABELS[int(p > 0.5)]}\t{max(p, 1 - p):.4f}\t{line.strip()}")


def explain(texts: Iterable[str], path: Path, devices: int | None, page: Path) -> None:
    """Writes a page that shows what each word did, and prints where it is."""
    reader = Reader.load(path, devices)
    about = WorkDir(path).settings_as(About).dataset
    reviews = attribution.describe(reader, read_lines(texts))
    WorkDir(path).tell_unfinished("explaining")
    data = {"model": f"Model in {path}, trained on {about}", "reviews": reviews}
    write_page(page, attribution.TEMPLATE, "What moved the decision", data)
    for number, review in enumerate(reviews, start=1):
        p, residual = review["probability"], abs(review["residual"])
        print(
            f"{LABELS[int(p > 0.5)]}\t{max(p, 1 - p):.4f}\treview {number}: the words "
            f"explain its logit but for {residual:.4f}"
        )
    print(f"{page} shows why")


def read_lines(texts: Iterable[str]) -> list[str]:
    """The texts, with the lines of standard input in place of `-`.

    Raises:
        ValueError: there are none, or they are not UTF-8.
    """
    lines: list[str] = []
    for text in texts:
        lines += _standard_input() if text == "-" else [text]
    if not lines:
        raise ValueError(
            "there are no reviews on standard input, one is needed per line"
        )
    return lines


def _standard_input() -> list[str]:
    content = sys.stdin.buffer.read()
    text = decode_utf8(content, "standard input", "give UTF-8")
    return io.StringIO(text, newline=None).readlines()
