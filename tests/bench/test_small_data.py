"""Draws of few texts, and both contenders on them."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from experiments.bench import linear_baseline, small_data
from experiments.imdb import datasets

pytest.importorskip("sklearn")


def test_draws_differ_and_have_the_labels_of_their_texts():
    data = datasets.generate(300, seed=1)
    labels = {
        text: label
        for part in data.parts.values()
        for text, label in zip(part.texts, part.labels.tolist(), strict=True)
    }
    trained = {*data.train.texts, *data.validation.texts}
    draws = [small_data.draw_texts(data, "reviews-40", draw) for draw in (0, 0, 1)]
    for some, others in draws:
        assert len(some.texts) == 40
        assert {*some.texts} <= trained
        assert {*others.texts} == {*data.test.texts}
        for part in (some, others):
            assert part.labels.tolist() == [labels[text] for text in part.texts]
    assert draws[0][0].texts == draws[1][0].texts
    assert draws[0][0].texts != draws[2][0].texts


def test_sentences_are_long_enough_and_keep_their_label():
    texts = ["Bad.", "It was bad! So very bad it was.<br />Why?", "A good one, see it."]
    found = small_data.sentences(
        datasets.Split(texts, np.array([0, 0, 1])), np.random.default_rng(0)
    )
    assert found.texts == ["So very bad it was.", "A good one, see it."]
    assert found.labels.tolist() == [0, 1]


def test_a_training_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    reviews = datasets.generate(50)
    with pytest.raises(ValueError, match=r"experiments\.imdb .* ended with code 1"):
        small_data.compare(reviews, "reviews-9", 0, tmp_path / "run")


@pytest.mark.slow
def test_both_are_trained_once_on_the_same_texts(monkeypatch, capsys, tmp_path):
    rng = np.random.default_rng(5)

    def reviews(number):
        labels = np.arange(number, dtype=np.int32) % 2
        words = rng.integers(300, size=(number, 8))
        texts = [
            " ".join(["good" if label else "bad", *(f"word{k}" for k in row)])
            for label, row in zip(labels, words, strict=True)
        ]
        return datasets.Split(texts, labels)

    data = dataclasses.replace(
        datasets.generate(50),
        train=reviews(300),
        validation=reviews(50),
        test=reviews(50),
    )
    monkeypatch.setattr(small_data.datasets, "load_imdb", lambda *given: data)
    options = small_data.Options(tmp_path, tasks=("reviews-200",), draws=1)  # pyright: ignore[reportArgumentType]

    def run():
        small_data.main(options)
        return capsys.readouterr().out

    told = run()
    directory = tmp_path / "reviews-200-0"
    found = json.loads((directory / "comparison.json").read_text())
    assert [*found] == [
        "experiments.imdb", "logistic regression", "with naive Bayes weights",
    ]  # fmt: skip
    results = json.loads((directory / "run" / "results.json").read_text())
    assert found["experiments.imdb"]["accuracy"] == results["test_accuracy"] > 0.8
    again = datasets.read_csv(directory / "train.csv", test=directory / "test.csv")
    for one in linear_baseline.baselines(again):
        assert found[one.name]["accuracy"] == one.accuracy > 0.8
    assert (tmp_path / "table.md").read_text() in told
    assert run() == told  # nothing is trained again

    # A classifier from language models comes beside what there is.
    asked = []

    def train_program(train, test, run, options):
        asked.append((train.parent, options))
        return {"accuracy": 0.25, "seconds": 3.0}

    monkeypatch.setattr(small_data, "train_program", train_program)
    encoder = tmp_path / "forward"
    small_data.main(dataclasses.replace(options, encoder=(encoder,)))
    [(asked_of, given)] = asked
    assert asked_of == directory
    assert given[:2] == ("--encoder", str(encoder))
    assert given[2:] == small_data.CROSS_ENTROPY_ALONE
    assert "25.00% (25.00 to 25.00) | 3 |" in capsys.readouterr().out
    kept = json.loads((directory / "comparison.json").read_text())
    assert kept.pop(small_data.FROM_ENCODER)["accuracy"] == 0.25
    assert kept == found


def test_the_curves_are_of_reviews_by_their_number(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        small_data, "plot_curves", lambda *given, **options: drawn.append(given)
    )
    found = {
        "reviews-1000": [{"a": {"accuracy": 0.5}}, {"a": {"accuracy": 0.75}}],
        "sentences-10000": [{"a": {"accuracy": 0.1}}],
        "reviews-100": [{"a": {"accuracy": 0.25}}],
    }
    small_data.plot("path", found)  # pyright: ignore[reportArgumentType]
    [(_, _, _, panels)] = drawn
    assert panels == {"accuracy, %": {"a": [(100, 25.0), (1000, 62.5)]}}


def test_an_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match="--encoder needs at least one directory"):
        small_data.main(small_data.Options(tmp_path, encoder=()))
