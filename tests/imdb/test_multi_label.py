"""Texts with several labels: read, split, measured, learnt, and told again."""

import csv
import dataclasses
import io
import re
import types

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.imdb import attribution, serve
from experiments.imdb import model as imdb_model
from experiments.imdb import train as imdb_train
from experiments.imdb.batches import Examples
from experiments.imdb.datasets import Split, read_csv
from experiments.imdb.evaluation import label_report, measure_label_sets
from experiments.imdb.linear import LinearClassifier
from experiments.imdb.predictor import Reader
from experiments.imdb.train import Options
from jaxrnn import placement, serving
from jaxrnn.batching import pad
from tests.harness.local_server import served
from tests.imdb.test_attribution import SETTINGS, VOCAB
from tests.imdb.test_options import TINY, read_results
from tests.imdb.test_train import assert_refused, read_metrics

pytestmark = pytest.mark.slow

WORDS = {"sport": "ball", "Law": "court", "b\u00fccher": "page"}
CLASSES = ("b\u00fccher", "Law", "sport")


@pytest.fixture(scope="module", autouse=True)
def environment():
    """As it was, after the program has set it up for JAX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        yield


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("category", "comment"), *rows])
    return path


def make_rows(number, seed):
    """Each label is told by a word; a fifth of the texts has none."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(number):
        labels = [name for name in WORDS if rng.random() < 0.4]
        words = ["the", "of", "and", *(WORDS[name] for name in labels)]
        rows.append((" | ".join(labels), " ".join(rng.permutation(words))))
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with its default linear part, its test rows and output."""
    folder, stdout = tmp_path_factory.mktemp("several"), io.StringIO()
    test = make_rows(60, seed=1)
    settings = dataclasses.replace(
        TINY, multi_label="|", class_weights="balanced", pretrain=False, linear="auto"
    )
    options = Options(
        settings=settings,
        csv=write_rows(folder / "mine.csv", make_rows(240, seed=0)),
        test_csv=write_rows(folder / "test.csv", test),
        workdir=folder / "run",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        imdb_train.main(options)
    return folder / "run", test, stdout.getvalue()


def truths_of(rows):
    return np.array([[name in labels for name in CLASSES] for labels, _ in rows])


def test_scores_are_those_counted_one_by_one(rng):
    """By loops; the last label is never true, the third never predicted."""
    labels = rng.integers(2, size=(30, 4))
    labels[:, 3] = 0
    logits = rng.normal(size=(30, 4))
    logits[:, 2] = -1
    logits[:5] = 2 * labels[:5] - 1  # no subset accuracy of 0
    found = measure_label_sets(logits, labels)
    report = label_report(found["confusion"], "abcd")
    totals, f1 = np.zeros(3), []
    for k, name in enumerate("abcd"):
        pairs = [
            (t == 1, z > 0) for t, z in zip(labels[:, k], logits[:, k], strict=True)
        ]
        both = sum(t and s for t, s in pairs)
        true, told = sum(t for t, _ in pairs), sum(s for _, s in pairs)
        totals += both, true, told
        scores = report["classes"][name]
        assert scores["support"] == true
        assert scores["precision"] == pytest.approx(both / told if told else 0)
        assert scores["recall"] == pytest.approx(both / true if true else 0)
        f1.append(2 * both / (true + told) if true + told else 0)
        assert scores["f1"] == pytest.approx(f1[-1])
        neither = sum(not t and not s for t, s in pairs)
        expected = [[neither, told - both], [true - both, both]]
        assert found["confusion"][k].tolist() == expected
    assert report["macro_f1"] == pytest.approx(np.mean(f1))
    both, true, told = totals
    assert found["micro_f1"] == pytest.approx(2 * both / (true + told))
    same = [all((z > 0) == (t == 1)) for z, t in zip(logits, labels, strict=True)]
    assert found["subset_accuracy"] == pytest.approx(np.mean(same))
    assert 5 / 30 <= found["subset_accuracy"] < 1
    nats = np.log1p(np.exp(-(2 * labels - 1) * logits))
    assert found["loss"] == pytest.approx(nats.mean())


@pytest.mark.parametrize("balanced", [True, False])
def test_the_loss_is_the_mean_over_texts_and_labels(rng, balanced):
    """Or over labels, of the mean of texts with and of those without; not of rows
    added to fill a batch."""
    labels = np.array([[1, 0], [0, 0], [1, 1], [1, 0], [0, 0]], np.int32)
    logits = rng.normal(size=(5, 2)).astype(np.float32)
    model = types.SimpleNamespace(apply=lambda *_, **__: jnp.asarray(logits))
    batch = {
        "tokens": np.zeros((5, 1), np.int32),
        "lengths": np.ones(5, np.int32),
        "labels": labels,
        "weights": np.array([1, 1, 1, 1, 0], np.float32),
    }
    weights = imdb_model.balanced_weights(labels[:4]) if balanced else None
    found = imdb_model.make_loss(model, class_weights=weights)(
        {}, batch, jax.random.key(0)
    )
    labels, logits = labels[:4], np.float64(logits[:4])
    nats = np.log1p(np.exp(-(2 * labels - 1) * logits))
    parts = [
        (nats[labels[:, k] == 1, k].mean() + nats[labels[:, k] == 0, k].mean()) / 2
        for k in range(2)
    ]
    expected = np.mean(parts) if balanced else nats.mean()
    assert float(found["loss"].value) == pytest.approx(expected, rel=1e-5)
    right = ((logits > 0) == labels).all(axis=1)
    assert float(found["subset_accuracy"].value) == pytest.approx(right.mean())


def test_a_csv_has_the_labels_of_each_text(tmp_path):
    """Whatever their case and order, twice or not at all."""
    rows = make_rows(100, seed=3)
    rows[:4] = [
        ("SPORT| law|sport", "first"), ("", "second"), (" | ", "third"), ("law", " ")
    ]  # fmt: skip
    path = write_rows(tmp_path / "mine.csv", rows)
    loaded = read_csv(path, separator="|")
    assert [name.casefold() for name in loaded.classes] == [
        "b\u00fccher",
        "law",
        "sport",
    ]
    found = {}
    for part in loaded.parts.values():
        found |= dict(zip(part.texts, part.labels.tolist(), strict=True))
    assert (found["first"], found["second"], found["third"]) == (
        [0, 1, 1], [0, 0, 0], [0, 0, 0],
    )  # fmt: skip
    for labels, text in rows[4:]:
        assert found[text] == [int(name in text) for name in ("page", "court", "ball")]
        assert bool(labels) == any(found[text])
    assert loaded.notes == (f"{path}: left out 1 row without text (line 5)",)
    every = np.concatenate([part.labels for part in loaded.parts.values()])
    assert len(every) == 99
    counts = every.sum(axis=0)
    assert (
        f"3 labels: b\u00fccher ({counts[0]}), {loaded.classes[1]} ({counts[1]}), "
        f"{loaded.classes[2]} ({counts[2]})\n{every.sum() / 99:.2f} labels a text, at "
        f"most 3; {(every.sum(axis=1) == 0).sum()} texts have none"
    ) in loaded.describe()
    other = read_csv(path, separator="|", seed=1)
    assert set(other.test.texts) != set(loaded.test.texts)
    assert other.fingerprint == loaded.fingerprint
    rows[4] = ("", rows[4][1])
    changed = read_csv(write_rows(path, rows), separator="|")
    assert changed.fingerprint != loaded.fingerprint


def test_rare_labels_are_in_every_part():
    """One in fifty, where a random tenth would have none of one in 1% of cases each."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        labels = (rng.random((1_000, 12)) < 0.02).astype(np.int32)
        labels[:, 0] = rng.random(1_000) < 0.5
        split = Split([str(k) for k in range(1_000)], labels)
        kept, held_out = split.hold_out(10, seed)
        assert sorted(kept.texts + held_out.texts) == sorted(split.texts)
        for part in (kept, held_out):
            np.testing.assert_array_equal(
                part.labels, labels[list(map(int, part.texts))]
            )
        counts = labels.sum(axis=0)
        # A label's texts are decided with those of rarer labels that share them.
        assert np.abs(held_out.labels.sum(axis=0) - counts // 10).max() <= 2
        assert held_out.labels.sum(axis=0).min() > 0
        assert abs(len(held_out.texts) - 100) <= 12


def good_rows(number=30):
    return [("a;b" if k % 3 == 0 else "ab"[k % 2], f"text {k}") for k in range(number)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (good_rows(12), "each label needs at least 10 texts with it, and as many with"),
        (
            [("a;b", "x")] * 30 + [("a", "y")] * 30,
            "1 label has fewer: 'a' (0): remove ",
        ),
        (
            [("a,b", "x")] * 30 + [("a", "y")] * 30,
            "no text has two labels separated by",
        ),
        ([("a", "x")] * 30, "30 texts with 1 label ('a'): at least two are needed"),
        ([("", "x")] * 30, "30 texts with 0 labels: at least two are needed"),
        (good_rows() + [("a;b", "")] * 9, "9 rows of 39 without text (lines 32, 33, "),
    ],
)
def test_bad_files_are_one_line(tmp_path, program_run, rows, message):
    path = write_rows(tmp_path / "bad.csv", rows)
    result = program_run(
        "--csv", path, "--multi-label", ";", "--workdir", tmp_path / "run"
    )
    assert_refused(result, message)
    assert str(path) in result[2]
    assert not (tmp_path / "run").exists()


def test_a_label_that_only_the_test_file_has(tmp_path):
    path = write_rows(tmp_path / "mine.csv", good_rows())
    test = write_rows(tmp_path / "test.csv", [("a", "x"), ("b;z", "y")])
    message = re.escape(
        f"{test}, line 3: no text of {path} has the label 'z': they are"
    )
    with pytest.raises(ValueError, match=message):
        read_csv(path, test=test, separator=";")
    write_rows(test, [("a", "x"), ("", "y"), ("b;A", "z")])
    found = read_csv(path, test=test, separator=";").test.labels
    assert found.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_the_linear_part_is_one_for_each_label(rng):
    texts = [rng.integers(2, 30, size=rng.integers(3, 12)) for _ in range(80)]
    labels = np.stack([[k in text for text in texts] for k in (3, 4, 5)], axis=1)
    labels = (labels ^ (rng.random(labels.shape) < 0.1)).astype(np.int32)
    linear = LinearClassifier.fit(Examples(texts, labels), 3, vocab_size=30)
    logits = linear.logits(texts)
    for k in range(3):
        one = LinearClassifier.fit(Examples(texts, labels[:, k]), 2, vocab_size=30)
        np.testing.assert_allclose(logits[:, [k]], one.logits(texts), atol=1e-5)
    other = 3 * rng.normal(size=(80, 3))
    found = linear.fit_scales(other, Examples(texts, labels)).scales

    def objective(a, b):
        nats = np.log1p(np.exp(-(2 * labels - 1) * (a * other + b * logits)))
        return nats.sum() + 10 * ((a - 0.3) ** 2 + (b - 1) ** 2)

    best = objective(*found)
    for a, b in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02)):
        assert objective(max(found[0] + a, 0), found[1] + b) >= best


def test_a_run_says_what_it_found(run):
    path, test, out = run
    results, reader = read_results(path), Reader.load(path, devices=1)
    assert reader.classes == CLASSES
    shares = reader.probabilities(reader.encode([text for _, text in test]))
    truths = truths_of(test)
    said = shares > 0.5
    both = (truths & said).sum()
    micro = 2 * both / (truths.sum() + said.sum())
    assert results["test_micro_f1"] == pytest.approx(micro)
    assert results["test_subset_accuracy"] == (truths == said).all(axis=1).mean()
    nats = -np.log(np.where(truths, shares, 1 - shares))
    assert results["test_loss"] == pytest.approx(nats.mean(), rel=1e-4)
    for k, name in enumerate(CLASSES):
        scores = results["test_classes"][name]
        assert scores["support"] == truths[:, k].sum()
        assert scores["recall"] == pytest.approx(said[truths[:, k], k].mean())
    assert micro > 0.9
    assert results["linear_test_micro_f1"] > 0.9
    assert results["test_calibration_error"] < 0.2
    history = read_metrics(path)
    chosen = history[results["best_epoch"] - 1]["validation_micro_f1"]
    assert chosen == max(line["validation_micro_f1"] for line in history)
    assert chosen == results["validation_micro_f1"]
    assert {"train_subset_accuracy", "validation_subset_accuracy"} < {*history[0]}
    assert "\n3 labels: b\u00fccher (" in out
    assert f"test micro F1 {micro:.4f}, macro F1 " in out
    assert imread(path / "labels.png").ndim == 3
    assert not (path / "confusion.png").exists()


def test_predictions_have_all_labels_of_a_text(run, program_run, tmp_path):
    path, *_ = run
    texts = ["the ball and the page", "the of and", "?!", "court"]
    code, out, err = program_run("--workdir", path, "--predict", *texts)
    assert (code, err) == (0, "")
    reader = Reader.load(path, devices=1)
    shares = reader.probabilities(reader.encode(texts))
    book, law, sport = range(3)
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0][0] == "b\u00fccher|sport"
    told = "|".join(f"{shares[0, k]:.4f}" for k in (book, sport))
    assert lines[0][1:] == [told, texts[0]]
    assert [line[0] for line in lines[1:]] == ["(no label)", "(no words)", "Law"]
    assert lines[3][1] == f"{shares[3, law]:.4f}"

    table = tmp_path / "new.csv"
    table.write_text("text\n" + "\n".join(texts) + "\n")
    code, out, err = program_run("--workdir", path, "--predict-csv", table)
    written = path / "new.predicted.csv"
    assert (code, err) == (0, "")
    assert out == f"{written}: 3 of 4 rows have probabilities of labels\n"
    rows = list(csv.DictReader(io.StringIO(written.read_text(encoding="utf-8"))))
    assert [row["predicted_labels"] for row in rows] == [
        "b\u00fccher|sport", "", "", "Law"
    ]  # fmt: skip
    for row, some in zip(rows, shares, strict=True):
        for name, share in zip(CLASSES, some, strict=True):
            expected = "" if np.isnan(share) else f"{share:.4f}"
            assert row[f"probability_{name}"] == expected
    written.unlink()


def test_a_model_for_one_separator_is_none_for_another(run, program_run):
    path, *_ = run
    message = "multi_label '|', not ','"
    result = program_run("--workdir", path, "--predict", "x", "--multi-label", ",")
    assert_refused(result, message)


@pytest.mark.parametrize("text", ["the ball and the page", "the of and"])
def test_it_is_served_with_all_labels(run, text):
    reader = Reader.load(run[0], devices=1)
    [shares] = reader.probabilities(reader.encode([text]))
    service = serve.Service(reader, "Topics")
    with served(service.app, service.close) as url:
        found = httpx.post(f"{url}/explain", json={"text": text}, timeout=60).json()
        about = httpx.get(f"{url}/model").json()
    assert about["multi_label"]
    best = int(shares.argmax())
    assert found["label"] == found["target"] == CLASSES[best]
    assert found["against"] == f"not {CLASSES[best]}"
    several = ["b\u00fccher", "sport"] if "ball" in text else []
    assert found["labels"] == several
    np.testing.assert_allclose([*found["probabilities"].values()], shares, atol=1e-5)
    # The score is the logit of that label alone.
    expected = np.log(shares[best] / (1 - shares[best]))
    assert found["logit"] == pytest.approx(expected, abs=1e-3)
    total = found["baseline"] + sum(found["attributions"])
    assert total == pytest.approx(expected, abs=2 * attribution.TOLERANCE)


def test_a_page_explains_the_likeliest_label(run, program_run, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = program_run(
        "--workdir", run[0], "--explain", "the ball and", "--html", page
    )
    assert code == 0
    assert out.startswith("sport\t")
    assert "the log-odds of 'sport' up to" in out
    assert "not the likeliest label" in page.read_text(encoding="utf-8")


def test_the_epoch_with_the_best_micro_f1_is_kept(tmp_path, program_run, monkeypatch):
    seen = []

    def fit(state, *, best, evaluate, **others):
        seen.extend([best, [*evaluate(state)]])
        raise KeyboardInterrupt("seen enough")

    monkeypatch.setattr(imdb_train, "fit", fit)
    path = write_rows(tmp_path / "mine.csv", make_rows(60, seed=2))
    assert program_run(
        "--csv", path, "--multi-label", "|", "--workdir", tmp_path / "run",
        "--no-pretrain", "--hidden", 3, "--embed", 3,
    )[0] == 130  # fmt: skip
    names = ["loss", "subset_accuracy", "micro_f1"]
    assert seen == ["validation_micro_f1", [f"validation_{name}" for name in names]]


def test_the_temperature_is_that_of_all_decisions_in_validation(rng):
    """The best of a grid, for validation logits that are three times too large."""
    logits = rng.normal(size=(200, 3))
    labels = (rng.random((200, 3)) < 1 / (1 + np.exp(-logits))).astype(np.int32)
    run = types.SimpleNamespace(validation=Examples([], labels))
    test = rng.normal(size=(5, 3))
    scaled, unscaled, told = imdb_train.scale_by_temperature(run, 3 * logits, test)
    scales = np.linspace(0.1, 1, 1_000)
    losses = [
        np.log1p(np.exp(-scale * 3 * logits * (2 * labels - 1))).sum()
        + (scale - 1) ** 2
        for scale in scales
    ]
    best = 1 / scales[np.argmin(losses)]
    assert told["temperature"] == pytest.approx(best, rel=5e-3)
    assert 2 < best < 4
    np.testing.assert_allclose(scaled, test / told["temperature"])
    assert unscaled is test


def test_the_calibration_error_is_that_of_all_decisions(rng):
    """In bins of decisions for or against a label, made one by one."""
    logits, labels = 2 * rng.normal(size=(40, 3)), rng.integers(2, size=(40, 3))
    bins = [[] for _ in range(15)]
    for z, label in zip(logits.ravel(), labels.ravel(), strict=True):
        certainty = 1 / (1 + np.exp(-abs(z)))
        [k] = [k for k in range(15) if k / 15 < certainty <= (k + 1) / 15]
        bins[k].append((certainty, float((z > 0) == label)))
    gaps = [abs(sum(c - right for c, right in some)) for some in bins]
    found = imdb_train.calibration_error(logits, labels)
    assert found == pytest.approx(sum(gaps) / 120)


def test_it_is_exported_with_its_linear_part(run, program_run, tmp_path):
    directory = tmp_path / "exported"
    assert program_run("--workdir", run[0], "--export", directory)[0] == 0
    exported, reader = serving.load(directory), Reader.load(run[0], devices=1)
    assert exported.card["multi_label"] is True
    assert exported.card["labels"] == [*CLASSES]
    examples = reader.encode(["the ball and the page", "court"])
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        logits = np.asarray(exported.classify(*pad(examples.ids)), np.float64)
    shares = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(shares, reader.probabilities(examples), atol=1e-6)


@pytest.mark.parametrize("number", [2, 3])
def test_the_exported_card_says_it(tmp_path, number):
    """Two labels have two logits, while two classes have one."""
    settings = dataclasses.replace(SETTINGS, multi_label=";")
    model = imdb_model.make_model(settings, len(VOCAB), number)
    optimizer = imdb_model.make_optimizer(settings, steps=1)
    params = imdb_model.make_state(model, optimizer, seed=0).params
    mesh = placement.data_mesh(1)
    reader = Reader(model, params, VOCAB, settings, mesh, "abc"[:number])
    reader.export(tmp_path / "exported")
    exported = serving.load(tmp_path / "exported")
    assert exported.card["multi_label"] is True
    assert exported.card["labels"] == [*"abc"[:number]]
    examples = reader.encode(["a good film", "bad"])
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        logits = np.asarray(exported.classify(*pad(examples.ids)), np.float64)
    assert logits.shape == (2, number)
    shares = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(shares, reader.probabilities(examples), atol=1e-6)
    one_logit = imdb_model.make_model(SETTINGS, len(VOCAB), 2)
    with pytest.raises(ValueError, match="multi_label needs a logit of each label"):
        serving.export(one_logit, params, tmp_path / "other", multi_label=True)
