"""Batches lose nothing, repeat nothing and have no shape but the promised ones."""

import doctest
import itertools
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrnn import batching
from jaxrnn.batching import (
    bucket_batches,
    bucket_lengths,
    epoch_rng,
    pack_sequences,
    pad,
    pad_rows,
    plan_packing,
    tbptt_batches,
    truncate_middle,
)

lengths_lists = st.lists(st.integers(0, 20), min_size=1, max_size=40)
sequences_lists = st.lists(
    st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=20
)


def test_golden_an_epoch_of_seven_reviews():
    # Seven reviews; review k consists of the number k.
    lengths = [2, 7, 3, 1, 8, 3, 2]
    reviews = [np.full(length, k) for k, length in enumerate(lengths)]
    # With two shapes allowed, cutting at 3 wastes 1 + 2 + 1 + 1 = 5 steps; any other
    # cut wastes more.
    boundaries = bucket_lengths(lengths, num_buckets=2)
    assert boundaries == (3, 8)
    # Five reviews are short: one batch of three, and 5 and 6 are left over. They move
    # up to the long ones and fill a batch with 1; only 4 is left for a partial batch.
    batches = bucket_batches(lengths, boundaries, batch_size=3)
    assert [(i.tolist(), b) for i, b in batches] == [
        ([0, 2, 3], 3),
        ([5, 6, 1], 8),
        ([4], 8),
    ]
    # The first batch, padded to its boundary:
    indices, boundary = batches[0]
    ids, first_lengths = pad([reviews[i] for i in indices], boundary)
    assert ids.tolist() == [[0, 0, 0], [2, 2, 2], [3, 0, 0]]
    assert first_lengths.tolist() == [2, 3, 1]
    # The last, filled up to three rows that weigh nothing:
    indices, boundary = batches[-1]
    ids, last_lengths = pad([reviews[i] for i in indices], boundary)
    batch = {"ids": ids, "lengths": last_lengths, "weights": np.ones(1, np.float32)}
    batch = pad_rows(batch, 3)
    assert batch["ids"].tolist() == [[4] * 8, [0] * 8, [0] * 8]
    assert batch["lengths"].tolist() == [8, 0, 0]
    assert batch["weights"].tolist() == [1, 0, 0]


def test_golden_packing():
    # Longest first into rows of 8: 8 fills row 0, 7 opens row 1, then 3, 3 and 2 fill
    # row 2, the other 2 opens row 3 - but the 1 still fits behind the 7.
    lengths = [2, 7, 3, 1, 8, 3, 2]
    rows = plan_packing(lengths, row_length=8)
    assert [row.tolist() for row in rows] == [[4], [1, 3], [2, 5, 0], [6]]
    ids, segment_ids = pack_sequences(
        [np.full(n, 9 - n) for n in lengths], rows[1:3], 8
    )
    assert ids.tolist() == [[2, 2, 2, 2, 2, 2, 2, 8], [6, 6, 6, 6, 6, 6, 7, 7]]
    assert segment_ids.tolist() == [[1, 1, 1, 1, 1, 1, 1, 2], [1, 1, 1, 2, 2, 2, 3, 3]]


def test_golden_streams():
    # 12 ids have 11 targets; two rows of 5 leave out one. In chunks of 3:
    batches = [(x.tolist(), y.tolist()) for x, y in tbptt_batches(np.arange(12), 2, 3)]
    assert batches == [
        ([[0, 1, 2], [5, 6, 7]], [[1, 2, 3], [6, 7, 8]]),
        ([[3, 4], [8, 9]], [[4, 5], [9, 10]]),
    ]


def test_epoch_rng_depends_on_seed_and_epoch_alone():
    orders = {
        (seed, epoch): epoch_rng(seed, epoch).permutation(50).tolist()
        for seed, epoch in itertools.product(range(4), range(4))
    }
    assert len({tuple(order) for order in orders.values()}) == 16
    for (seed, epoch), order in reversed(orders.items()):
        assert epoch_rng(seed, epoch).permutation(50).tolist() == order


@given(st.lists(st.lists(st.integers(-9, 99)), min_size=1), st.integers(0, 3))
def test_pad_keeps_every_sequence(sequences, spare):
    longest = max(map(len, sequences))
    for length in (None, longest + spare):
        ids, lengths = pad(sequences, length)
        assert ids.dtype == lengths.dtype == np.int32
        width = longest if length is None else length
        expected = [sequence + [0] * (width - len(sequence)) for sequence in sequences]
        assert ids.shape == (len(sequences), width)
        assert ids.tolist() == expected
        assert lengths.tolist() == list(map(len, sequences))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bool, jnp.bfloat16])
@pytest.mark.parametrize("features", [(), (3,), (2, 0), (2, 3)])
def test_pad_keeps_features_and_their_type(features, dtype, rng):
    lengths = (4, 0, 1)
    sequences = [rng.normal(size=(n, *features)).astype(dtype) for n in lengths]
    padded, found = pad([*sequences, ()], 5)
    assert padded.shape == (4, 5, *features)
    assert padded.dtype == dtype
    assert found.tolist() == [*lengths, 0]
    for row, sequence in zip(padded, [*sequences, sequences[1]], strict=True):
        np.testing.assert_array_equal(row[: len(sequence)], sequence)
        assert not row[len(sequence) :].any()


def test_pad_has_the_type_that_all_sequences_have_in_common():
    padded, _ = pad([[1, 2], np.array([0.5], np.float64), ()])
    assert padded.dtype == np.float64
    assert padded.tolist() == [[1, 2], [0.5, 0], [0, 0]]
    mixed = [np.array([7], np.uint64), np.array([-1, 2], np.int8)]
    ids, _ = pad(mixed)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[7, 0], [-1, 2]]
    nothing, lengths = pad([(), ()], 3)
    assert nothing.dtype == np.int32
    assert nothing.tolist() == [[0] * 3] * 2
    assert lengths.tolist() == [0, 0]


def test_rows_that_sequences_of_features_share(rng):
    sequences = [rng.normal(size=(n, 2)).astype(np.float32) for n in (2, 3, 1)]
    rows, segment_ids = pack_sequences(sequences, [[2, 0], [1]], row_length=4)
    assert rows.dtype == np.float32
    assert segment_ids.tolist() == [[1, 2, 2, 0], [1, 1, 1, 0]]
    first, second, third = sequences
    zero = np.zeros((1, 2))
    np.testing.assert_array_equal(rows[0], np.concatenate([third, first, zero]))
    np.testing.assert_array_equal(rows[1], np.concatenate([second, zero]))


def test_pad_rows_keeps_rows_and_types(rng):
    batch = {
        "ids": rng.integers(1, 9, (2, 3)).astype(np.int32),
        "x": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "weights": np.ones(2, bool),
    }
    filled = pad_rows(batch, 5)
    assert list(filled) == list(batch)
    for name, array in batch.items():
        assert filled[name].dtype == array.dtype
        assert filled[name].shape == (5, *array.shape[1:])
        np.testing.assert_array_equal(filled[name][:2], array)
        np.testing.assert_array_equal(filled[name][2:], 0)
    np.testing.assert_array_equal(pad_rows(batch, 2)["x"], batch["x"])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 4))
def test_bucket_boundaries_are_the_best(lengths, num_buckets):
    def padded(boundaries):
        return sum(min(b for b in boundaries if b >= n) for n in lengths)

    # The oracle tries every choice of boundaries that covers the longest.
    longest = max(lengths)
    best = min(
        padded((*shorter, longest))
        for size in range(num_buckets)
        for shorter in itertools.combinations(range(1, longest), size)
    )
    boundaries = bucket_lengths(lengths, num_buckets)
    assert len(boundaries) <= num_buckets
    assert boundaries == tuple(sorted(set(boundaries)))
    assert boundaries[-1] == longest
    assert padded(boundaries) == best


def test_bucket_boundaries_are_never_zero():
    assert bucket_lengths([0, 0], 3) == (1,)
    assert bucket_lengths([0, 1, 4], 3) == (1, 4)
    assert all(type(boundary) is int for boundary in bucket_lengths([3, 4], 2))


@given(
    lengths_lists,
    st.sets(st.integers(1, 19), max_size=4),
    st.integers(1, 7),
    st.integers(0, 9) | st.none(),
)
def test_bucketed_gives_every_example_once_in_few_shapes(
    lengths, shorter, batch_size, seed
):
    boundaries = (*sorted(shorter), 25)

    def epoch(number):
        rng = None if seed is None else epoch_rng(seed, number)
        return bucket_batches(lengths, boundaries, batch_size, rng=rng)

    batches = epoch(0)
    indices = np.concatenate([indices for indices, _ in batches])
    assert sorted(indices.tolist()) == list(range(len(lengths)))
    sizes = sorted(len(indices) for indices, _ in batches)
    assert sizes[1:] == [batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[0] <= batch_size
    for indices, boundary in batches:
        assert boundary in boundaries
        # Every row fits, and at least one could not do with a shorter boundary.
        shortest = min(b for b in boundaries if b >= max(lengths[i] for i in indices))
        assert boundary == shortest
    # The second epoch has the shapes of the first.
    shapes = [Counter((len(i), b) for i, b in epoch(number)) for number in (0, 1)]
    assert shapes[0] == shapes[1]


def test_bucketed_shuffles_examples_and_batches():
    lengths = np.arange(1, 101)
    epochs = [
        bucket_batches(lengths, (50, 100), 10, rng=epoch_rng(0, number))
        for number in (0, 0, 1)
    ]
    first, again, other = [[i.tolist() for i, _ in batches] for batches in epochs]
    assert first == again
    assert {frozenset(batch) for batch in first} != {frozenset(b) for b in other}
    # Neither examples nor boundaries come in their natural order.
    assert any(batch != sorted(batch) for batch in first)
    boundaries = [boundary for _, boundary in epochs[0]]
    assert boundaries != sorted(boundaries)


@given(sequences_lists, st.integers(9, 15))
def test_packing_keeps_the_sequences_and_overflows_no_row(sequences, row_length):
    lengths = [len(sequence) for sequence in sequences]
    rows = plan_packing(lengths, row_length)
    ids, segment_ids = pack_sequences(sequences, rows, row_length)
    assert ids.dtype == segment_ids.dtype == np.int32
    assert ids.shape == segment_ids.shape == (len(rows), row_length)
    # Reading the rows back gives the same sequences, as often.
    found = Counter()
    for row, segments in zip(ids, segment_ids, strict=True):
        used = np.count_nonzero(segments)
        # Segment ids are 1, 2, … without a gap, padding only behind them.
        assert (np.diff(segments[:used]) >= 0).all()
        assert set(segments[:used].tolist()) == set(range(1, segments.max() + 1))
        assert (row[used:] == 0).all()
        for k in range(1, segments.max() + 1):
            found[tuple(row[segments == k].tolist())] += 1
    assert found == Counter(map(tuple, sequences))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_pack_is_first_fit_decreasing(lengths):
    rows = plan_packing(lengths, 12)
    # The oracle is the definition, over the sorted lengths alone.
    expected: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = (row for row in expected if sum(row) + length <= 12)
        row = next(fitting, None)
        if row is None:
            expected.append(row := [])
        row.append(length)
    assert [[lengths[i] for i in row] for row in rows] == expected
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 9))
def test_streams_are_contiguous_and_lose_only_the_end(spare, batch_size, time):
    ids = np.arange(batch_size + 1 + spare) * 3
    batches = list(tbptt_batches(ids, batch_size, time))
    *full, last = [inputs.shape for inputs, _ in batches]
    assert all(shape == (batch_size, time) for shape in full)
    assert last[0] == batch_size
    assert 1 <= last[1] <= time
    # Row after row, the batches of an epoch spell the text.
    inputs, targets = (
        np.concatenate(parts, axis=1).ravel() for parts in zip(*batches, strict=True)
    )
    lost = (ids.size - 1) % batch_size
    np.testing.assert_array_equal(inputs, ids[: ids.size - 1 - lost])
    np.testing.assert_array_equal(targets, ids[1 : ids.size - lost])


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (epoch_rng, (-1, 0), "seed must be at least 0, got -1"),
        (epoch_rng, (0, -1), "epoch must be at least 0, got -1"),
        (pad, ([],), "no sequences"),
        (pad, ([[1], [1, 2, 3]], 2), "sequence 1 has 3 steps.*length = 2"),
        (pad, ([[]], -1), "length must be at least 0, got -1"),
        (pad_rows, ({"x": np.ones(3), "y": np.ones(3)}, 2), "most 2, .*'x': 3, 'y': 3"),
        (pad_rows, ({"x": np.ones(3), "y": np.ones(2)}, 4), "agree .*'x': 3, 'y': 2"),
        (bucket_lengths, ([], 2), "there are no lengths"),
        (bucket_lengths, ([3, -2], 2), "lengths must be .* 0, got -2 at index 1"),
        (bucket_lengths, ([1], 0), "num_buckets must be at least 1, got 0"),
        (bucket_batches, ([3, 9], [4, 8], 2), "length 9 of example 1 .* boundary 8"),
        (bucket_batches, ([3], [], 2), "there are no boundaries"),
        (bucket_batches, ([3], [0, 4], 2), "boundaries must be at least 1, got 0"),
        (bucket_batches, ([3], [4, 4], 2), r"ascend, got \(4, 4\)"),
        (bucket_batches, ([3], [4], 0), "batch_size must be at least 1, got 0"),
        (plan_packing, ([4, 5], 4), "length 5 of example 1 .* row_length = 4"),
        (plan_packing, ([4, 0], 4), "lengths must be at least 1, got 0 at index 1"),
        (pack_sequences, ([[1, 2], [3]], [], 3), "no sequences"),
        (pack_sequences, ([[1, 2], [3]], [[0, 1], []], 3), "there are no lengths"),
        (pack_sequences, ([[1, 2], []], [[0, 1]], 3), "got 0 at index 1"),
        (
            pack_sequences,
            ([[1, 2], [3, 4]], [[0, 1]], 3),
            "4 steps, more than length = 3",
        ),
        (tbptt_batches, ([], 1, 4), "0 ids are too few for batch_size = 1.* takes 2"),
        (tbptt_batches, ([1, 2, 3], 3, 4), "3 ids are too few for batch_size = 3.* 4"),
        (tbptt_batches, ([1, 2, 3], 0, 4), "batch_size must be at least 1, got 0"),
        (tbptt_batches, ([1, 2, 3], 1, -4), "time must be at least 1, got -4"),
    ],
)
def test_values_that_are_refused_at_the_call(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (pad, ([[1]], 2.0), "length must be an integer, got 2.0"),
        (pad, ([["a"]],), "numbers, got <U1"),
        (bucket_lengths, ([1.0], 2), "lengths must be integers"),
        (bucket_lengths, ([1], 1.5), "num_buckets must be an integer, got 1.5"),
        (bucket_batches, ([3], [4], 2.0), "batch_size must be an integer"),
        (bucket_batches, ([3], [4.5], 2), "boundaries must be integers"),
        (plan_packing, ([1], "4"), "row_length must be an integer, got '4'"),
        (tbptt_batches, ([1.5, 2.5], 1, 1), "ids must be integers"),
    ],
)
def test_types_that_are_refused_at_the_call(function, arguments, message):
    with pytest.raises(TypeError, match=message):
        function(*arguments)


def test_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(batching)
    assert failed == 0
    assert attempted >= 8


@given(st.integers(0, 30), st.integers(1, 12))
def test_what_is_truncated_lost_its_middle_alone(size, max_length):
    ids = list(range(size))
    kept = truncate_middle(ids, max_length).tolist()
    assert len(kept) == min(size, max_length)
    head = [k for k in kept if k < (max_length + 1) // 2 or size <= max_length]
    assert kept == ids[: len(head)] + ids[size - (len(kept) - len(head)) :]
    assert size <= max_length or len(head) == (max_length + 1) // 2
