"""The training loop: stopped anywhere and started again it ends as if never stopped."""

import contextlib
import json
import resource
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.harness import training_loop
from experiments.harness.training_loop import TrainProgress, fit
from experiments.harness.workdir import WorkDir
from jaxrnn import placement, training
from jaxrnn.batching import epoch_rng
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.metrics import Mean
from tests.harness.test_preemption import SAID

EPOCHS, STEPS = 3, 4
TARGET = np.array([1.0, -2.0, 0.5], np.float32)
OPTIMIZER = optax.adam(0.1)


def loss(params, batch, key):
    """Of a linear model under noise, so that the key matters."""
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    error = jnp.dot(batch["x"], params["w"]) - batch["y"] + noise
    return {"loss": Mean.of(error**2, batch["weights"])}


compiled_step = training.make_train_step(loss, OPTIMIZER, placement.data_mesh(1))


def batches(epoch):
    """In each epoch others, of two shapes."""
    rng = epoch_rng(seed=5, epoch=epoch)

    def make(rows):
        x = rng.normal(size=(rows, 3)).astype(np.float32)
        return {"x": x, "y": x @ TARGET, "weights": np.ones(rows, np.float32)}

    made = [make(rows) for rows in (4, 6, 4, 6)]
    return [lambda batch=batch: batch for batch in made]


def evaluate(state):
    """Best at the end of the second epoch."""
    return {"score": -float((int(state.step) - 2 * STEPS) ** 2)}


def run(
    path,
    *,
    train_step=compiled_step,
    evaluate=evaluate,
    age=0,
    epochs=EPOCHS,
    batches=batches,
    **options,
):
    params = {"w": jnp.zeros(3)}
    return fit(
        training.TrainState.create(params, OPTIMIZER, jax.random.key(3)),
        epochs=epochs,
        batches=batches,
        train_step=train_step,
        evaluate=evaluate,
        rate=lambda steps: 0.1 / (1 + steps),
        best="score",
        units="rows",
        units_per_epoch=20,
        workdir=WorkDir(path),
        checkpoints=checkpoints(path),
        began=time.perf_counter() - age,
        **options,
    )


def checkpoints(path):
    return Checkpoints(path / "checkpoints", mode="max")


def stopping_at(stops, step=compiled_step):
    """A train step that interrupts its own process, once at each of `stops`."""
    left = list(stops)

    def stopping(state, batch):
        state, metrics = step(state, batch)
        if int(state.step) in left:
            left.remove(int(state.step))
            signal.raise_signal(signal.SIGINT)
        return state, metrics

    return stopping


def leaves(state):
    return [
        np.asarray(jax.random.key_data(leaf))
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else np.asarray(leaf)
        for leaf in jax.tree.leaves(state)
    ]


def assert_identical(left, right):
    for a, b in zip(leaves(left), leaves(right), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def without_times(history):
    timed = ("seconds", "rows_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in history]


def files_below(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted")
    return path, *run(path)


def assert_as_uninterrupted(path, state, done, uninterrupted):
    other_path, other_state, other = uninterrupted
    assert_identical(state, other_state)
    assert without_times(done.history) == without_times(other.history)
    assert done.epochs == EPOCHS
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done.history
    assert checkpoints(path).steps()[-1] == checkpoints(other_path).steps()[-1]
    for which in ("last", "best"):
        found, _ = checkpoints(path).restore(state, which)
        expected, _ = checkpoints(other_path).restore(state, which)
        assert_identical(found, expected)


def test_epochs_checkpoints_and_lines(uninterrupted, capsys):
    path, state, done = uninterrupted
    assert int(state.step) == EPOCHS * STEPS
    assert checkpoints(path).steps() == (8, 12)
    best, _ = checkpoints(path).restore(state, "best")
    assert int(best.step) == 8
    assert done.epochs == EPOCHS
    assert [line["epoch"] for line in done.history] == [1, 2, 3]
    assert [line["score"] for line in done.history] == [-16, 0, -16]
    for line in done.history:
        means = {"train_loss", "train_gradient_norm"}
        assert line.keys() == means | {"epoch", "score", "seconds", "rows_per_second"}
        assert line["rows_per_second"] == pytest.approx(20 / line["seconds"])
    # The same again without fit: by hand, and averaged over all rows of an epoch.
    state = training.TrainState.create(
        {"w": jnp.zeros(3)}, OPTIMIZER, jax.random.key(3)
    )
    for epoch, line in enumerate(done.history):
        totals, norms = [], []
        for make in batches(epoch):
            state, metrics = compiled_step(state, make())
            totals.append(float(metrics["loss"].total))
            norms.append(float(metrics["gradient_norm"].value))
        assert line["train_loss"] == pytest.approx(sum(totals) / 20)
        assert line["train_gradient_norm"] == pytest.approx(np.mean(norms))
    assert done.history[2]["train_loss"] < done.history[0]["train_loss"]


@pytest.mark.parametrize(
    "stops",
    [[1], [3], [STEPS], [STEPS + 2], [EPOCHS * STEPS - 1], [EPOCHS * STEPS], [2, 3, 9]],
)
def test_a_stopped_run_ends_as_one_never_stopped(tmp_path, capfd, uninterrupted, stops):
    train_step = stopping_at(stops)
    for stop in stops:
        message = f"stopped after step {stop}, all is saved in {tmp_path}: the same"
        with pytest.raises(KeyboardInterrupt, match=message):
            run(tmp_path, train_step=train_step)
        assert checkpoints(tmp_path).steps()[-1] == stop
    assert capfd.readouterr().err == SAID * len(stops)
    state, done = run(tmp_path, train_step=train_step)
    assert f"continuing in {tmp_path} after step {stops[-1]}" in capfd.readouterr().out
    assert_as_uninterrupted(tmp_path, state, done, uninterrupted)


@pytest.mark.parametrize("stop", [STEPS, EPOCHS * STEPS])
def test_a_stop_during_an_evaluation_waits_for_its_end(tmp_path, uninterrupted, stop):
    def interrupted_evaluate(state):
        if int(state.step) == stop:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(state)

    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {stop}, all is"):
        run(tmp_path, evaluate=interrupted_evaluate)
    state, done = run(tmp_path)
    assert_as_uninterrupted(tmp_path, state, done, uninterrupted)


def test_a_killed_run_goes_on_within_its_epoch(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr("experiments.harness.training_loop.SAVED_EVERY", 3)

    def dying(state, batch):
        if int(state.step) == 7:
            raise MemoryError
        return compiled_step(state, batch)

    with pytest.raises(MemoryError):
        run(tmp_path, train_step=dying)
    assert checkpoints(tmp_path).steps() == (4, 6)
    began = []

    def counted(state, batch):
        began.append(int(state.step))
        return compiled_step(state, batch)

    state, done = run(tmp_path, train_step=counted)
    assert began == [6, 7, 8, 9, 10, 11]
    assert_as_uninterrupted(tmp_path, state, done, uninterrupted)


def test_a_finished_run_does_nothing_more(tmp_path, uninterrupted):
    run(tmp_path)
    before = files_below(tmp_path)

    def refuse(*_):
        raise AssertionError("trained on")

    state, done = run(tmp_path, train_step=refuse, evaluate=refuse)
    assert_as_uninterrupted(tmp_path, state, done, uninterrupted)
    assert files_below(tmp_path) == before


def test_time_spent_adds_up_over_processes(tmp_path):
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, train_step=stopping_at([stop]), age=1000 * stop)
    _, done = run(tmp_path, age=5000)  # this process's own share is the caller's to add
    assert 3000 < done.spent < 3600


def test_only_the_first_of_each_shape_compiles(tmp_path):
    step = training.make_train_step(loss, OPTIMIZER, placement.data_mesh(2))
    compiled = []

    def train_step(state, batch):
        events.clear()
        state, metrics = step(state, batch)
        compiled.append(len(events) > 0)
        return state, metrics

    with compilations() as events:
        run(tmp_path, train_step=train_step)
    assert compiled == [True, True, False, False] + [False] * (EPOCHS - 1) * STEPS


@contextlib.contextmanager
def compilations():
    events = []

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize("stop", [STEPS + 1, 2 * STEPS])
def test_behind_a_damaged_checkpoint_a_run_goes_back(
    tmp_path, uninterrupted, capsys, stop
):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, train_step=stopping_at([stop]))
    damaged = tmp_path / "checkpoints" / f"step_{stop}"
    (damaged / "state" / "_METADATA").unlink()
    message = f"step {stop} in .* is damaged, remove it: .*_METADATA: going back to "
    with pytest.warns(UserWarning, match=f"{message}step {STEPS}$"):
        state, done = run(tmp_path)
    assert f"continuing in {tmp_path} after step {STEPS}" in capsys.readouterr().out
    assert_as_uninterrupted(tmp_path, state, done, uninterrupted)


def test_a_full_disk_stops_a_run_and_loses_nothing(tmp_path, uninterrupted, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, train_step=stopping_at([STEPS + 1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = files_below(tmp_path / "checkpoints")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ValueError, match=f"cannot .*{tmp_path}.*large") as error:
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert before.items() <= files_below(tmp_path / "checkpoints").items()
    assert_as_uninterrupted(tmp_path, *run(tmp_path), uninterrupted)


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_a_step_that_is_not_finite_stops_and_saves_nothing(tmp_path, name):
    before = {}

    def train_step(state, batch):
        state, metrics = compiled_step(state, batch)
        if int(state.step) == STEPS + 2:
            before.update(files_below(tmp_path))
            return state, metrics | {name: Mean.of(np.array([np.inf]))}
        return state, metrics

    with pytest.raises(ValueError, match=f"^{name} at step 6 .* is inf: low") as error:
        run(tmp_path, train_step=train_step)
    # The rate of the step itself, the sixth: 0.1 / 6.
    assert "(batch 2 of epoch 2, learning rate 0.01667) is inf" in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert checkpoints(tmp_path).steps() == (STEPS,)
    assert files_below(tmp_path) == before


def test_an_evaluation_that_is_not_finite_stops_and_saves_nothing(tmp_path):
    before = {}

    def evaluate_nan(state):
        if int(state.step) < 2 * STEPS:
            return evaluate(state)
        before.update(files_below(tmp_path))
        return {"loss": float("nan"), "score": 0.0}

    with pytest.raises(ValueError, match=r"^loss at step 8 .* is nan: lower") as error:
        run(tmp_path, evaluate=evaluate_nan)
    assert "(batch 4 of epoch 2, learning rate 0.0125) is nan" in str(error.value)
    assert files_below(tmp_path) == before


def scores(*values):
    """An evaluation that gives the epochs these scores; the greatest is the best."""
    return lambda state: {"score": values[int(state.step) // STEPS - 1]}


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ((0.5, 0.4, 0.3), 2, 3),
        ((0.5, 0.4, 0.6), 1, 2),
        ((0.5, 0.5, 0.6), 1, 2),  # as good is not better
        ((0.4, 0.5, 0.4), 2, 3),
        ((0.5, 0.4, 0.3), None, 3),
    ],
)
def test_patience_is_for_so_many_epochs(tmp_path, capsys, values, patience, epochs):
    state, done = run(tmp_path, evaluate=scores(*values), patience=patience)
    assert done.epochs == epochs
    assert int(state.step) == epochs * STEPS
    assert [line["score"] for line in done.history] == list(values[:epochs])
    told = f"stopped after epoch {epochs}: score was not better for {patience} epochs\n"
    assert capsys.readouterr().out.endswith(told) == (epochs < 3)


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    first = run(tmp_path, evaluate=scores(0.5, 0.4), patience=1)
    before = files_below(tmp_path)
    again = run(tmp_path, evaluate=None, train_step=None, patience=1)
    assert again[1].history == first[1].history
    assert files_below(tmp_path) == before
    best, _ = checkpoints(tmp_path).restore(first[0], "best")
    assert int(best.step) == STEPS


def test_with_losses_the_least_is_the_best():
    done = TrainProgress(history=[{"loss": value} for value in (3.0, 1.0, 2.0, 1.0)])
    assert done.epochs_since_best("loss", "min") == 2
    assert done.epochs_since_best("loss", "max") == 3
    assert TrainProgress().epochs_since_best("loss", "min") == 0


def test_after_each_epoch_the_caller_has_its_state(tmp_path, capsys):
    def show(state):
        print(f"after {int(state.step)}, saved {checkpoints(tmp_path).steps()[-1]}")

    run(tmp_path, after_epoch=show)
    lines = capsys.readouterr().out.splitlines()
    # Each below a row of its own and the two lines of a header.
    assert lines[3::4] == [f"after {n}, saved {n}" for n in (4, 8, 12)]


class OnDevice:
    """A number that a device computes, in the eyes of the loop."""

    def __init__(self, value, seen):
        self.value, self.seen = value, seen

    def block_until_ready(self):
        self.seen.append(f"wait {self.value}")
        return self

    def __array__(self, dtype=None, copy=None):
        self.seen.append(f"read {self.value}")
        return np.array(self.value, np.float32)


def test_the_next_step_is_dispatched_before_one_is_waited_for(tmp_path, monkeypatch):
    """So a device has work while the host makes batches and reads metrics."""
    monkeypatch.setattr(training_loop, "READ_SECONDS", 1e9)
    monkeypatch.setattr(training_loop, "READ_EVERY", 2)
    seen = []

    def watched(epoch):
        def make(k):
            seen.append(f"make {STEPS * epoch + k + 1}")
            return batches(epoch)[k]()

        return [lambda k=k: make(k) for k in range(STEPS)]

    def train_step(state, batch):
        state, _ = compiled_step(state, batch)
        step = int(state.step)
        seen.append(f"step {step}")
        return state, {"loss": Mean(OnDevice(step, seen), np.float32(1))}

    _, done = run(tmp_path, train_step=train_step, batches=watched, epochs=1)
    assert done.history[0]["train_loss"] == (1 + 2 + 3 + 4) / 4
    waits = [event for event in seen if event.startswith("wait")]
    assert waits == ["wait 1", "wait 2", "wait 3"]  # one step ahead, not more
    for k in (1, 2, 3):
        assert seen.index(f"make {k + 1}") < seen.index(f"step {k + 1}")
        assert seen.index(f"step {k + 1}") < seen.index(f"wait {k}")
    # Read together, when there are more than two, without the one that runs.
    assert seen.index("step 3") < seen.index("read 1") < seen.index("read 2")
    assert seen.index("read 2") < seen.index("make 4") < seen.index("read 3")


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("every", [1, 3, 100])
def test_when_metrics_are_read_changes_no_bit(
    tmp_path, uninterrupted, monkeypatch, seconds, every
):
    monkeypatch.setattr(training_loop, "READ_SECONDS", seconds)
    monkeypatch.setattr(training_loop, "READ_EVERY", every)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, train_step=stopping_at([STEPS + 3]))
    assert_as_uninterrupted(tmp_path, *run(tmp_path), uninterrupted)


def test_a_step_that_is_not_finite_is_seen_before_it_is_saved(tmp_path, monkeypatch):
    """Though metrics are read late: the save in mid-epoch is due at once after it."""
    monkeypatch.setattr(training_loop, "SAVED_EVERY", 6)
    monkeypatch.setattr(training_loop, "READ_SECONDS", 1e9)

    def train_step(state, batch):
        state, metrics = compiled_step(state, batch)
        if int(state.step) == 6:
            metrics |= {"loss": Mean.of(np.array([np.nan]))}
        return state, metrics

    with pytest.raises(ValueError, match=r"^loss at step 6 .batch 2 of epoch 2,"):
        run(tmp_path, train_step=train_step)
    assert checkpoints(tmp_path).steps() == (STEPS,)


def test_more_epochs_continue_a_run_and_the_rate_is_told(tmp_path, capsys):
    """Where the rate does not depend on their number, as one that had them at first."""
    for name in ("more", "whole"):
        (tmp_path / name).mkdir()
    run(tmp_path / "more")
    capsys.readouterr()
    found = run(tmp_path / "more", epochs=EPOCHS + 2)
    told = capsys.readouterr().out.splitlines()[:2]
    assert told == [
        f"continuing in {tmp_path}/more after step 12",
        "now 5 epochs, planned were 3: the learning rate goes on as scheduled over 5 "
        "epochs, at 0.007692",  # 0.1 / 13
    ]
    expected = run(tmp_path / "whole", epochs=EPOCHS + 2)
    assert "planned" not in capsys.readouterr().out
    assert_identical(found[0], expected[0])
    assert without_times(found[1].history) == without_times(expected[1].history)


def test_tensorboard_says_how_to_see_it(tmp_path, capsys):
    run(tmp_path, tensorboard=tmp_path / "logs")
    line = (
        "TensorBoard logs: pip install tensorboard, then tensorboard --logdir "
        f"{tmp_path}/logs"
    )
    assert capsys.readouterr().out.splitlines()[0] == line
