"""Two processes over loopback: the same run as that of one, stopped and lost ones too.

Each process has one CPU device; the runs that they are compared with have one process.
"""

import dataclasses
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.charlm import config as charlm_config
from experiments.charlm import train as charlm_train
from experiments.harness import distributed
from experiments.harness.distributed import Cluster
from experiments.imdb import model as imdb_model
from experiments.imdb import train as imdb_train

pytestmark = pytest.mark.slow

# Without dropout, whose keys are the devices' own. A rate that does not magnify the
# rounding of sums over two devices: Adam divides by gradients that may be near zero.
CHARACTERS = charlm_config.Settings(
    cell="lstm", embed=4, hidden=8, epochs=3, batch=4, seq_len=16, learning_rate=1e-3,
    patience=None,
)  # fmt: skip
# 6 rows in a batch of 5 for two devices; the last batch has rows of process 0 alone.
REVIEWS = imdb_model.Settings(
    embed=4, hidden=4, dropout=0, word_dropout=0, pretrain=False, buckets=1, epochs=3,
    batch=5, learning_rate=1e-3,
)  # fmt: skip
TIMED = ("seconds", "words_per_second", "characters_per_second")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text of 6 steps an epoch, and reviews of 8."""
    path, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (path / "text").write_text("".join(rng.choice(list("abcd e\n"), size=450)))
    words = np.array(["dull", "fine", "film", "plot", "bad", "good"])
    rows = [(" ".join(rng.choice(words, size=9)), k % 2) for k in range(44)]
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    (path / "reviews").write_text("\n".join(lines))
    return path


def options(name, data, workdir, devices):
    """Of one process."""
    if name == "charlm":
        given = {"text": (data / "text",), "settings": CHARACTERS}
        return charlm_train.Options(workdir=workdir, devices=devices, **given)
    given = {"csv": data / "reviews", "settings": REVIEWS}
    return imdb_train.Options(workdir=workdir, devices=devices, **given)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """What one process finds with so many devices, by program and devices."""

    @functools.cache
    def found(name, devices):
        workdir = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XLA_FLAGS", "")  # The program sets it up for JAX.
            program = {"charlm": charlm_train, "imdb": imdb_train}[name]
            program.main(options(name, data, workdir, devices))
        return history(workdir)

    return found


def history(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def start(name, data, workdir, at=-1, signals=(0, 0)):
    """Two processes; each sends itself its signal before the step after `at` steps."""
    given = {"charlm": CHARACTERS, "imdb": REVIEWS}[name]
    arguments = [f"--workdir={workdir}", "--num-processes=2"]
    arguments.append(
        {"charlm": f"--text={data}/text", "imdb": f"--csv={data}/reviews"}[name]
    )
    for field, value in dataclasses.asdict(given).items():
        if value != getattr(type(given)(), field):
            option = field.replace("_", "-")
            arguments += (
                ["--no-pretrain"] if value is False else [f"--{option}={value}"]
            )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        arguments.append(f"--coordinator=localhost:{free.getsockname()[1]}")
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.harness.distributed_process", name, str(at),
             str(int(number)), f"--process-id={process}", *arguments],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
                 "XLA_FLAGS": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process, number in enumerate(signals)
    ]  # fmt: skip


def end(processes):
    """Code, output and errors of each."""
    told = [process.communicate(timeout=600) for process in processes]
    return [(p.returncode, *t) for p, t in zip(processes, told, strict=True)]


def assert_same(found, expected):
    assert [line["epoch"] for line in found] == [1, 2, 3]
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        names = [name for name in a if name not in TIMED]
        np.testing.assert_allclose(
            [a[name] for name in names], [b[name] for name in names], rtol=1e-4
        )


@pytest.fixture(scope="module")
def lost(data, tmp_path_factory):
    """The character model where process 1 was killed in the second epoch: its
    directory, what process 0 said, and how many seconds after."""
    workdir = tmp_path_factory.mktemp("lost")
    first, second = start("charlm", data, workdir, at=8, signals=(0, signal.SIGKILL))
    assert second.wait(timeout=600) == -signal.SIGKILL
    began = time.monotonic()
    [said, _] = end([first, second])
    return workdir, said, time.monotonic() - began


def test_a_lost_process_ends_the_others(lost):
    workdir, (code, out, err), seconds = lost
    assert code == 2
    assert "error: another process of the run was lost" in err
    assert "the same command, started again on each, continues" in err
    assert "Traceback" not in err
    assert seconds < 60
    assert "  epoch  " in out
    assert len(history(workdir)) == 1


def test_a_lost_process_0_ends_the_others_and_they_go_on(data, alone, tmp_path):
    """Its heartbeat is JAX's own: so is what the others say, and how they end."""
    first, second = start("charlm", data, tmp_path, at=8, signals=(signal.SIGKILL, 0))
    assert first.wait(timeout=600) == -signal.SIGKILL
    began = time.monotonic()
    [_, (code, _, err)] = end([first, second])
    assert time.monotonic() - began < 60
    assert code != 0
    assert "the same command, started again on each, continues" in err
    assert "Terminating process because the JAX distributed service" in err
    (code, out, _), other = end(start("charlm", data, tmp_path))
    assert (code, other[0]) == (0, 0)
    assert "after step 6\n" in out
    assert_same(history(tmp_path), alone("charlm", 2))


def test_two_processes_go_on_where_one_was_lost(lost, data, alone, tmp_path):
    shutil.copytree(lost[0], tmp_path, dirs_exist_ok=True)
    (code, out, _), other = end(start("charlm", data, tmp_path))
    assert (code, other[0]) == (0, 0)
    assert "after step 6\n" in out
    assert "per second" in out
    assert other[1] == ""  # process 0 speaks for both
    assert_same(history(tmp_path), alone("charlm", 2))
    assert_same(history(tmp_path), alone("charlm", 1))
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["devices"], results["machine"]["processes"]) == (2, 2)
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("devices", [1, 2])
def test_one_process_goes_on_where_two_were(
    lost, data, alone, tmp_path, capsys, monkeypatch, devices
):
    shutil.copytree(lost[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("XLA_FLAGS", "")
    charlm_train.main(options("charlm", data, tmp_path, devices))
    assert "after step 6\n" in capsys.readouterr().out
    assert_same(history(tmp_path), alone("charlm", devices))


def test_two_processes_stop_together_and_others_go_on(
    data, alone, tmp_path, capsys, monkeypatch
):
    """Two processes, of which one hears a SIGTERM; then one; then two again."""
    ended = end(start("imdb", data, tmp_path, at=3, signals=(0, signal.SIGTERM)))
    assert [code for code, *_ in ended] == [130, 130]
    stopped = {err.split("stopped after step ")[1].split(",")[0] for *_, err in ended}
    assert len(stopped) == 1
    step = int(stopped.pop())
    assert 3 < step < 24

    monkeypatch.setenv("XLA_FLAGS", "")
    make_train_step = imdb_train.training.make_train_step

    def make_stopping_step(*arguments):
        train_step = make_train_step(*arguments)

        def stopping(state, batch):
            signal.raise_signal(signal.SIGINT)
            return train_step(state, batch)

        return stopping

    with monkeypatch.context() as patch:
        patch.setattr(imdb_train.training, "make_train_step", make_stopping_step)
        with pytest.raises(KeyboardInterrupt, match=f"after step {step + 1}, all is"):
            imdb_train.main(options("imdb", data, tmp_path, 1))
    assert f"after step {step}\n" in capsys.readouterr().out

    (code, out, _), other = end(start("imdb", data, tmp_path))
    assert (code, other[:2]) == (0, (0, ""))
    assert f"after step {step + 1}\n" in out
    assert_same(history(tmp_path), alone("imdb", 1))
    assert_same(history(tmp_path), alone("imdb", 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "need --coordinator HOST:PORT"),
        ({"process_id": 0}, "need --coordinator HOST:PORT"),
        ({"num_processes": 0}, "--num-processes must be at least 1, got 0"),
        ({"coordinator": "host"}, "--coordinator must be HOST:PORT, got host"),
        ({"coordinator": ":1"}, "--coordinator must be HOST:PORT, got :1"),
        ({"coordinator": "host:99999"}, "must be HOST:PORT, got host:99999"),
        ({"coordinator": "host:1"}, "needs --num-processes and --process-id"),
        (
            {"coordinator": "host:1", "num_processes": 2, "process_id": 2},
            "--process-id must be from 0 to 1, got 2",
        ),
    ],
)
def test_options_that_do_not_fit_together(given, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**given).join()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),  # nobody says: JAX looks
        ({"SLURM_NTASKS": "1"}, True),
        ({"SLURM_NTASKS": "4"}, False),
        ({"TPU_PROCESS_ADDRESSES": "local"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a", "OMPI_COMM_WORLD_SIZE": "2"}, False),
    ],
)
def test_a_cluster_of_one_is_none(environment, expected):
    assert distributed._is_alone(environment) == expected


def test_a_number_of_processes_that_is_none_names_its_variable():
    message = "the environment variable SLURM_NTASKS must be a number of processes, got"
    with pytest.raises(ValueError, match=f"{message} 'two': correct or unset it"):
        distributed._is_alone({"SLURM_NTASKS": "two"})


def test_without_a_cluster_there_is_one_process():
    Cluster().join()
    Cluster(num_processes=1).join()
    assert not distributed.jax.distributed.is_initialized()


def test_slurm_is_joined_by_itself():
    code = (
        "import jax; from experiments.harness import distributed;"
        "distributed.Cluster().join();"
        "print(jax.process_index(), jax.process_count(), flush=True);"
    )
    # A job number whose coordinator has a free port: JAX puts it at 61440 + job % 4096.
    job = next(job for job in range(os.getpid() % 4096, 4096) if is_free(61440 + job))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "SLURM_JOB_ID": str(job),
                 "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
                 "SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in (0, 1)
    ]  # fmt: skip
    (code, out, _), other = end(processes)
    assert (code, other[0]) == (0, 0)
    assert "0 2" in out
    assert other[1] == ""


def is_free(port):
    with socket.socket() as tried:
        return tried.connect_ex(("localhost", port)) != 0
