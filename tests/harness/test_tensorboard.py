"""Logs for TensorBoard, read back from the bytes of their files."""

import struct

import jax
import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments.harness.progress import events
from tests.harness.test_training_loop import EPOCHS, STEPS, run, stopping_at


def read(path):
    """The events of all files: each is framed by its length and two checksums."""
    found = []
    for file in sorted(path.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def scalars(path):
    return [
        (value.tag, event.step, value.simple_value)
        for event in read(path)
        for value in event.summary.value
    ]


def test_values_are_scalars_in_groups(tmp_path):
    with events(tmp_path, 3) as log:
        log("step", 4, {"loss": 0.5, "norm": 2.0})
        log("epoch", 4, {"loss": 0.25})
    expected = [("step/loss", 4, 0.5), ("step/norm", 4, 2.0), ("epoch/loss", 4, 0.25)]
    assert scalars(tmp_path) == expected
    started = [event.step for event in read(tmp_path) if event.session_log.status]
    assert started == [4]  # from here on what there was is superseded


def test_without_a_path_there_is_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with events(None, 0) as log:
        log("step", 1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with events(tmp_path, 0) as log:
        log("step", 1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_a_run_logs_its_steps_and_epochs_once(tmp_path):
    logs = tmp_path / "logs"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tensorboard=logs, train_step=stopping_at([STEPS + 1]))
    _, done = run(tmp_path, tensorboard=logs)
    found = scalars(logs)
    losses = [step for tag, step, _ in found if tag == "step/loss"]
    assert losses == list(range(1, EPOCHS * STEPS + 1))
    epochs = [(step, x) for tag, step, x in found if tag == "epoch/train_loss"]
    assert [step for step, _ in epochs] == [STEPS * k for k in range(1, EPOCHS + 1)]
    expected = [line["train_loss"] for line in done.history]
    assert [x for _, x in epochs] == pytest.approx(expected, rel=1e-6)  # float32
