r"""Accuracy with few texts: `experiments.imdb --csv` beside the linear baseline.

    python -m experiments.bench.small_data
    python -m experiments.bench.small_data --tasks reviews-500 --draws 1
    python -m experiments.bench.small_data --encoder runs/forward \
        --tasks reviews-100 reviews-1000 reviews-10000

draws labelled texts from IMDB's training part, and 5,000 others to test on from its
test part: 500, 2,000 and 10,000 reviews, and 10,000 single sentences, each with the
label of its review. `python -m experiments.imdb --csv` with all defaults is trained on
each draw, with `--encoder` once more from language models, and the classifiers of
`experiments.bench.linear_baseline` on the same texts.

What is finished is kept in the work directory, so that the same command started again
continues. The table is printed, and written to table.md there; curves.png has the
accuracy by the number of reviews.
"""

import sys

if __name__ == "__main__":  # before the imports, which take seconds
    from experiments.harness.launch import launch

    sys.exit(launch("bench", "small_data"))

import csv
import itertools
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from experiments.bench.linear_baseline import baselines, require_sklearn
from experiments.harness import launch
from experiments.harness.arguments import default_is, several
from experiments.harness.files import read_json, replace_file, write_json
from experiments.harness.options import DatasetOptions
from experiments.harness.plots import plot_curves
from experiments.harness.validation import COUNT
from experiments.imdb import datasets
from experiments.imdb.datasets import Reviews, Split

TaskName = Literal[
    "reviews-100",
    "reviews-500",
    "reviews-1000",
    "reviews-2000",
    "reviews-10000",
    "sentences-10000",
]
Entry = dict[str, dict[str, float]]  # accuracy and seconds by contender
FROM_ENCODER = "experiments.imdb --encoder"
CROSS_ENTROPY_ALONE = ("--entropy=0", "--adversarial=0", "--virtual-adversarial=0")
TESTED = 5_000  # texts to test on
SENTENCE = re.compile(r"(?<=[.!?])\s+|<br\s*/?>")
FEWEST_WORDS = 4  # of a sentence


@dataclass(frozen=True)
class Options(DatasetOptions):
    """The options of the command line."""

    workdir: Path = Path("runs/small-data")
    """Directory of the results. The same command started again continues."""
    tasks: tuple[TaskName, ...] = (
        "reviews-500", "reviews-2000", "reviews-10000", "sentences-10000",
    )  # fmt: skip
    """What is drawn."""
    draws: int = 3
    """How often."""
    encoder: Annotated[
        tuple[Path, ...] | None, several(Path, "DIR"), default_is("none")
    ] = None
    """Train from these language models, too, on the cross-entropy alone.
    Directories of experiments.imdb.pretraining."""


def main(options: Options) -> None:
    """Trains what is not finished, and prints the table."""
    COUNT.check(options, "draws")
    if options.encoder == ():
        raise ValueError("--encoder needs at least one directory")
    require_sklearn()
    reviews = datasets.load_imdb(options.data_dir, options.download_dir)
    found: dict[str, list[Entry]] = {task: [] for task in options.tasks}
    for draw in range(options.draws):
        for task in options.tasks:
            directory = options.workdir / f"{task}-{draw}"
            entry = compare(reviews, task, draw, directory, options.encoder)
            told = ", ".join(
                f"{name} {one['accuracy']:.2%} in {one['seconds']:.0f} s"
                for name, one in entry.items()
            )
            print(f"{task}, draw {draw}: {told}", flush=True)
            found[task].append(entry)
    text = table(found)
    path = options.workdir / "table.md"
    replace_file(path, lambda part: part.write_text(f"{text}\n"), "--workdir")
    plot(options.workdir / "curves.png", found)
    print(text)


def draw_texts(reviews: Reviews, task: str, draw: int) -> tuple[Split, Split]:
    """Texts to train and to test on, drawn at random: a function of `draw`.

    >>> data = datasets.generate(50)
    >>> some, others = draw_texts(data, "reviews-9", draw=0)
    >>> len(some.texts), len(others.texts) == len(data.test.texts)
    (9, True)
    """
    kind, _, number = task.partition("-")
    parts = reviews.train, reviews.validation
    labels = np.concatenate([part.labels for part in parts])
    train = Split([text for part in parts for text in part.texts], labels)
    test, rng = reviews.test, np.random.default_rng([draw, int(number)])
    if kind == "sentences":
        train, test = sentences(train, rng), sentences(test, rng)
    some = rng.permutation(len(train.texts))[: int(number)]
    return train[some], test[rng.permutation(len(test.texts))[:TESTED]]


def sentences(reviews: Split, rng: np.random.Generator) -> Split:
    """One sentence of each review that has one of `FEWEST_WORDS` words or more.

    >>> reviews = Split(["Good. But was it really so?", "Bad."], np.array([1, 0]))
    >>> sentences(reviews, np.random.default_rng(0)).texts
    ['But was it really so?']
    """
    texts, labels = [], []
    for text, label in zip(reviews.texts, reviews.labels, strict=True):
        found = [part.strip() for part in SENTENCE.split(text)]
        found = [part for part in found if len(part.split()) >= FEWEST_WORDS]
        if found:
            texts.append(found[rng.integers(len(found))])
            labels.append(label)
    return Split(texts, np.array(labels, np.int32))


def compare(
    reviews: Reviews,
    task: str,
    draw: int,
    directory: Path,
    encoder: Sequence[Path] | None = None,
) -> Entry:
    """Accuracy and seconds of each contender, of which the trained ones are kept."""
    path = directory / "comparison.json"
    found: Entry = read_json(path) or {}
    train, test = directory / "train.csv", directory / "test.csv"
    if not found:
        directory.mkdir(parents=True, exist_ok=True)
        some, others = draw_texts(reviews, task, draw)
        write_csv(train, some)
        write_csv(test, others)
        found["experiments.imdb"] = train_program(train, test, directory / "run")
        for one in baselines(datasets.read_csv(train, test=test)):
            found[one.name] = {"accuracy": one.accuracy, "seconds": one.seconds}
        write_json(path, found, "--workdir")
    if encoder and FROM_ENCODER not in found:
        options = ("--encoder", *map(str, encoder), *CROSS_ENTROPY_ALONE)
        run = directory / "run-encoder"
        found[FROM_ENCODER] = train_program(train, test, run, options)
        write_json(path, found, "--workdir")
    return found


def write_csv(path: Path, part: Split) -> None:
    """Writes texts and labels as `datasets.read_csv` reads them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(part.texts, part.labels.tolist(), strict=True))


def train_program(
    train: Path, test: Path, run: Path, options: Sequence[str] = ()
) -> dict[str, float]:
    """Accuracy and seconds of `experiments.imdb`, a process of its own."""
    shutil.rmtree(run, ignore_errors=True)  # Of one that goes on the time is unknown.
    command = [
        *(sys.executable, "-m", "experiments.imdb", "--workdir", str(run)),
        *("--csv", str(train), "--test-csv", str(test), *options),
    ]
    began = time.perf_counter()
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with launch.cleaned_up(training.kill):
        training.wait()
    seconds = time.perf_counter() - began
    if training.returncode:
        raise ValueError(f"{' '.join(command)} ended with code {training.returncode}")
    results = read_json(run / "results.json") or {}
    return {"accuracy": results["test_accuracy"], "seconds": seconds}


def plot(path: Path, found: dict[str, list[Entry]]) -> None:
    """Plot the mean accuracy of each contender by the number of reviews."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for task, entries in found.items():
        kind, _, number = task.partition("-")
        for name in entries[0] if kind == "reviews" else ():
            shares = [100 * entry[name]["accuracy"] for entry in entries]
            lines.setdefault(name, []).append((int(number), float(np.mean(shares))))
    lines = {name: sorted(points) for name, points in lines.items()}
    title = "IMDB: accuracy on 5,000 reviews"
    plot_curves(path, title, "labelled reviews", {"accuracy, %": lines}, x_scale="log")


def table(found: dict[str, list[Entry]]) -> str:
    """Mean accuracy, its range, and median seconds, as a table in Markdown.

    >>> entries = [{"a": {"accuracy": x, "seconds": 1}} for x in (0, 1)]
    >>> print(table({"reviews-9": entries}))
    | texts | a | s |
    | --- | --- | --- |
    | reviews-9 | 50.00% (0.00 to 100.00) | 1 |
    """
    names = next(iter(found.values()))[0].keys()
    rows = [["texts", *itertools.chain(*((name, "s") for name in names))]]
    rows.append(["---"] * len(rows[0]))
    for task, entries in found.items():
        rows.append(
            [task, *(c for n in names for c in _cells([e[n] for e in entries]))]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(entries: Sequence[dict[str, float]]) -> tuple[str, str]:
    shares = [100 * entry["accuracy"] for entry in entries]
    seconds = np.median([entry["seconds"] for entry in entries])
    told = f"{np.mean(shares):.2f}% ({min(shares):.2f} to {max(shares):.2f})"
    return told, f"{seconds:.0f}"
