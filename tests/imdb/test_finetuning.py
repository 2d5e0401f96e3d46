"""Fine-tuning: learning rates of layers, mixed batches, and the program's preset."""

import csv
import dataclasses
import json
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.imdb import datasets, finetuning, pretraining
from experiments.imdb import train as imdb_train
from experiments.imdb.batches import Examples
from experiments.imdb.encoder import load_encoders
from experiments.imdb.finetuning import (
    Finetuning,
    MixedBatches,
    make_optimizer,
    slanted_triangular,
)
from experiments.imdb.model import Settings
from experiments.imdb.train import Options
from jaxrnn import placement, training
from jaxrnn.batching import epoch_rng
from tests.harness.test_training_loop import files_below

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("xla_flags_restored")]


def test_the_learning_rate_is_that_of_the_paper():
    """Equation 3 of Howard and Ruder (2018), with its own names."""
    total, cut_frac, ratio, greatest = 200, 0.1, 32, 0.01
    schedule = slanted_triangular(greatest, total)
    cut = math.floor(total * cut_frac)
    for t in range(total):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        expected = greatest * (1 + p * (ratio - 1)) / ratio
        assert float(schedule(t)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_learn_one_after_the_other_and_more_slowly_below(layers):
    steps = 40
    settings = Settings(layers=layers, learning_rate=0.5, clip=None)
    options = Finetuning(layer_decay=3.0, unfreeze=0.1)
    names = ["output", *(f"encoder/l{k}" for k in reversed(range(layers))), "embed"]
    params = {"params": {"embed": {"embedding": jnp.ones(2)}, "output": jnp.ones(2)}}
    params["params"]["encoder"] = {
        f"l{k}{suffix}": {"w_x": jnp.ones(2)}
        for k in range(layers)
        for suffix in ("", "_reverse")
    }
    optimizer = make_optimizer(settings, options, steps)
    state = optimizer.init(params)
    schedule = slanted_triangular(0.5, steps)
    for step in range(steps):
        # Adam's update for a gradient that is always the same has the size 1.
        with jax.numpy_dtype_promotion("standard"):  # as in a train step
            updates, state = optimizer.update(params, state, params)
        for path, leaf in jax.tree.leaves_with_path(updates["params"]):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            [level] = [k for k, part in enumerate(names) if name.startswith(part)]
            rate = float(schedule(step)) / 3.0**level if step >= 4 * level else 0
            np.testing.assert_allclose(leaf, -rate, rtol=1e-4)


def numbered(sizes, first):
    """Texts with a word of their own, of these sizes."""
    return [np.full(size, first + k, np.int32) for k, size in enumerate(sizes)]


@pytest.fixture
def texts(rng):
    """25 texts with labels and 60 without, each with a word of its own."""
    sizes = rng.integers(1, 30, 85)
    labelled = numbered(sizes[:25], 100)
    labels = np.arange(25, dtype=np.int32) % 2
    return Examples(labelled, labels), numbered(sizes[25:], 500)


def test_batches_have_each_text_with_a_label_once_and_others_of_like_length(texts):
    labelled, unlabelled = texts
    mesh = placement.data_mesh(2)
    batches = MixedBatches(labelled, unlabelled, 4, 6, buckets=3, mesh=mesh)
    assert batches.words == sum(ids.size for ids in labelled.ids)
    orders = []
    for epoch in (0, 1, 0):
        made = [make() for make in batches.epoch(epoch_rng(0, epoch))]
        assert len(made) == math.ceil(25 / 4)
        seen, others = [], []
        for batch in made:
            length = batch["tokens"].shape[1]
            assert batch["other_tokens"].shape == (6, length)
            for k, size in enumerate(batch["lengths"]):
                if batch["weights"][k]:
                    word = batch["tokens"][k, 0]
                    seen.append(int(word))
                    assert (batch["tokens"][k, :size] == word).all()
                    assert labelled.ids[word - 100].size == size
                    assert batch["labels"][k] == labelled.labels[word - 100]
            assert batch["other_weights"].tolist() == [1] * 6
            for k, size in enumerate(batch["other_lengths"]):
                word = batch["other_tokens"][k, 0]
                others.append((length, int(word)))
                assert unlabelled[word - 500].size == size <= length
        assert sorted(seen) == list(range(100, 125))
        # No text comes again before all of its bucket have come.
        for length in {length for length, _ in others}:
            words = [word for at, word in others if at == length]
            pool = len(set(words))
            assert len(set(words[:pool])) == min(pool, len(words))
        orders.append((seen, others))
    assert orders[0] == orders[2] != orders[1]


def test_without_other_texts_batches_have_no_such_rows(texts):
    labelled, _ = texts
    batches = MixedBatches(labelled, [], 4, 6, 3, placement.data_mesh(2))
    for make in batches.epoch(epoch_rng(0, 0)):
        assert make()["other_tokens"].shape[0] == 0


def test_a_bucket_without_other_texts_takes_shorter_ones(rng):
    labelled = Examples(numbered([2, 9, 9], 100), np.array([0, 1, 0], np.int32))
    unlabelled = numbered([1, 2], 500)
    batches = MixedBatches(labelled, unlabelled, 1, 2, 2, placement.data_mesh(1))
    for make in batches.epoch(epoch_rng(0, 0)):
        assert sorted(make()["other_tokens"][:, 0].tolist()) == [500, 501]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run of --preset best."""
    path = tmp_path_factory.mktemp("best")
    imdb_train.main(Options(smoke=True, preset="best", workdir=path))
    return path


def test_it_pre_trains_both_directions_and_learns(smoke):
    settings = json.loads((smoke / "settings.json").read_text())
    assert [e.split()[0] for e in settings["encoders"]] == ["forward", "backward"]
    assert settings["embed"] == 2 * pretraining.SMOKE.embed
    assert settings["bidirectional"]
    for direction in ("forward", "backward"):
        results = json.loads((smoke / direction / "results.json").read_text())
        assert results["direction"] == direction
    results = json.loads((smoke / "results.json").read_text())
    assert results["test_accuracy"] >= 0.7
    lines = [json.loads(x) for x in (smoke / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train_loss"] for line in lines]
    assert losses == sorted(losses, reverse=True)
    for part in ("entropy", "adversarial", "virtual_adversarial", "cross_entropy"):
        assert f"train_{part}" in lines[0]


def test_the_model_answers_as_any_other(smoke, program_run):
    code, out, err = program_run("--workdir", smoke, "--predict", "awful dull bad film")
    assert (code, err) == (0, "")
    label, probability, _ = out.split("\t")
    assert label in ("negative", "positive")
    assert 0.5 <= float(probability) <= 1


@pytest.mark.parametrize("stop", [1, 30])
def test_a_run_that_was_stopped_ends_with_the_same_numbers(
    smoke, tmp_path, monkeypatch, program_run, stop
):
    for direction in ("forward", "backward"):
        shutil.copytree(smoke / direction, tmp_path / direction)
    make = training.make_train_step

    def stopping(*arguments):
        step, count = make(*arguments), iter(range(1, 10_000))

        def counted(state, batch):
            if next(count) == stop:
                signal.raise_signal(signal.SIGTERM)
            return step(state, batch)

        return counted

    command = ("--preset", "best", "--smoke", "--workdir", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "make_train_step", stopping)
        code, _, err = program_run(*command)
    assert (code, f"stopped after step {stop}, all is saved" in err) == (130, True)
    code, out, err = program_run(*command)
    assert code == 0, err
    assert f"continuing in {tmp_path} after step {stop}\n" in out
    files = [
        [
            {k: v for k, v in json.loads(line).items() if "second" not in k}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (tmp_path, smoke)
    ]
    assert files[0] == files[1]


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *rows])


def test_encoders_start_another_classification(smoke, tmp_path, program_run):
    rows = [(f"{word} film of a scene", f"topic {k % 3}") for k, word in
            enumerate(["good", "bad", "the"] * 20)]  # fmt: skip
    write_csv(tmp_path / "mine.csv", rows)
    lines = [f"a story {'of the actor ' * k}" for k in range(30)]
    (tmp_path / "more.txt").write_text("\n".join(lines))
    command = (
        *("--csv", tmp_path / "mine.csv", "--unlabelled", tmp_path / "more.txt"),
        *("--encoder", smoke, "--workdir", tmp_path / "run", "--epochs", 2),
        *("--unlabelled-batch", 5, "--buckets", 2, "--max-words", 20),
    )
    before = files_below(smoke)
    code, out, err = program_run(*command)
    assert code == 0, err
    assert files_below(smoke) == before
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["classes"] == ["topic 0", "topic 1", "topic 2"]
    assert settings["unlabelled_batch"] == 5
    vocabularies = [(path / "vocab.txt").read_text() for path in
                    (tmp_path / "run", smoke / "forward")]  # fmt: skip
    assert vocabularies[0] == vocabularies[1]
    code, out, err = program_run(
        "--workdir", tmp_path / "run", "--predict", "good film of a scene"
    )
    assert (code, err) == (0, "")
    assert out.startswith("topic ")


def test_an_encoder_that_may_have_read_what_is_tested_on_is_told(smoke, recwarn):
    data = datasets.generate()
    encoders = load_encoders([smoke])
    imdb_train.warn_of_other_texts(encoders, data)
    other = dataclasses.replace(data, name="other", unlabelled=[])
    imdb_train.warn_of_other_texts(encoders, other)
    assert not recwarn
    with pytest.warns(UserWarning, match="forward was trained on other texts of gen"):
        imdb_train.warn_of_other_texts(
            encoders[:1], dataclasses.replace(data, test=data.train)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epsilon", 2), "--epsilon needs --preset best or --encoder"),
        (("--preset", "best", "--hidden", 7), "--hidden is that of the language model"),
        (
            ("--preset", "best", "--smoke", "--cell", "sru"),
            "--cell sru is not for lang",
        ),
        (("--encoder", "nowhere", "--smoke"), "no pre-trained encoder in nowhere: "),
        (("--preset", "best", "--entropy", -1), "--entropy must be finite and at"),
        (("--preset", "best", "--unlabelled-batch", 0), "--unlabelled-batch must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments, message, tmp_path, program_run
):
    code, _, err = program_run(*arguments, "--workdir", tmp_path / "none")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_the_preset_changes_the_defaults_of_the_command_line(program_run, capsys):
    for arguments, peak in (
        ((), Settings().learning_rate),
        (("--preset", "best"), finetuning.BEST.learning_rate),
        (("--encoder", "x"), finetuning.BEST.learning_rate),
    ):
        options = imdb_train.defaults(arguments)
        assert options.settings.learning_rate == peak
    assert imdb_train.defaults(("--encoder", "x")).settings == finetuning.BEST
    assert dataclasses.asdict(Options().settings) == dataclasses.asdict(Settings())
