"""Checkpoints on bad disks: nothing damaged goes unnoticed, nothing good is lost."""

import errno
import os
import pathlib
import resource
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import manifest
from jaxrnn.checkpoints import CheckpointError, Checkpoints
from tests.test_checkpoints import assert_identical, files_below, random_state


def test_every_truncated_file_is_noticed(tmp_path):
    good = tmp_path / "good"
    Checkpoints(good).save(5, random_state(1), info={"epoch": 1}, metric=0.5)
    state_files = files_below(good / "step_5" / "state")
    assert len(state_files) > 5
    for file in [*state_files, good / "step_5" / "record.json"]:
        content = file.read_bytes()
        for damaged in (b"", content[: len(content) // 2], content[:-1], flip(content)):
            file.write_bytes(damaged)
            check_identical_or_error(good)
        file.write_bytes(content)
    assert check_identical_or_error(good) == "identical"


def test_every_missing_file_of_the_state_is_noticed(tmp_path):
    Checkpoints(tmp_path).save(5, random_state(1), info={"epoch": 1}, metric=0.5)
    for file in files_below(tmp_path / "step_5" / "state"):
        content = file.read_bytes()
        file.unlink()
        assert file.name in check_identical_or_error(tmp_path)
        file.write_bytes(content)
    shutil.rmtree(tmp_path / "step_5" / "state")
    assert "_METADATA" in check_identical_or_error(tmp_path)


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def check_identical_or_error(directory):
    """The error's text, one line that names step and directory; or "identical"."""
    checkpoints = Checkpoints(directory)
    assert checkpoints.steps() == (5,)
    try:
        state, info = checkpoints.restore(random_state(2))
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(f"the checkpoint of step 5 in {directory} is damaged")
        assert "\n" not in message
        return message
    assert_identical(state, random_state(1))
    assert info == {"epoch": 1}
    return "identical"


def test_damaged_record_neither_hides_nor_costs_the_others(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, random_state(1), info={}, metric=0.1)
    checkpoints.save(2, random_state(2), info={}, metric=0.2)
    record = tmp_path / "step_1" / "record.json"
    record.write_text(record.read_text().replace("0.1", "0.9"))
    with pytest.raises(CheckpointError, match=r"step 1 .*changed: record\.json"):
        checkpoints.restore(random_state(0), 1)
    state, _ = checkpoints.restore(random_state(0), "last")
    assert_identical(state, random_state(2))
    checkpoints.save(3, random_state(3), info={}, metric=0.3)
    assert checkpoints.steps() == (1, 2, 3)


def test_a_damaged_checkpoint_is_replaced_and_a_good_one_is_not(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, random_state(1), info={}, metric=0.1)
    with pytest.raises(ValueError, match="has a checkpoint of step 1"):
        checkpoints.save(1, random_state(2), info={}, metric=0.1)
    assert_identical(checkpoints.restore(random_state(0))[0], random_state(1))
    (tmp_path / "step_1" / "state" / "_METADATA").unlink()
    checkpoints.save(1, random_state(2), info={}, metric=0.1)
    assert_identical(checkpoints.restore(random_state(0))[0], random_state(2))


def test_what_a_killed_run_leaves_is_not_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, random_state(1), info={}, metric=0.1)
    (tmp_path / "notes").mkdir()
    shutil.copytree(tmp_path / "step_1", tmp_path / "step_2")
    (tmp_path / "step_2" / "record.json").rename(
        tmp_path / "step_2" / "record.json.partial"
    )
    (tmp_path / "step_3" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    assert Checkpoints(tmp_path).steps() == (1,)
    assert_identical(checkpoints.restore(random_state(0))[0], random_state(1))
    assert (tmp_path / "step_2").exists()  # reading removes nothing
    checkpoints.save(2, random_state(2), info={}, metric=0.2)
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "step_1", "step_2"}
    assert_identical(checkpoints.restore(random_state(0))[0], random_state(2))


def test_a_whole_checkpoint_that_cannot_be_restored_is_not_called_damaged(
    tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, random_state(step), info={}, metric=0.1)

    def exhausted(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpoints._orbax, "restore", exhausted)
    message = "cannot restore step 2 of .*, whose files are whole: .*EXHAUSTED"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(random_state(0))


def test_failed_write_loses_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    large = {"w": jax.random.normal(jax.random.key(0), (300, 300))}
    small = {"w": jnp.ones(2)}
    checkpoints.save(1, small, info={}, metric=0.1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a disk that is full
    try:
        with pytest.raises(CheckpointError, match="cannot save step 2") as error:
            checkpoints.save(2, large, info={}, metric=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert checkpoints.steps() == (1,)
    assert_identical(checkpoints.restore(small, "best")[0], small)
    checkpoints.save(2, large, info={}, metric=0.0)
    assert checkpoints.steps() == (1, 2)
    assert_identical(checkpoints.restore(large)[0], large)


def test_a_disk_without_room_is_said_in_numbers(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, metric=0.1)
    large = {"w": np.ones(10**6, np.float32)}
    room = types.SimpleNamespace(free=2 * 4_000_000 + 2**20 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    message = r"step 2 in .*: OSError: 9,048,575 bytes are free there, up to 9,048,576 "
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save(2, large, info={}, metric=0.0)
    assert checkpoints.steps() == (1,)
    assert_identical(checkpoints.restore(state_of(0))[0], state_of(1))
    room.free += 1
    checkpoints.save(2, large, info={}, metric=0.0)
    assert checkpoints.steps() == (1, 2)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("call", ["mkdir", "write_text", "replace"])
def test_a_disk_that_takes_nothing_more(tmp_path, monkeypatch, code, call):
    """Not the directory of a state, or not the record behind a whole one."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, metric=0.1)
    before = {file: file.read_bytes() for file in files_below(tmp_path)}

    def refuse(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, call, refuse)
        with pytest.raises(CheckpointError) as error:
            save(checkpoints, 2, metric=0.0)
    assert str(error.value).startswith(
        f"cannot save step 2 in {tmp_path}, make room there or give another directory: "
    )
    assert os.strerror(code) in str(error.value)
    assert "\n" not in str(error.value)
    assert before.items() <= {f: f.read_bytes() for f in files_below(tmp_path)}.items()
    assert checkpoints.steps() == (1,)
    assert_identical(checkpoints.restore(state_of(0), "best")[0], state_of(1))
    save(checkpoints, 2, metric=0.0)
    assert checkpoints.steps() == (1, 2)


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "flipped": lambda file: file.write_bytes(flip(file.read_bytes())),
    "missing": lambda file: file.unlink(),
}


def state_of(step):
    return {"w": jnp.arange(3.0) + step}


def save(checkpoints, step, metric):
    checkpoints.save(step, state_of(step), info={"at": step}, metric=metric)


def damage_state(directory, step, damage):
    files = files_below(directory / f"step_{step}" / "state")
    damage(max(files, key=lambda file: file.stat().st_size))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(("which", "damaged", "used"), [("last", 8, 4), ("best", 4, 8)])
def test_another_takes_the_place_of_a_damaged_one(
    tmp_path, which, damaged, used, damage
):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 4, metric=0.1)
    save(checkpoints, 8, metric=0.2)
    damage_state(tmp_path, damaged, damage)
    before = files_below(tmp_path)
    message = f"the checkpoint of step {damaged} in {tmp_path} is damaged, remove it: "
    with pytest.warns(UserWarning, match=f"^{message}.*: going back to step {used}$"):
        state, info = checkpoints.restore(state_of(0), which)
    assert_identical(state, state_of(used))
    assert info == {"at": used}
    assert files_below(tmp_path) == before


def test_what_is_saved_behind_a_damaged_one_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 4, metric=0.3)
    save(checkpoints, 8, metric=0.2)
    save(checkpoints, 12, metric=0.4)
    damage_state(tmp_path, 8, DAMAGES["flipped"])  # the best
    damage_state(tmp_path, 12, DAMAGES["missing"])  # the last
    with pytest.raises(CheckpointError, match=r"step 12 .* missing or .*; .* step 8 "):
        checkpoints.restore(state_of(0))
    save(checkpoints, 10, metric=0.5)
    assert checkpoints.steps() == (8, 10, 12)
    save(checkpoints, 11, metric=0.6)  # 10 is the best of the good ones
    assert checkpoints.steps() == (8, 10, 11, 12)
    save(checkpoints, 12, metric=0.6)
    assert checkpoints.steps() == (8, 10, 11, 12)
    assert_identical(checkpoints.restore(state_of(0))[0], state_of(12))
    with pytest.warns(UserWarning, match="step 8 .* going back to step 10"):
        state, _ = checkpoints.restore(state_of(0), "best")
    assert_identical(state, state_of(10))


def test_a_save_reads_what_it_wrote_and_what_it_does_not_know(tmp_path, monkeypatch):
    verified = manifest.verified
    read = []

    def counted(path):
        read.append(int(path.name.removeprefix("step_")))
        return verified(path)

    monkeypatch.setattr(manifest, "verified", counted)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):  # the first is the best
        save(checkpoints, step, metric=step)
    assert read == [1, 2, 3]
    read.clear()
    checkpoints = Checkpoints(tmp_path)
    damage_state(tmp_path, 1, DAMAGES["flipped"])
    for step in (4, 5):
        save(checkpoints, step, metric=step)
    # The damaged one is not known to be whole by any look at it.
    assert read == [1, 2, 3, 4, 1, 5]
    assert checkpoints.steps() == (1, 2, 4, 5)
    damage_state(tmp_path, 2, DAMAGES["flipped"])  # the best, and known
    with pytest.raises(CheckpointError, match=r"step 2 .* is damaged"):
        checkpoints.restore(state_of(0), 2)
    shutil.rmtree(tmp_path / "step_5")
    for step in (5, 6):  # of those that are whole 4 is the best now
        save(checkpoints, step, metric=step)
    assert checkpoints.steps() == (1, 2, 4, 5, 6)
    assert read == [1, 2, 3, 4, 1, 5, 2, 1, 2, 5, 1, 2, 6]


def test_an_unreadable_record_may_be_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 4, metric=0.2)
    save(checkpoints, 8, metric=0.1)
    save(checkpoints, 9, metric=0.3)
    (tmp_path / "step_9" / "record.json").write_text("{}")
    with pytest.warns(UserWarning, match="step 9 .* going back to step 8"):
        state, _ = checkpoints.restore(state_of(0), "best")
    assert_identical(state, state_of(8))


@pytest.mark.parametrize("name", ["step_", "step_x1", "step_1x", "step_07", "step_-1"])
def test_directories_of_other_names_are_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "record.json").write_text("mine")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == ()
    save(checkpoints, 1, metric=0.1)
    assert checkpoints.steps() == (1,)
    assert (tmp_path / name / "record.json").read_text() == "mine"
