"""The character model program: it learns, stops, goes on, and tells what it found."""

import json
import shutil
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import inference as charlm_inference
from experiments.charlm import model as charlm_model
from experiments.charlm import train as charlm_train
from experiments.charlm.config import SMOKE, Settings
from experiments.charlm.generator import Writer
from experiments.charlm.train import Options
from experiments.harness.workdir import WorkDir
from jaxrnn.checkpoints import Checkpoints
from tests.harness.test_training_loop import assert_identical, files_below, stopping_at
from tests.harness.test_workdir import another_process
from tests.imdb.test_train import assert_refused

STEPS = (3604 - 1) // (8 * 16)  # of an epoch of the generated text
make_train_step = charlm_model.make_train_step


def read_results(path):
    return json.loads((path / "results.json").read_text())


def read_metrics(path):
    text = (path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_smoke_learns_and_says_what_it_found(charlm_smoke):
    path, out, _ = charlm_smoke
    results, history = read_results(path), read_metrics(path)
    assert [line["epoch"] for line in history] == [1, 2, 3]
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]
    # The two digits of a sum nobody can know: log 10 each, of the 8 or 9 characters.
    assert 2 / 9 * np.log(10) < results["validation_nats_stateful"] < 1.2

    assert results["dataset"] == "generated"
    best = history[results["best_epoch"] - 1]
    for name in ("stateful", "window_64", "window_256"):
        nats = results[f"validation_nats_{name}"]
        assert nats == best[f"validation_nats_{name}"]
        bits = results[f"validation_bits_{name}"]
        assert bits == pytest.approx(nats / np.log(2), rel=1e-6)
    of_all = [line["validation_nats_window_256"] for line in history]
    assert results["validation_nats_window_256"] == min(of_all)
    assert results["characters_per_second"] == history[-1]["characters_per_second"] > 0
    assert results["seconds"] > sum(line["seconds"] for line in history)
    assert results["devices"] == 2
    assert {name: results[name] for name in asdict(SMOKE)} == asdict(SMOKE)
    assert results["versions"]["jax"] == jax.__version__
    # Embedding, LSTM, and logits of the 14 characters.
    assert results["parameters"] == 14 * 8 + (8 + 32 + 1) * 4 * 32 + (32 + 1) * 14

    lines = out.splitlines()[1:-2]
    assert [line.split()[0] for line in lines[1:-1:5]] == ["epoch"] * 3
    assert [line.split()[0] for line in lines[2:-1:5]] == ["1", "2", "3"]
    for glimpse in lines[3:-1:5]:
        assert len(glimpse) == charlm_inference.PREVIEW["character"]
        assert set(glimpse) <= set("0123456789+=. ")
    assert lines[-1].startswith(
        "generated: validation nats per character "
        f"{results['validation_nats_window_64']:.4f} windows of 64 ("
    )


def test_the_output_begins_with_the_data_and_ends_with_what_to_do_next(charlm_smoke):
    path, out, _ = charlm_smoke
    first, *_, where, following = out.splitlines()
    parameters = 14 * 8 + (8 + 32 + 1) * 4 * 32 + (32 + 1) * 14
    assert first == (
        f"generated: 3,604 characters to train, 401 to validate; {parameters:,} "
        "parameters; 2 cpu devices"
    )
    assert where == f"curves, metrics, results and checkpoints are in {path}"
    for name in ("curves.png", "metrics.jsonl", "results.json", "checkpoints"):
        assert (path / name).exists()
    assert following == f"next: python -m experiments.charlm --sample --workdir {path}"


def test_a_scratch_directory_is_not_told_of(charlm_run, monkeypatch):
    """It is gone when the program ends."""
    seen = []
    monkeypatch.setattr(charlm_train.WorkDir, "print_if_finished", lambda *_: True)
    claimed = charlm_train.WorkDir.claimed

    def watched(workdir, *arguments):
        seen.append(workdir.path)
        return claimed(workdir, *arguments)

    monkeypatch.setattr(charlm_train.WorkDir, "claimed", watched)
    assert charlm_run("--smoke") == (0, "", "")
    [path] = seen
    assert not path.exists()


def test_results_are_those_of_the_best_checkpoint(charlm_smoke):
    """By reading on, one row alone, instead of the many that were evaluated at once."""
    path, *_ = charlm_smoke
    results, writer = read_results(path), Writer.load(path)
    _, validation = charlm_datasets.generate(seed=SMOKE.seed).split()

    def mean_nats(window):
        parts = [
            validation[start : start + window + 1]
            for start in range(0, len(validation) - 1, window)
        ]
        nats = [part for text in parts for part in writer.nats(writer.encode(text))]
        return np.concatenate(nats).mean()

    for name, window in (("stateful", 10**6), ("window_64", 64), ("window_256", 256)):
        found = results[f"validation_nats_{name}"]
        assert found == pytest.approx(mean_nats(window), rel=1e-5)


def test_only_the_first_step_compiles(charlm_smoke):
    *_, compiled = charlm_smoke
    assert compiled[0] > 0
    assert compiled[1:] == [0] * (SMOKE.epochs * STEPS - 1)


def test_curves_decode_and_are_not_blank(charlm_smoke):
    path, *_ = charlm_smoke
    pixels = imread(path / "curves.png")
    assert pixels.ndim == 3
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def load_state(path, which):
    settings = WorkDir(path).settings_as(Settings)
    model = charlm_model.make_model(settings, len(WorkDir(path).vocab))
    optimizer = charlm_model.make_optimizer(settings, steps=1)
    template = jax.eval_shape(
        lambda: charlm_model.make_state(model, optimizer, settings)
    )
    return Checkpoints(path / "checkpoints").restore(template, which)[0]


def test_a_run_stopped_again_and_again_ends_bit_for_bit_the_same(
    tmp_path, charlm_smoke, monkeypatch
):
    """After its first step, the last one of an epoch, and in the middle of the next and
    of the last."""
    stops = (1, STEPS, STEPS + STEPS // 2, 3 * STEPS - 1)

    def stopping(*arguments):
        return stopping_at(stops, make_train_step(*arguments))

    options = Options(smoke=True, workdir=tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "")  # The program sets it up for JAX.
    with monkeypatch.context() as patch:
        patch.setattr(charlm_train, "make_train_step", stopping)
        for stop in stops:
            with pytest.raises(KeyboardInterrupt, match=f"after step {stop}, all is"):
                charlm_train.main(options)
            # What the model remembers of each place is not what it began with.
            assert np.abs(load_state(tmp_path, "last").carry[0].h).min() > 0
    charlm_train.main(options)
    for which in ("last", "best"):
        assert_identical(
            load_state(tmp_path, which), load_state(charlm_smoke[0], which)
        )
    found, expected = (
        [read_results(path), *read_metrics(path)]
        for path in (tmp_path, charlm_smoke[0])
    )
    for line in (*found, *expected):
        for timed in ("seconds", "characters_per_second"):
            assert line.pop(timed, 1) > 0
    assert found == expected


def test_a_finished_run_says_so_and_changes_nothing(charlm_smoke, charlm_run):
    path, out, _ = charlm_smoke
    before = files_below(path)
    code, again, err = charlm_run("--smoke", "--workdir", path)
    assert (code, err) == (0, "")
    assert again.splitlines() == [
        f"{path} holds a finished run",
        *out.splitlines()[-3:],
    ]
    assert files_below(path) == before


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    tmp_path, charlm_smoke, charlm_run, monkeypatch
):
    """The smoke run with its last epoch still to do, and a weight that is infinite in
    the step that begins it."""
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    (path / "results.json").unlink()
    checkpoints = Checkpoints(path / "checkpoints")
    state, info = checkpoints.restore(load_state(path, "last"), "last")
    shutil.rmtree(path / "checkpoints")
    info |= {"epochs": 2, "history": info["history"][:2]}
    step = jnp.asarray(2 * STEPS, jnp.int32)
    state = state.replace(train=state.train.replace(step=step))
    checkpoints.save(2 * STEPS, state, info=info, metric=1.0)
    before = files_below(path)

    def poisoned(*arguments):
        step = make_train_step(*arguments)
        return lambda state, batch: step(jax.tree.map(add_infinity, state), batch)

    monkeypatch.setattr(charlm_train, "make_train_step", poisoned)
    result = charlm_run("--smoke", "--workdir", path)
    assert (result[0], result[2].count("\n")) == (2, 1)
    # Of the 28 steps of an epoch 5 raise the rate, the rest lower it along a cosine.
    rate = 1e-2 * (1 + np.cos(np.pi * (2 * 28 - 5) / (3 * 28 - 5)))
    told = f"at step 57 (batch 1 of epoch 3, learning rate {rate:.4g}) is nan: lower "
    assert told in result[2]
    assert files_below(path) == before


def add_infinity(leaf):
    return leaf + np.float32(np.inf) if leaf.dtype == np.float32 else leaf


def test_a_work_directory_of_another_text(tmp_path, charlm_smoke, charlm_run):
    path = tmp_path / "text"
    path.write_text("to be or not to be\n" * 400)
    before = files_below(charlm_smoke[0])
    result = charlm_run("--text", path, "--workdir", charlm_smoke[0])
    assert_refused(result, "belongs to a run with other settings (text '4005 char")
    assert "batch" not in result[2]  # which was not typed
    path.write_text(charlm_datasets.generate(seed=SMOKE.seed).content)
    same = ("--text", path, "--workdir", charlm_smoke[0])
    result = charlm_run(*same, "--hidden", 77)
    assert_refused(result, "belongs to a run with other settings (hidden 32, not 77): ")
    result = charlm_run(*same, "--hidden", 32)
    assert_refused(result, "belongs to a run with other settings (batch 8, not 16")
    assert files_below(charlm_smoke[0]) == before


@pytest.fixture
def unfinished(charlm_smoke, tmp_path):
    """All steps are done, the results are not written."""
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    (path / "results.json").unlink()
    return path


@pytest.fixture
def sampled(charlm_smoke, charlm_run):
    """What the finished run writes."""
    _, out, _ = charlm_run("--sample", "--workdir", charlm_smoke[0], "--length", 20)
    assert len(out) == 21
    return out


def told(path, doing):
    return f"the run in {path} is not finished: {doing} with what it has so far\n"


def test_an_interrupted_sample_goes_on_to_train(unfinished, sampled, charlm_run):
    arguments = ("--sample", "--smoke", "--workdir", unfinished, "--length", 20)
    code, out, err = charlm_run(*arguments)
    assert (code, out) == (0, sampled)
    assert f"\ncontinuing in {unfinished} after step 84\n" in err
    assert json.loads((unfinished / "results.json").read_text())["best_epoch"] > 0
    assert charlm_run(*arguments) == (0, sampled, "")


def test_it_goes_on_with_a_text_that_is_spelled_otherwise(
    unfinished, sampled, charlm_run, tmp_path
):
    settings = json.loads((unfinished / "settings.json").read_text())
    settings["dataset"] = "text: text"
    (unfinished / "settings.json").write_text(json.dumps(settings))
    path = tmp_path / "text"
    path.write_text(charlm_datasets.generate(seed=SMOKE.seed).content)
    options = [
        part
        for name, value in vars(SMOKE).items()
        if value != getattr(Settings(), name)
        for part in (f"--{name.replace('_', '-')}", value)
    ]
    arguments = ("--sample", "--workdir", unfinished, "--length", 20, "--text", path)
    code, out, err = charlm_run(*arguments, *options)
    assert (code, out) == (0, sampled)
    assert f"\ncontinuing in {unfinished} after step 84\n" in err
    results = json.loads((unfinished / "results.json").read_text())
    assert results["dataset"] == f"text: {path}"


def test_beside_a_program_at_work_it_writes_with_what_there_is(
    unfinished, sampled, charlm_run
):
    arguments = ("--sample", "--smoke", "--workdir", unfinished, "--length", 20)
    with another_process(unfinished) as process:
        result = charlm_run(*arguments)
        process.kill()
    why = (
        f"training is not continued: another program is at work in {unfinished}: wait "
        "for its end, or give another --workdir\n"
    )
    assert result == (0, sampled, why + told(unfinished, "sampling"))
    assert not (unfinished / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "changed", "goes_on"),
    [
        (["--smoke"], {}, True),
        (["--smoke"], {"batch": 3, "seq_len": 5}, True),  # lessened by a short text
        (["--smoke"], {"state_reset_prob": 0.5}, False),
        (["--smoke"], {"bytes": True}, False),
        (["--smoke"], {"dataset": "text: mine"}, False),
        (["--smoke", "--seed", 3], {}, False),
        ([], {}, False),
    ],
)
def test_it_trains_with_the_settings_of_the_run_alone(
    unfinished, charlm_run, monkeypatch, arguments, changed, goes_on
):
    seen = []
    monkeypatch.setattr(
        charlm_train, "train", lambda given, _: seen.append(given.workdir)
    )
    monkeypatch.setattr(charlm_train.inference, "sample", lambda *_, **__: None)
    settings = json.loads((unfinished / "settings.json").read_text())
    (unfinished / "settings.json").write_text(json.dumps(settings | changed))
    result = charlm_run("--sample", "--workdir", unfinished, *arguments)
    assert result == (0, "", "")
    assert seen == [unfinished] * goes_on


def test_other_settings_are_refused(unfinished, charlm_run):
    arguments = ("--sample", "--workdir", unfinished, "--hidden", 77)
    assert_refused(charlm_run(*arguments), "hidden 32, not 77")


@pytest.mark.parametrize(
    ("option", "doing"), [("--score", "scoring"), ("--neurons", "analysing")]
)
def test_reading_says_so(unfinished, charlm_run, tmp_path, option, doing):
    path, page = tmp_path / "text", tmp_path / "page.html"
    path.write_text("8+6=14. ")
    more = ("--html", page) if option == "--neurons" else ()
    code, _, err = charlm_run("--workdir", unfinished, option, path, *more)
    assert (code, err) == (0, told(unfinished, doing))


def test_a_finished_run_goes_on_to_more_epochs(charlm_smoke, charlm_run, tmp_path):
    """The cosine falls to zero at the new end, so the rate is no longer zero."""
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    settings = [
        part
        for name, value in vars(SMOKE).items()
        if value != getattr(Settings(), name) and name != "epochs"
        for part in (f"--{name.replace('_', '-')}", value)
    ]
    file = tmp_path / "text"
    file.write_text(charlm_datasets.generate(seed=SMOKE.seed).content)
    found = json.loads((path / "settings.json").read_text())
    (path / "settings.json").write_text(json.dumps(found | {"dataset": "text: text"}))
    arguments = ("--text", file, "--workdir", path, *settings)
    assert_refused(charlm_run(*arguments, "--epochs", 2), "(epochs 3, not 2)")
    code, out, err = charlm_run(*arguments, "--epochs", 4)
    assert (code, err) == (0, "")
    steps, warmup = 4 * STEPS, np.ceil(0.05 * 4 * STEPS)
    rate = 1e-2 * (1 + np.cos(np.pi * (3 * STEPS - warmup) / (steps - warmup)))
    assert out.splitlines()[1:3] == [
        f"continuing in {path} after step {3 * STEPS}",
        "now 4 epochs, planned were 3: the learning rate goes on as scheduled over 4 "
        f"epochs, at {rate:.4g}",
    ]
    assert [line["epoch"] for line in read_metrics(path)] == [1, 2, 3, 4]
    assert read_results(path)["epochs"] == 4
    code, out, err = charlm_run(*arguments, "--epochs", 4)
    assert out.startswith(f"{path} holds a finished run\n")


def test_a_sample_is_refused_for_what_was_typed_alone(charlm_smoke, charlm_run):
    """And what the run was trained with may be typed."""
    arguments = ("--sample", "--length", 20, "--workdir", charlm_smoke[0])
    assert charlm_run(*arguments, "--hidden", 32, "--cell", "lstm")[0] == 0
    result = charlm_run(*arguments, "--hidden", 77, "--cell", "lstm")
    assert_refused(
        result,
        "belongs to a run with other settings (hidden 32, not 77): a trained model is "
        "used with the run's own settings, leave those options out",
    )
