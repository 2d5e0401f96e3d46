"""The sentiment program with a person's own reviews, and with what it must refuse."""

import csv
import dataclasses
import io
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.imdb import datasets as imdb_datasets
from experiments.imdb import model as imdb_model
from experiments.imdb import train as imdb_train
from experiments.imdb.model import Settings
from experiments.imdb.train import Options
from jaxrnn import training
from jaxrnn.checkpoints import Checkpoints
from tests.harness.test_training_loop import assert_identical, files_below, stopping_at
from tests.imdb.test_train import BEGINNING, assert_refused, load_best, read_metrics

TINY = Settings(
    cell="rnn", bidirectional=False, embed=4, hidden=4, pooling=("mean",), vocab=60,
    buckets=1, epochs=2, batch=15, learning_rate=0.03, linear="off",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def environment():
    """As it was, after the program has set it up for JAX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        yield


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "mine.csv"
    generated = imdb_datasets.generate(160, seed=9)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "text"])
        for split in (generated.train, generated.validation, generated.test):
            writer.writerows(zip(split.labels.astype(int), split.texts, strict=True))
    return path


@pytest.fixture(scope="module")
def csv_run(tmp_path_factory, csv_file):
    """A finished run on a person's own reviews, batches of 15 on two devices."""
    path = tmp_path_factory.mktemp("csv_run")
    imdb_train.main(Options(settings=TINY, csv=csv_file, workdir=path))
    return path


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory):
    """A finished run on three unequal classes, told by one word each, and its data."""
    folder = tmp_path_factory.mktemp("three")
    rng = np.random.default_rng(0)
    words = {"sport": "ball", "Law": "court", "b\u00fccher": "page"}
    rows = [
        (label, " ".join(rng.permutation(["the", "of", word, "and"])))
        for (label, word), count in zip(words.items(), (120, 60, 20), strict=True)
        for _ in range(count)
    ]
    with (folder / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("category", "comment"), *rows])
    with (folder / "test.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("category", "comment"), *rows[::7]])
    settings = dataclasses.replace(
        TINY, class_weights="balanced", pretrain=False, linear="auto"
    )
    path = folder / "run"
    options = Options(
        settings=settings,
        csv=folder / "mine.csv",
        test_csv=folder / "test.csv",
        workdir=path,
    )
    imdb_train.main(options)
    return path, rows[::7]


def test_three_classes_of_any_name(three_classes, program_run):
    path, test = three_classes
    results, classes = read_results(path), ["b\u00fccher", "Law", "sport"]
    assert json.loads((path / "settings.json").read_text())["classes"] == classes
    assert list(results["test_classes"]) == classes
    texts = [text for _, text in test]
    out = program_run("--workdir", path, "--predict", *texts)[1]
    said = [line.split("\t")[0] for line in out.splitlines()]
    counts = [
        [
            sum(
                label == truth and s == told
                for (label, _), s in zip(test, said, strict=True)
            )
            for told in classes
        ]
        for truth in classes
    ]
    assert results["confusion"] == counts
    accuracy = sum(label == s for (label, _), s in zip(test, said, strict=True))
    assert results["test_accuracy"] == pytest.approx(accuracy / len(test))
    assert results["test_accuracy"] > 0.9
    assert results["linear_test_accuracy"] > 0.9
    assert results["recurrent_test_accuracy"] < 1
    assert len(results["linear_scales"]) == 2
    assert results["temperature"] == 1
    alone = f"{results['recurrent_test_accuracy']:.2%}"
    validated = f"{results['validation_accuracy']:.2%}, epoch {results['best_epoch']}"
    assert f" (recurrent part alone: test {alone}, validation {validated}), " in (
        imdb_train.summary(results)
    )
    shares = []
    for line in out.splitlines():
        shares.append(float(line.split("\t")[1]))
    right = np.array([label == s for (label, _), s in zip(test, said, strict=True)])
    # Nearly all are certain and right: one or two bins, so at least the difference of
    # the means.
    error = results["test_calibration_error"]
    assert abs(np.mean(right) - np.mean(shares)) - 1e-3 < error < 0.5
    assert error < results["test_calibration_error_unscaled"] + 1e-4  # both near 0
    assert imread(path / "confusion.png").ndim == 3


def test_without_its_linear_part_a_run_is_damaged(three_classes, program_run, tmp_path):
    path, test = three_classes
    texts = [text for _, text in test]
    copied = shutil.copytree(path, tmp_path / "run")
    (copied / "linear.safetensors").write_bytes(b"damaged")
    result = program_run("--workdir", copied, "--predict", *texts)
    assert_refused(result, f"{copied}/linear.safetensors is damaged")
    (copied / "linear.safetensors").unlink()
    result = program_run("--workdir", copied, "--predict", *texts)
    assert_refused(result, f"{copied}/linear.safetensors is damaged")


def test_a_run_that_is_not_finished_has_no_linear_part(
    three_classes, program_run, tmp_path
):
    """As one that was finished and trains on: its scales were another network's."""
    path, test = three_classes
    texts = [text for _, text in test]
    copied = shutil.copytree(path, tmp_path / "run")
    (copied / "results.json").unlink()
    answers = []
    for _ in range(2):
        code, out, _ = program_run("--workdir", copied, "--predict", *texts)
        assert code == 0
        answers.append(out)
        (copied / "linear.safetensors").unlink(missing_ok=True)
    assert answers[0] == answers[1]
    assert answers[0] != program_run("--workdir", path, "--predict", *texts)[1]


def test_three_classes_are_explained(three_classes, program_run):
    path, _ = three_classes
    code, out, _ = program_run("--workdir", path, "--explain", "the page of")
    assert code == 0
    label, _, told = out.splitlines()[0].split("\t")
    assert told.startswith(f"text 1: attributions sum to the log-odds of {label!r} up")
    assert (path / "explanation.html").exists()
    (path / "explanation.html").unlink()


def test_balanced_classes_have_the_same_share_of_the_loss(rng):
    """The mean over classes of their mean loss."""
    labels = np.array([0, 0, 0, 0, 1, 2, 2], np.int32)
    logits = rng.normal(size=(7, 3)).astype(np.float32)
    model = types.SimpleNamespace(apply=lambda *_, **__: jnp.asarray(logits))
    batch = {
        "tokens": np.zeros((7, 1), np.int32),
        "lengths": np.ones(7, np.int32),
        "labels": labels,
        "weights": np.ones(7, np.float32),
    }
    weights = imdb_model.balanced_weights(labels)
    loss = imdb_model.make_loss(model, class_weights=weights)
    found = loss({}, batch, jax.random.key(0))["loss"].value
    shares = np.exp(np.float64(logits))
    shares /= shares.sum(axis=1, keepdims=True)
    nats = -np.log(shares[np.arange(7), labels])
    expected = np.mean([nats[labels == k].mean() for k in range(3)])
    assert float(found) == pytest.approx(expected, rel=1e-5)
    plain = imdb_model.make_loss(model)({}, batch, jax.random.key(0))["loss"].value
    assert float(plain) == pytest.approx(nats.mean(), rel=1e-5)


def read_results(path):
    return json.loads((path / "results.json").read_text())


def test_csv_run_in_batches_the_devices_do_not_divide(csv_run, csv_file):
    results = read_results(csv_run)
    assert results["dataset"] == f"csv: {csv_file}"
    assert (results["batch"], results["devices"]) == (15, 2)
    assert sum(map(sum, results["confusion"])) == 16
    assert results["pooling"] == ["mean"]


def test_a_stopped_run_goes_on_to_the_same_results(
    tmp_path, csv_run, csv_file, monkeypatch
):
    # Of 9 steps an epoch: the first, one in mid-epoch, the last of the first epoch, one
    # in the last epoch and its last but one.
    stops, make_train_step = (1, 5, 9, 12, 17), training.make_train_step

    def stopping(*arguments):
        return stopping_at(stops, make_train_step(*arguments))

    options = Options(settings=TINY, csv=csv_file, workdir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "make_train_step", stopping)
        for stop in stops:
            with pytest.raises(KeyboardInterrupt, match=f"after step {stop}, all is"):
                imdb_train.main(options)
            assert not (tmp_path / "results.json").exists()
    imdb_train.main(options)
    _, state, _ = load_best(csv_run, TINY)
    paths = tmp_path, csv_run
    for which in ("last", "best"):
        runs = [Checkpoints(path / "checkpoints", "max") for path in paths]
        assert_identical(*(run.restore(state, which)[0] for run in runs))
    found, expected = ([*read_metrics(path), read_results(path)] for path in paths)
    for line in (*found, *expected):
        for timed in ("seconds", "words_per_second"):
            assert line.pop(timed) > 0
    assert found == expected


def test_the_best_checkpoint_is_the_one_tested(tmp_path, csv_run, csv_file):
    path = shutil.copytree(csv_run, tmp_path / "run")
    (path / "results.json").unlink()
    checkpoints = Checkpoints(path / "checkpoints", mode="max")
    _, state, _ = load_best(path, TINY)
    _, info = checkpoints.restore(state, "last")
    shutil.rmtree(path / "checkpoints" / "step_9", ignore_errors=True)
    state.params["params"]["output"]["bias"] += 100.0  # finds everything positive
    state = state.replace(step=jnp.asarray(9, jnp.int32))
    checkpoints.save(9, state, info=info, metric=2.0)
    imdb_train.main(Options(settings=TINY, csv=csv_file, workdir=path))
    results, history = read_results(path), info["history"]
    assert results["confusion"] == [[0, 8], [0, 8]]
    assert results["test_accuracy"] == 0.5
    # Half of the validation part is wrong by 100 logits: as hot as may be.
    assert results["temperature"] == pytest.approx(100, rel=1e-3)
    nats = np.log1p(np.exp([-1.0, 1.0])).mean()
    assert results["test_loss"] == pytest.approx(nats, rel=0.02)
    assert results["test_calibration_error_unscaled"] == pytest.approx(0.5)
    assert results["best_epoch"] == 1
    assert results["validation_accuracy"] == history[0]["validation_accuracy"]
    assert results["seconds"] > sum(line["seconds"] for line in history)


@pytest.mark.parametrize(
    ("texts", "stdin", "message"),
    [
        (["-"], b"fine\ncaf\xe9\n", "standard input, line 2: not UTF-8: byte 0xe9"),
        (["-"], b"", "standard input is empty: give one text per line"),
    ],
)
def test_texts_that_cannot_be_classified(
    csv_run, program_run, monkeypatch, texts, stdin, message
):
    before = files_below(csv_run)
    stream = io.TextIOWrapper(io.BytesIO(stdin), errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", stream)
    result = program_run("--workdir", csv_run, "--predict", *texts)
    assert_refused(result, message)
    assert files_below(csv_run) == before


def test_texts_without_an_answer_do_not_take_that_of_others(
    csv_run, program_run, monkeypatch
):
    """One line a text, whatever is in it."""
    stdin = "awful dull\n\n\U0001f44d\U0001f44d\ngreat\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    million = "word " * 10**6
    texts = ["great\n\tfilm \r\n", "-", million]
    code, out, err = program_run("--workdir", csv_run, "--predict", *texts)
    assert (code, err) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[2] for line in lines] == [
        "great film", "awful dull", "", "\U0001f44d\U0001f44d", "great",
        million.strip(),
    ]  # fmt: skip
    alone = program_run("--workdir", csv_run, "--predict", "awful dull")[1]
    assert out.splitlines()[1] == alone.strip()
    assert lines[2][:2] == lines[3][:2] == ["(no words)", ""]
    assert lines[5][:2] == ["(over 100,000 words)", ""]


def test_a_csv_is_written_again_with_labels_and_probabilities(
    csv_run, program_run, tmp_path
):
    given = tmp_path / "mine.csv"
    given.write_text('id;Review\n7;great fine film\n8;?!\n9;"awful; dull"\n')
    code, out, err = program_run("--workdir", csv_run, "--predict-csv", given)
    written = csv_run / "mine.predicted.csv"
    assert (code, err) == (0, "")
    assert out == f"{written}: 2 of 3 rows have a predicted label\n"
    out = program_run(
        "--workdir", csv_run, "--predict", "great fine film", "awful; dull"
    )[1]
    first, last = (line.split("\t")[:2] for line in out.splitlines())
    content = io.StringIO(written.read_text(encoding="utf-8"))
    rows = list(csv.DictReader(content, delimiter=";"))
    assert [row["id"] for row in rows] == ["7", "8", "9"]
    assert rows[2]["Review"] == "awful; dull"
    for row, (label, probability) in zip(rows[::2], (first, last), strict=True):
        assert row["predicted_label"] == label
        assert row[f"probability_{label}"] == probability
        shares = [float(row[f"probability_{c}"]) for c in ("negative", "positive")]
        assert sum(shares) == pytest.approx(1, abs=2e-4)
    added = ("predicted_label", "probability_negative", "probability_positive")
    assert [rows[1][name] for name in added] == ["", "", ""]
    other = tmp_path / "other.csv"
    program_run("--workdir", csv_run, "--predict-csv", given, "--out", other)
    assert other.read_bytes() == written.read_bytes()
    result = program_run(
        "--workdir", csv_run, "--predict-csv", given, "--text-column", "x"
    )
    assert_refused(result, f"{given}, line 1: --text-column 'x' is in no column")
    result = program_run(
        "--workdir", csv_run, "--predict-csv", given, "--out", tmp_path / "no" / "x"
    )
    assert_refused(result, "No such file or directory): give another --out")
    written.unlink()


def largest_file(path, which):
    [*_, last] = steps = Checkpoints(path / "checkpoints", mode="max").steps()
    step = {"last": last, "first": steps[0]}[which]
    files = (path / "checkpoints" / f"step_{step}" / "state").rglob("*")
    return max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", None, "vocab.txt"),
        (
            "vocab.txt",
            b'"<pad>"\n"<unk>"\nbad\n',
            "vocab.txt, line 3: not a JSON string",
        ),
        (
            "vocab.txt",
            b'"<pad>"\n"<unk>"\n"bad"\n',
            "is not the vocabulary of the run: it has 3 tokens",
        ),
        (
            "settings.json",
            b"{}",
            "is of another program or version: it has no cell, ",
        ),
        ("settings.json", b"{", "settings.json is damaged"),
        ("results.json", b'{"temperature": 0}', "results.json is damaged (temperature"),
        ("checkpoint", b"", "is damaged"),
    ],
)
def test_predict_with_damaged_files(
    tmp_path, csv_run, program_run, name, content, message
):
    path = shutil.copytree(csv_run, tmp_path / "run")
    if name == "checkpoint":
        for which in ("first", "last"):
            truncate(largest_file(path, which))
    elif content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    before = files_below(path)
    result = program_run("--workdir", path, "--predict", "fine")
    assert_refused(result, message)
    assert files_below(path) == before


def tiny_arguments(path, csv_path, *more):
    """The command line of `TINY`."""
    return (
        "--workdir", path, "--csv", csv_path, "--cell", "rnn", "--no-bidirectional",
        "--embed", 4, "--hidden", 4, "--pooling", "mean", "--vocab", 60, "--buckets", 1,
        "--epochs", 2, "--batch", 15, "--learning-rate", 0.03, "--linear", "off", *more,
    )  # fmt: skip


def test_the_command_line_is_the_settings(csv_run, csv_file, program_run):
    code, out, err = program_run(*tiny_arguments(csv_run, csv_file))
    assert (code, err) == (0, "")
    assert out.startswith(f"{csv_run} holds a finished run\n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", 1], "(seed 0, not 1"),
        (["--hidden", 5, "--layers", 2], "(hidden 4, not 5, layers 1, not 2)"),
        (["--devices", 3], "--devices 3: there are only 2"),
        (["--devices", 0], "--devices must be at least 1, got 0"),
        (["--max-words", 0], "--max-words must be at least 1, got 0"),
        (["--word-dropout", 1.5], "--word-dropout must be from 0 to 1, got 1.5"),
        (["--embed-rate", "nan"], "--embed-rate must be finite and at least 0, got n"),
        (["--clip", 0], "--clip must be finite and above 0, got 0.0"),
        (["--seed", 2**32], "--seed must be from 0 to 4294967295, got 4294967296"),
        (["--vocab", 2], "--vocab must be at least 3, got 2: two entries stand for"),
    ],
)
def test_settings_that_do_not_fit(csv_run, csv_file, program_run, more, message):
    before = files_below(csv_run)
    result = program_run(*tiny_arguments(csv_run, csv_file, *more))
    assert_refused(result, message)
    assert files_below(csv_run) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "results.json is damaged (KeyError('test_macro_f1')): remove it"),
        ("[1]", "results.json is damaged (not a JSON object): remove it"),
        ('{"dataset": "x", "test_accuracy": "high"}', "results.json is damaged"),
    ],
)
def test_damaged_results(tmp_path, csv_run, csv_file, program_run, content, message):
    path = shutil.copytree(csv_run, tmp_path / "run")
    (path / "results.json").write_text(content)
    assert_refused(program_run(*tiny_arguments(path, csv_file)), message)
    assert (path / "results.json").read_text() == content


def test_a_work_directory_of_another_vocabulary(csv_run, csv_file, program_run):
    original = csv_file.read_text()
    before = files_below(csv_run)
    try:
        csv_file.write_text(original.replace("story", "plot"))
        result = program_run(*tiny_arguments(csv_run, csv_file))
    finally:
        csv_file.write_text(original)
    assert_refused(result, "belongs to a run with other settings (reviews '")
    assert files_below(csv_run) == before


def test_the_same_reviews_elsewhere_go_on(csv_run, csv_file, program_run, tmp_path):
    path = shutil.copytree(csv_run, tmp_path / "run")
    (path / "results.json").unlink()
    other = shutil.copy(csv_file, tmp_path / "other.csv")
    _, out, _ = program_run(*tiny_arguments(path, other))
    assert f"\ncontinuing in {path} after step 18\n" in out
    assert read_results(path)["dataset"] == f"csv: {other}"


def test_truncated_checkpoints_are_not_trained_on(
    tmp_path, csv_run, csv_file, program_run
):
    path = shutil.copytree(csv_run, tmp_path / "run")
    (path / "results.json").unlink()
    for which in ("first", "last"):
        truncate(largest_file(path, which))
    before = files_below(path)
    result = program_run(*tiny_arguments(path, csv_file))
    assert_refused(result, "the checkpoint of step 18 in ", prints=BEGINNING)
    assert "is damaged, remove it: " in result[2]
    assert files_below(path) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("mine"), "File exists"),
        (lambda path: (path / "vocab.txt").mkdir(parents=True), "vocab.txt"),
        (lambda path: (path / "results.json").mkdir(parents=True), "results.json"),
    ],
)
def test_a_work_directory_that_cannot_be_used(
    tmp_path, csv_file, program_run, make, message
):
    path = tmp_path / "run"
    make(path)
    result = program_run(*tiny_arguments(path, csv_file))
    assert_refused(result, message)


def test_a_work_directory_below_a_file(tmp_path, csv_file, program_run):
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "run"
    result = program_run(*tiny_arguments(path, csv_file))
    assert_refused(result, f"cannot write to {path} (Not a directory): give another")
