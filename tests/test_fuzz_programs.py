"""The programs' readers, given anything: an error of one line, or what was written."""

import collections
import csv
import functools
import io
import json
import types
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.charlm import config as charlm_config
from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import inference as charlm_inference
from experiments.charlm.generator import Writer
from experiments.harness.workdir import WorkDir
from experiments.imdb import datasets as imdb_datasets
from experiments.imdb import model as imdb_model
from experiments.plot import run as plot
from jaxrnn.text import Vocab
from tests.fuzz import any_json, assert_one_line, files, fuzz, half, read_or_refuse


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


GOOD_TEXT = "\ufeffTo be, or not to be,\r\nthat is the question: \u2019tis\rso.\n" * 3


@fuzz
@given(content=files(GOOD_TEXT.encode()) | st.text(max_size=99).map(str.encode))
def test_texts(directory, content):
    path = directory / "text"
    path.write_bytes(content)
    assert charlm_datasets.read(path, by_byte=True).encode("latin-1") == content
    try:
        text = charlm_datasets.read(path, by_byte=False)
    except ValueError as error:
        assert_one_line(error, path)
        text = None
    # By Python's own codec and line ends. (Its files read half a byte order mark as
    # nothing, where it is all there is.)
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        assert text is None
    else:
        lines = io.StringIO(decoded, newline=None).read()
        assert text == unicodedata.normalize("NFC", lines)


GOOD_CSV = "label,text\r\n" + "".join(
    f'{k % 2},"it is a ""film"",\nno {k}"\r\n' for k in range(20)
)
cells = st.text(max_size=9) | st.sampled_from(["a,b", 'a"b', "a\nb", "\x00", " "])
labels = st.sampled_from(["0", "1", "NEG", " pos ", "positive"])


@half
@given(content=files(GOOD_CSV.encode()))
def test_damaged_tables_of_reviews(directory, content):
    found = read_or_refuse(imdb_datasets.read_csv, directory / "damaged.csv", content)
    if found is not None:
        assert 20 <= len(gathered(found)) <= content.count(b"\n")


@half
@given(rows=st.lists(st.tuples(cells, labels), min_size=20, max_size=30))
def test_tables_of_reviews(directory, rows):
    path = directory / "reviews.csv"
    table = io.StringIO(newline="")
    writer = csv.writer(table, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    path.write_bytes(table.getvalue().encode())
    known = [
        (text, label.strip().lower()[0] in "1p") for text, label in rows if text.strip()
    ]
    positive = sum(label for _, label in known)
    try:
        found = gathered(imdb_datasets.read_csv(path))
    except ValueError as error:
        assert_one_line(error, path)
        too_many_blank = len(rows) - len(known) > imdb_datasets.MAX_EMPTY * len(rows)
        fewest = min(positive, len(known) - positive)
        assert too_many_blank or fewest < imdb_datasets.MIN_PER_CLASS
    else:
        assert collections.Counter(found) == collections.Counter(known)


def gathered(found):
    parts = (found.train, found.validation, found.test)
    return [
        pair for part in parts for pair in zip(part.texts, part.labels, strict=True)
    ]


GOOD_SETTINGS = [vars(charlm_config.Settings()), vars(imdb_model.Settings())]


@st.composite
def changed_settings(draw):
    good = draw(st.sampled_from(GOOD_SETTINGS))
    names = st.sampled_from(sorted(good)) | st.text(max_size=4)
    return json.dumps(
        good | draw(st.dictionaries(names, any_json, max_size=2))
    ).encode()


@half
@given(
    content=files(json.dumps(GOOD_SETTINGS[0]).encode())
    | changed_settings()
    | any_json.map(lambda value: json.dumps(value).encode())
)
@pytest.mark.parametrize("kind", [charlm_config.Settings, imdb_model.Settings])
def test_settings_and_results(directory, kind, content):
    workdir = WorkDir(directory)
    for name in ("settings", "results"):
        (directory / f"{name}.json").write_bytes(content)
        try:
            found = getattr(workdir, name)
        except ValueError as error:
            assert_one_line(error, f"{name}.json")
        else:
            assert repr(found) == repr(json.loads(content))  # NaN included
    try:
        settings = workdir.settings_as(kind)
    except ValueError as error:
        assert_one_line(error, "settings.json")
        return
    for name, default in vars(kind()).items():
        value = getattr(settings, name)
        kinds = {type(default)}
        kinds |= {int} if isinstance(default, float) else set()
        kinds |= {list} if isinstance(default, tuple) else set()
        optional = ("clip", "patience", "epochs", "buckets")
        optional += ("layer_dropout", "last_hidden")
        kinds |= {type(None), int} if name in optional else set()
        kinds |= {float} if name == "layer_dropout" else set()
        assert type(value) in kinds, name


GOOD_METRICS = [
    {"epoch": k, "train_loss": 0.5 / k, "validation_loss": 0.6, "seconds": 9.5}
    for k in (1, 2, 3)
]


def as_lines(metrics):
    return "".join(json.dumps(line) + "\n" for line in metrics).encode()


numbers = st.integers(-9, 9) | st.floats(-1e9, 1e9)
metrics_lines = st.dictionaries(
    st.sampled_from(["train_loss", "validation_loss"]) | st.text(max_size=4),
    numbers | any_json,
    max_size=3,
)
good_or_not = st.sampled_from(GOOD_METRICS) | any_json


@fuzz
@given(
    content=files(as_lines(GOOD_METRICS))
    | st.lists(metrics_lines.map(lambda line: GOOD_METRICS[0] | line)).map(as_lines)
    | st.lists(good_or_not, max_size=3).map(as_lines),
    over=st.sampled_from(["epoch", "seconds"]),
)
def test_metrics(directory, content, over):
    path = directory / "metrics.jsonl"
    path.write_bytes(content)
    try:
        history = plot.read(directory)
        found = plot.panels({"run": history}, over=over)
    except ValueError as error:
        assert_one_line(error, "" if "no run has" in str(error) else path)
        return
    known = [json.loads(line) for line in content.splitlines()]
    assert history == known
    xs = [line["epoch"] for line in known]
    if over == "seconds":
        xs = np.cumsum([float(line["seconds"]) for line in known]).tolist()
    # Sums round with the greatest of what is added, however little is left.
    rounding = 1e-12 * max(abs(line["seconds"]) for line in known)
    assert {"train loss", "validation loss"} & found.keys()
    for panel, lines in found.items():
        name = panel.replace(" ", "_")
        points = [
            (x, line[name]) for x, line in zip(xs, known, strict=True) if name in line
        ]
        assert [*lines] == ["run"]
        np.testing.assert_allclose(lines["run"], points, rtol=1e-12, atol=rounding)
        assert np.isfinite(np.float64(points)).all()


@pytest.fixture(scope="module")
def writer():
    model = types.SimpleNamespace(apply=functools.partial)  # Nothing is written.
    return Writer(model, None, Vocab(tuple("abc \n'\u2019")))  # pyright: ignore[reportArgumentType]


@fuzz
@given(
    prompt=st.text(max_size=20)
    | st.text("abc \n@-\ud800\udcff", max_size=9)
    | st.text("abc./\0\ud800", max_size=9).map(lambda name: f"@{name}"),
    skip=st.booleans(),
)
def test_prompts(writer, prompt, skip):
    if prompt == "-":
        return  # standard input
    try:
        content = charlm_inference.read_prompt(prompt)
        assert content is not None
        text = charlm_datasets.decode(content, "the prompt", by_byte=False)
        kept = writer.known(text, "the prompt", skip=skip)
    except ValueError as error:
        if not prompt.startswith("@"):  # A name of a file may have line breaks.
            assert_one_line(error, "")
        return
    assert kept == "".join(c for c in text if c in "abc \n'\u2019") != ""
    assert skip or kept == text
