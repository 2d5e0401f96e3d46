"""Arrays on the mesh, and batches of which each process makes its own rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments.charlm import config as charlm_config
from experiments.charlm import evaluation
from experiments.charlm.batches import Streams
from experiments.charlm.evaluation import Evaluation
from experiments.imdb.batches import Batches, Examples
from jaxrnn import placement
from jaxrnn.models import LanguageModel


def test_rows_of_a_process_are_those_of_its_devices():
    for devices in (1, 2):
        assert placement.local_batch_slice(6, placement.data_mesh(devices)) == slice(
            0, 6
        )
    with pytest.raises(ValueError, match="2 devices do not divide 7 rows"):
        placement.local_batch_slice(7, placement.data_mesh(2))


def test_rows_of_the_second_of_three_processes():
    """Of four devices each; JAX has one process here, so the mesh is a stand-in."""

    class Mesh:
        devices = np.arange(12)
        local_devices = (4, 5, 6, 7)
        size = 12

    assert placement.local_batch_slice(24, Mesh()) == slice(8, 16)  # pyright: ignore[reportArgumentType]


def test_a_state_on_all_devices_stays_where_it_is():
    mesh = placement.data_mesh(2)
    state = {"w": jnp.arange(3.0), "key": jax.random.key(5)}
    placed = placement.replicate(state, mesh)
    assert len(placed["w"].addressable_shards) == 2
    for shard in placed["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, [0, 1, 2])
    np.testing.assert_array_equal(jax.random.key_data(placed["key"]), [0, 5])
    assert placement.replicate(placed, mesh) is placed


def as_process(monkeypatch, process, processes):
    """As the `process`th of so many would divide rows."""

    def local_batch_slice(rows, mesh):
        assert rows % processes == 0
        each = rows // processes
        return slice(process * each, (process + 1) * each)

    monkeypatch.setattr(placement, "local_batch_slice", local_batch_slice)


def assert_shares_are_the_whole(shares, whole):
    for *parts, expected in zip(*shares, whole, strict=True):
        assert all(part.keys() == expected.keys() for part in parts)
        for name in expected:
            assert len({len(part[name]) for part in parts}) == 1
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, expected[name], strict=True)


@pytest.mark.parametrize("count", [1, 12, 13, 17, 23])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_reviews_are_shared_out_with_any_remainder(monkeypatch, count, processes):
    ids = [np.full(k % 5 + 1, k + 1, np.int32) for k in range(count)]
    examples = Examples(ids, np.arange(count, dtype=np.float32))
    mesh = placement.data_mesh(1)

    def made():
        return [make() for make in Batches(examples, 12, 2, mesh).epoch()]

    whole, shares = made(), []
    for process in range(processes):
        as_process(monkeypatch, process, processes)
        shares.append(made())
    assert_shares_are_the_whole(shares, whole)
    assert sum(batch["weights"].sum() for batch in whole) == count


def test_places_of_a_text_are_shared_out():
    ids = np.arange(1000, dtype=np.int32)
    settings = charlm_config.Settings(batch=6, seq_len=10)
    whole = [make() for make in Streams(ids, settings).epoch(3)]
    shares = [
        [make() for make in Streams(ids, settings, own).epoch(3)]
        for own in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    assert_shares_are_the_whole(shares, whole)


@pytest.mark.parametrize("length", [64, 256])
@pytest.mark.parametrize("size", [2, 100, 64 * 256, 64 * 256 + 1, 20_000])
def test_windows_of_a_text_are_shared_out(monkeypatch, length, size):
    ids = np.arange(size, dtype=np.int32)
    model = LanguageModel(5, 4, jaxrnn.GRU(3))

    def cut():
        return list(Evaluation(model, ids, placement.data_mesh(1))._cut(length))

    whole, shares = cut(), []
    for process in range(4):
        as_process(monkeypatch, process, 4)
        shares.append(cut())
    assert_shares_are_the_whole(shares, whole)
    targets = [rows["targets"][rows["weights"] > 0] for rows in whole]
    np.testing.assert_array_equal(np.concatenate(targets), ids[1:])
    assert {len(rows["inputs"]) for rows in whole} == {evaluation.ROWS}


def test_a_batch_that_the_processes_do_not_divide():
    with pytest.raises(ValueError, match="2 devices do not divide a batch of 3"):
        placement.data_mesh(2, batch_size=3)
    assert placement.data_mesh(batch_size=3).size == 1
    assert placement.data_mesh(batch_size=4).size == 2


@pytest.mark.parametrize(
    ("num_devices", "message"),
    [
        (0, "num_devices must be at least 1, got 0"),
        (-1, "num_devices must be at least 1, got -1"),
        (3, "3 devices asked for, JAX sees 2"),
    ],
)
def test_more_devices_than_there_are(num_devices, message):
    with pytest.raises(ValueError, match=message):
        placement.data_mesh(num_devices)
