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

from experiments.harness.training_loop import fit
from experiments.harness.workdir import WorkDir
from jaxrnn import placement, training
from jaxrnn.batching import epoch_rng
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.metrics import Mean

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


def run(path, *, train_step=compiled_step, evaluate=evaluate, age=0, **options):
    params = {"w": jnp.zeros(3)}
    return fit(
        training.TrainState.create(params, OPTIMIZER, jax.random.key(3)),
        epochs=EPOCHS,
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
def test_a_stopped_run_ends_as_one_never_stopped(
    tmp_path, capsys, uninterrupted, stops
):
    train_step = stopping_at(stops)
    for stop in stops:
        message = f"stopped after step {stop}, all is saved in {tmp_path}: the same"
        with pytest.raises(KeyboardInterrupt, match=message):
            run(tmp_path, train_step=train_step)
        assert checkpoints(tmp_path).steps()[-1] == stop
    assert capsys.readouterr().err == "stopping when this is done ...\n" * len(stops)
    state, done = run(tmp_path, train_step=train_step)
    assert f"continuing in {tmp_path} after step {stops[-1]}" in capsys.readouterr().out
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
