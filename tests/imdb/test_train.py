"""The sentiment program: it learns, says what it found, and tells good from bad."""

import io
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.imdb import datasets as imdb_datasets
from experiments.imdb import model as imdb_model
from experiments.imdb import train as imdb_train
from experiments.imdb.model import SMOKE
from experiments.imdb.train import Options
from jaxrnn import training
from jaxrnn.batching import pad
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.metrics import Mean
from jaxrnn.text import Vocab, word_tokens
from tests.harness.test_training_loop import compilations, files_below


@pytest.fixture(scope="module", autouse=True)
def environment():
    """As it was, after the program has set it up for JAX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        yield


class Recorded:
    """What `training.make_train_step` made, noting the shape of each batch and whether
    the step compiled anything."""

    def __init__(self):
        self.calls = []

    def make_train_step(self, *arguments):
        step = make_train_step(*arguments)

        def recording(state, batch):
            with compilations() as events:
                result = step(state, batch)
            self.calls.append((batch["tokens"].shape, len(events) > 0))
            return result

        return recording


make_train_step = training.make_train_step


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run: its directory, what it printed and compiled."""
    path = tmp_path_factory.mktemp("smoke")
    recorded, stdout = Recorded(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_train_step", recorded.make_train_step)
        patch.setattr(sys, "stdout", stdout)
        imdb_train.main(Options(smoke=True, workdir=path))
    return path, stdout.getvalue(), recorded.calls


def load_best(path, settings):
    vocab = Vocab.load(path / "vocab.txt")
    model = imdb_model.make_model(settings, len(vocab))
    optimizer = imdb_model.make_optimizer(settings, steps=1)
    template = jax.eval_shape(lambda: imdb_model.make_state(model, optimizer, seed=0))
    state, _ = Checkpoints(path / "checkpoints", mode="max").restore(template, "best")
    return model, state, vocab


def best_logits(path, settings, texts):
    """Of the best checkpoint: all texts in one padded batch."""
    model, state, vocab = load_best(path, settings)
    tokens, lengths = pad([vocab.encode(word_tokens(text)) for text in texts])
    logits = jax.jit(model.apply)(state.params, tokens, lengths=lengths)
    return np.asarray(logits, np.float64)


def best_probabilities(path, settings, texts):
    """Of being positive, by the best checkpoint and the temperature in the results."""
    temperature = 1.0  # of a run that is not finished
    if (path / "results.json").exists():
        results = json.loads((path / "results.json").read_text())
        temperature = results["temperature"]
    return 1 / (1 + np.exp(-best_logits(path, settings, texts) / temperature))


def read_metrics(path):
    text = (path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_smoke_learns_and_says_what_it_found(smoke):
    path, out, _ = smoke
    results = json.loads((path / "results.json").read_text())
    history = read_metrics(path)
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert results["test_accuracy"] > 0.9

    assert results["dataset"] == "generated"
    best = history[results["best_epoch"] - 1]
    assert results["validation_accuracy"] == best["validation_accuracy"]
    assert best["validation_accuracy"] == max(h["validation_accuracy"] for h in history)
    assert results["words_per_second"] == history[-1]["words_per_second"] > 0
    assert results["seconds"] > sum(line["seconds"] for line in history)
    assert results["devices"] == 2
    assert results["seed"] == SMOKE.seed
    assert results["hidden"] == SMOKE.hidden
    assert results["versions"]["jax"] == jax.__version__
    # Embedding, two directions of an LSTM, and a logit of max and mean of both.
    words = len(Vocab.load(path / "vocab.txt"))
    assert results["parameters"] == words * 8 + 2 * (8 + 8 + 1) * 4 * 8 + (4 * 8 + 1)
    assert out.splitlines()[:3] == [
        "generated: 320 training, 40 validation, 40 test texts",
        "2 classes: negative (200), positive (200)",
        f"{results['parameters']:,} parameters, vocabulary of {words} words; "
        "2 cpu devices",
    ]
    assert out.count("\n") == 3 + 2 + SMOKE.epochs + 3
    *_, last, where, following = out.splitlines()
    assert where == f"curves, metrics, results and checkpoints are in {path}"
    assert following == f"next: python -m experiments.imdb --predict - --workdir {path}"
    assert last.startswith(
        f"generated: test accuracy {results['test_accuracy']:.2%}, calibration error "
        f"{results['test_calibration_error']:.2%} (validation "
    )


def test_results_are_those_of_the_best_checkpoint(smoke):
    path, *_ = smoke
    results = json.loads((path / "results.json").read_text())
    test = imdb_datasets.generate(seed=SMOKE.seed).test
    p = best_probabilities(path, SMOKE, test.texts)
    truth, said = test.labels.astype(int), (p > 0.5).astype(int)
    nats = -np.log(np.where(truth == 1, p, 1 - p))
    counts = np.zeros((2, 2), int)
    for row, column in zip(truth, said, strict=True):
        counts[row, column] += 1
    assert results["test_loss"] == pytest.approx(nats.mean(), rel=1e-4)
    assert results["test_accuracy"] == pytest.approx((truth == said).mean())
    assert results["confusion"] == counts.tolist()
    for k, name in enumerate(("negative", "positive")):
        found = results["test_classes"][name]
        assert found["recall"] == pytest.approx((said == k)[truth == k].mean())
        assert found["precision"] == pytest.approx((truth == k)[said == k].mean())
    f1 = [results["test_classes"][name]["f1"] for name in ("negative", "positive")]
    assert results["test_macro_f1"] == pytest.approx(sum(f1) / 2)


def test_the_temperature_is_the_best_one_for_the_validation_part(smoke):
    """Of 2,000 temperatures on a grid, and the errors of calibration by loops."""
    path, *_ = smoke
    results = json.loads((path / "results.json").read_text())
    data = imdb_datasets.generate(seed=SMOKE.seed)
    logits = best_logits(path, SMOKE, data.validation.texts)
    sign = 2 * data.validation.labels - 1
    scales = np.linspace(0.01, 20, 2_000)
    losses = [
        np.log1p(np.exp(-scale * sign * logits)).sum() + (scale - 1) ** 2
        for scale in scales
    ]
    best = scales[np.argmin(losses)]
    assert 1 / results["temperature"] == pytest.approx(best, abs=0.01)
    assert abs(best - 1) > 0.1

    logits = best_logits(path, SMOKE, data.test.texts)
    for name, scale in (("", 1 / results["temperature"]), ("_unscaled", 1.0)):
        bins = [[] for _ in range(15)]
        for z, label in zip(scale * logits, data.test.labels, strict=True):
            certainty = 1 / (1 + np.exp(-abs(z)))
            [k] = [k for k in range(15) if k / 15 < certainty <= (k + 1) / 15]
            bins[k].append((certainty, float((z > 0) == label)))
        gaps = [
            len(some)
            * abs(np.mean([c for c, _ in some]) - np.mean([r for _, r in some]))
            for some in bins
            if some
        ]
        found = results[f"test_calibration_error{name}"]
        assert found == pytest.approx(sum(gaps) / 40, rel=1e-3)


def test_each_bucket_compiles_once(smoke):
    *_, calls = smoke
    shapes = {shape for shape, _ in calls}
    assert len(shapes) == SMOKE.buckets
    assert {rows for rows, _ in shapes} == {SMOKE.batch}
    assert len(calls) == SMOKE.epochs * 20  # 320 reviews
    seen = set()
    for shape, compiled in calls:
        assert compiled == (shape not in seen)
        seen.add(shape)


@pytest.mark.parametrize("name", ["curves.png", "confusion.png"])
def test_pictures_decode_and_are_not_blank(smoke, name):
    path, *_ = smoke
    pixels = imread(path / name)
    assert pixels.ndim == 3
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_a_finished_run_says_so_and_changes_nothing(smoke, program_run):
    path, out, _ = smoke
    before = files_below(path)
    code, again, err = program_run("--smoke", "--workdir", path)
    assert (code, err) == (0, "")
    lines = again.splitlines()
    assert lines == [f"{path} holds a finished run", *out.splitlines()[-3:]]
    assert files_below(path) == before


def test_tensorboard_reaches_the_loop(tmp_path, program_run, monkeypatch):
    seen = []

    def fit(state, *, tensorboard, **others):
        seen.append(tensorboard)
        raise KeyboardInterrupt("seen enough")

    monkeypatch.setattr(imdb_train, "fit", fit)
    arguments = ("--smoke", "--workdir", tmp_path, "--tensorboard")
    code, out, err = program_run(*arguments)
    assert (code, err) == (130, "seen enough\n")
    assert re.fullmatch(BEGINNING, out)
    assert seen == [tmp_path / "tensorboard"]


def assert_predictions(out, path, settings, texts):
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[2] for line in lines] == [text.strip() for text in texts]
    expected = best_probabilities(path, settings, texts)
    for (label, certainty, _), p in zip(lines, expected, strict=True):
        assert label == ("positive" if p > 0.5 else "negative")
        assert float(certainty) == pytest.approx(max(p, 1 - p), abs=1e-4)
    return [label for label, *_ in lines]


def test_predict_knows_good_from_bad(smoke, program_run):
    path, *_ = smoke
    texts = ["the film is awful dull and boring", "  A GREAT, lovely <br /> story!"]
    code, out, err = program_run("--workdir", path, "--predict", *texts)
    assert (code, err) == (0, "")
    labels = assert_predictions(out, path, SMOKE, texts)
    assert labels == ["negative", "positive"]


def test_predict_reads_lines_and_keeps_their_order(
    smoke, program_run, monkeypatch, rng
):
    words = ["awful", "dull", "bad", "great", "fine", "warm", "story", "the", "zebra"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(307)]
    path, *_ = smoke
    before = files_below(path)
    stdin = io.BytesIO("".join(f"{t}\n" for t in texts).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
    code, out, err = program_run("--workdir", path, "--predict", "good", "-", "bad")
    assert (code, err) == (0, "")
    labels = assert_predictions(out, path, SMOKE, ["good", *texts, "bad"])
    assert set(labels) == {"negative", "positive"}
    assert files_below(path) == before


def test_predict_works_on_what_an_interrupted_run_saved(tmp_path, smoke, program_run):
    path = shutil.copytree(smoke[0], tmp_path / "run")
    (path / "results.json").unlink()
    code, out, err = program_run("--workdir", path, "--predict", "fine and warm")
    told = f"the run in {path} is not finished: predicting with what it has so far\n"
    assert (code, err) == (0, told)
    assert_predictions(out, path, SMOKE, ["fine and warm"])


# What is printed before the first step.
BEGINNING = (
    r".*: \d+ training, \d+ validation, \d+ test texts\n2 classes: .*\n"
    r".* parameters, vocabulary of \d+ words; 2 cpu devices\n"
)


def assert_refused(result, message, prints=""):
    code, out, err = result
    assert code == 2
    assert re.fullmatch(prints, out)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert message in err


def test_predict_without_a_model(tmp_path, program_run):
    path = tmp_path / "none"
    result = program_run("--workdir", path, "--predict", "fine")
    assert_refused(result, f"there is no trained model in {path}: train one with")
    assert not path.exists()


GOOD = "".join(f"r{i},{i % 2}\n" for i in range(40))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "line 1: no text column"),
        (b"essay,label\nfine,1\n", "line 1: no text column (text, review, "),
        (b"text,label\nfine,5 stars\n", "1 text with 1 label ('5 stars'): at least"),
        (b"text,label\n" + b"fine,1\n" * 40, "40 texts with 1 label ('1'): at least"),
        (b"text,label\n,1\n", "1 row of 1 without text or label (line 2), at most"),
        (b"text,label\ncaf\xe9,1\n", "line 2: not UTF-8: byte 0xe9"),
        (
            f"text,label\n{GOOD}{'word ' * 10**6},1\n".encode(),
            "line 42: field larger than",
        ),
    ],
)
def test_bad_csv_files_end_before_anything_is_written(
    tmp_path, program_run, content, message
):
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    result = program_run("--csv", path, "--workdir", tmp_path / "run")
    assert_refused(result, f"{path}")
    assert message in result[2]
    assert not (tmp_path / "run").exists()


def test_help_explains_every_option(program_run, capsys):
    with pytest.raises(SystemExit) as exit_:
        program_run("--help")
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--cell {lstm,gru,rnn,", "--predict", "--csv", "--smoke", "--devices"):
        assert flag in out
    assert "--settings" not in out


def test_a_loss_that_is_not_finite_is_told_with_the_rate_of_its_step(
    tmp_path, smoke, program_run, monkeypatch
):
    """The second rate is the first above 0, on the way up for a tenth of the steps."""

    def train_step(state, batch):
        state = state.replace(step=state.step + 1)
        loss = np.nan if int(state.step) == 2 else 1.0
        return state, {"loss": Mean.of(np.array([loss]))}

    monkeypatch.setattr(training, "make_train_step", lambda *_: train_step)
    result = program_run("--smoke", "--workdir", tmp_path)
    rate = SMOKE.learning_rate / np.ceil(len(smoke[2]) / 10)
    told = f"loss at step 2 (batch 2 of epoch 1, learning rate {rate:.4g}) is nan: low"
    assert_refused(result, told, prints=BEGINNING)
    assert result[2].strip().endswith("; there is no checkpoint yet")
    assert not (tmp_path / "checkpoints").exists()
