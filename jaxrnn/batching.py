"""Batches of sequences in few shapes: padding, length buckets, packing, TBPTT.

NumPy only, no JAX. Padding has zeros, and segment id 0; the order of the data is a
function of (seed, epoch) through `epoch_rng`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxrnn._validation import as_int32, check_min

Ids = Sequence[int] | np.ndarray


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """A NumPy generator that depends on seed and epoch alone.

    Raises:
        ValueError: a number is negative.

    >>> epoch_rng(seed=0, epoch=3).permutation(4).shape
    (4,)
    """
    seed, epoch = check_min(0, seed=seed), check_min(0, epoch=epoch)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))


def truncate_middle(ids: Ids, max_length: int) -> np.ndarray:
    """The int32 ids, without the middle of them if they are more than `max_length`.

    The first half of `max_length`, rounded up, is kept at the beginning and the rest at
    the end.

    Raises:
        TypeError: the ids are not integers.
        ValueError: `max_length` is below 1, or there is more than one axis.

    >>> truncate_middle([1, 2, 3, 4, 5, 6], 3), truncate_middle([1, 2], 3)
    (array([1, 2, 6], dtype=int32), array([1, 2], dtype=int32))
    """
    ids = as_int32(1, ids=np.asarray(ids))
    max_length = check_min(1, max_length=max_length)
    if ids.size <= max_length:
        return ids
    tail = max_length // 2
    return np.concatenate([ids[: max_length - tail], ids[ids.size - tail :]])


def pad(
    sequences: Sequence[ArrayLike], length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pads sequences of ids or of features with zeros.

    Args:
        sequences: each [t] or [t, ...] with its own t; `()` is an empty one.
        length: the number of steps to pad to; None for that of the longest sequence.

    Returns:
        The sequences [b, length, ...] and their lengths [b], int32. Integers become
        int32; other types stay as they are, the common one of all sequences.

    Raises:
        TypeError: the sequences are not of numbers.
        ValueError: there are no sequences, one is longer than `length`, integers do not
            fit into 32 bits, or the steps have different shapes.

    >>> ids, lengths = pad([[5, 6, 7], [8]])
    >>> ids.tolist(), lengths.tolist()
    ([[5, 6, 7], [8, 0, 0]], [3, 1])
    >>> x, lengths = pad([np.ones((3, 2), np.float32), np.ones((1, 2), np.float32)])
    >>> x.shape, x.dtype, x[1, :, 0].tolist()
    ((2, 3, 2), dtype('float32'), [1.0, 0.0, 0.0])
    """
    rows = _of_one_type([_as_sequence(given) for given in sequences])
    lengths = np.array([len(row) for row in rows], np.int32)
    longest = int(lengths.max())
    length = longest if length is None else check_min(0, length=length)
    if longest > length:
        raise ValueError(
            f"sequence {int(lengths.argmax())} has {longest} steps, more than "
            f"length = {length}: truncate it or raise the length"
        )
    padded = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = row
    return padded, lengths


def _as_sequence(given: ArrayLike) -> np.ndarray:
    try:
        row = np.asarray(given)
    except ValueError as error:
        raise ValueError("the steps of a sequence must have one shape") from error
    if not row.ndim:
        raise ValueError(f"a sequence must have an axis of time, got {given!r}")
    if row.dtype.kind in "OSUMm":
        raise TypeError(f"a sequence must be of numbers, got {row.dtype}")
    return row


def _of_one_type(rows: list[np.ndarray]) -> list[np.ndarray]:
    """The sequences with one dtype, and one shape of their steps."""
    if not rows:
        raise ValueError("there are no sequences to pad")
    # `()` has neither: it gets those of the others, or else is a sequence of ids.
    known = next((row for row in rows if row.shape != (0,)), np.zeros(0, np.int32))
    rows = [known[:0] if row.shape == (0,) else row for row in rows]
    features = known.shape[1:]
    for row in rows:
        if row.shape[1:] != features:
            raise ValueError(
                "the steps of all sequences must have one shape, got "
                f"{features} and {row.shape[1:]}"
            )
    if all(np.issubdtype(row.dtype, np.integer) for row in rows):
        return [as_int32(row.ndim, sequence=row) for row in rows]
    dtype = np.result_type(*rows)
    return [row.astype(dtype, copy=False) for row in rows]


def pad_rows(batch: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Pads every array of a batch with zeros to `rows` rows.

    So the last batch of an epoch has the shape of the others; its "weights", being
    zero in the added rows, leave them out of every mean.

    Raises:
        ValueError: the batch has more than `rows` rows, or its arrays differ in rows.

    >>> pad_rows({"labels": np.array([1]), "weights": np.ones(1)}, 2)["weights"]
    array([1., 0.])
    """
    rows = check_min(0, rows=rows)
    counts = {name: len(array) for name, array in batch.items()}
    if len(set(counts.values())) > 1 or max(counts.values(), default=0) > rows:
        raise ValueError(
            f"the arrays must agree in their rows and have at most {rows}, got {counts}"
        )
    return {
        name: np.concatenate(
            [array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)]
        )
        for name, array in batch.items()
    }


def bucket_lengths(lengths: Ids, num_buckets: int) -> tuple[int, ...]:
    """The bucket boundaries, at most `num_buckets`, with the least padding.

    Ascending, the last the longest length; found exactly by dynamic programming, in
    time `num_buckets` times the square of the number of distinct lengths. An empty
    sequence counts as one step, so that no batch is without any.

    Raises:
        TypeError: a number is not an integer.
        ValueError: there are no lengths, one is negative, or `num_buckets` is below 1.

    >>> bucket_lengths([1, 2, 2, 9, 10], num_buckets=2)
    (2, 10)
    """
    num_buckets = check_min(1, num_buckets=num_buckets)
    lengths = np.maximum(_lengths(lengths, minimum=0), 1)
    distinct, counts = np.unique(lengths, return_counts=True)
    # shorter[j]: how many sequences are shorter than distinct[j];
    # cost[j]: the least padded length of those, with the boundaries chosen so far.
    shorter = np.concatenate([[0], np.cumsum(counts)])
    cost = np.where(shorter == 0, 0.0, np.inf)
    choices = []
    for _ in range(min(num_buckets, distinct.size)):
        choice = np.zeros(shorter.size, np.int64)
        next_cost = np.zeros_like(cost)
        for j in range(1, shorter.size):
            # The last bucket holds distinct[i:j], all padded to distinct[j - 1].
            padded = cost[:j] + distinct[j - 1] * (shorter[j] - shorter[:j])
            choice[j] = padded.argmin()
            next_cost[j] = padded[choice[j]]
        cost = next_cost
        choices.append(choice)
    boundaries = []
    j = distinct.size
    while j:
        boundaries.insert(0, int(distinct[j - 1]))
        j = choices.pop()[j]
    return tuple(boundaries)


def bucket_batches(
    lengths: Ids,
    boundaries: Sequence[int],
    batch_size: int,
    *,
    rng: np.random.Generator | None = None,
) -> list[tuple[np.ndarray, int]]:
    """Batches of an epoch by length: example indices and the length to pad to.

    An example belongs to the first boundary that is long enough; those that fill no
    batch move up to the next one, so only one batch of an epoch can have fewer than
    `batch_size` examples. The shapes depend on the lengths alone: a second epoch has
    the same. `rng` shuffles examples and batches; None keeps the order of the examples
    in batches of ascending length.

    Raises:
        TypeError: a number is not an integer.
        ValueError: there are no lengths, a length is negative or beyond the last
            boundary, the boundaries do not ascend from 1, or `batch_size` is below 1.

    >>> for indices, boundary in bucket_batches([2, 9, 1, 8, 2], (2, 9), batch_size=2):
    ...     print(indices, boundary)
    [0 2] 2
    [4 1] 9
    [3] 9
    """
    lengths = _lengths(lengths, minimum=0)
    edges = _lengths(boundaries, minimum=1, name="boundaries")
    batch_size = check_min(1, batch_size=batch_size)
    if (np.diff(edges) <= 0).any():
        raise ValueError(f"boundaries must ascend, got {tuple(boundaries)}")
    if lengths.max() > edges[-1]:
        raise ValueError(
            f"length {lengths.max()} of example {lengths.argmax()} is beyond the last "
            f"boundary {edges[-1]}: truncate it or add a boundary"
        )
    order = np.arange(lengths.size) if rng is None else rng.permutation(lengths.size)
    bucket = np.searchsorted(edges, lengths[order])
    batches = []
    rest = order[:0]
    for k, edge in enumerate(edges.tolist()):
        rest = np.concatenate([rest, order[bucket == k]])
        while rest.size >= batch_size:
            batches.append((rest[:batch_size], edge))
            rest = rest[batch_size:]
    if rest.size:
        longest = np.searchsorted(edges, lengths[rest].max())
        batches.append((rest, int(edges[longest])))
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def plan_packing(lengths: Ids, row_length: int) -> list[np.ndarray]:
    """Assigns sequences to rows of `row_length` steps: indices, one array per row.

    First-fit decreasing: the longest first, each into the first row with room for it.
    At most 11/9 of the fewest rows possible, plus 6/9 (Dósa 2007).

    Raises:
        TypeError: a number is not an integer.
        ValueError: there are no lengths, one is below 1 (an empty sequence would have
            no step to carry its segment id) or above `row_length`.

    >>> [row.tolist() for row in plan_packing([3, 1, 2, 4], row_length=5)]
    [[3, 1], [0, 2]]
    """
    lengths = _lengths(lengths, minimum=1)
    row_length = check_min(1, row_length=row_length)
    if lengths.max() > row_length:
        raise ValueError(
            f"length {lengths.max()} of example {lengths.argmax()} is more than "
            f"row_length = {row_length}: truncate it or raise row_length"
        )
    rows: list[list[int]] = []
    room = np.full(lengths.size, row_length)
    for index in np.argsort(-lengths, kind="stable").tolist():
        # One row more than those in use: the empty one always has room.
        row = int((room[: len(rows) + 1] >= lengths[index]).argmax())
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        room[row] -= lengths[index]
    return [np.array(row) for row in rows]


def pack_sequences(
    sequences: Sequence[ArrayLike], rows: Sequence[Ids], row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Packs several sequences of ids or of features into each row, zeros behind.

    Args:
        sequences: each [t] or [t, ...] with its own t.
        rows: the sequences of each row, by their indices, as `plan_packing` returns
            them; for a batch take some of them.
        row_length: the number of steps of a row.

    Returns:
        The rows [b, row_length, ...], with the dtype that `pad` gives them, and their
        segment ids [b, row_length], int32: 1, 2, … in the order of a row.

    Raises:
        TypeError: the sequences are not of numbers.
        ValueError: there are no rows, a row is empty or longer than `row_length`, a
            sequence is empty, integers do not fit into 32 bits, or the steps have
            different shapes.

    >>> ids, segment_ids = pack_sequences([[5, 5], [6]], [[0, 1]], row_length=4)
    >>> ids.tolist(), segment_ids.tolist()
    ([[5, 5, 6, 0]], [[1, 1, 2, 0]])
    """
    every = [_as_sequence(sequences[i]) for row in rows for i in row]
    parts = iter(_of_one_type(every))
    joined, segments = [], []
    for row in rows:
        some = list(itertools.islice(parts, len(row)))
        lengths = _lengths([len(part) for part in some], minimum=1)
        joined.append(np.concatenate(some))
        segments.append(np.repeat(np.arange(1, lengths.size + 1), lengths))
    return pad(joined, row_length)[0], pad(segments, row_length)[0]


def tbptt_batches(
    ids: Ids, batch_size: int, time: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of one long text for truncated backpropagation through time.

    Both are [batch_size, time] and views of one int32 copy of `ids`; a target is the id
    after its input. Row r of a batch goes on where row r of the batch before it ended,
    so the state is carried from batch to batch. The last batch has fewer steps when
    `time` does not divide the rows; only the last (len(ids) - 1) % batch_size targets
    are left out.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a size is below 1, or the text too short for one step in each row.

    >>> for inputs, targets in tbptt_batches(np.arange(9), batch_size=2, time=3):
    ...     print(inputs.tolist(), targets.tolist())
    [[0, 1, 2], [4, 5, 6]] [[1, 2, 3], [5, 6, 7]]
    [[3], [7]] [[4], [8]]
    """
    ids = as_int32(1, ids=np.asarray(ids))
    batch_size = check_min(1, batch_size=batch_size)
    time = check_min(1, time=time)
    steps = (ids.size - 1) // batch_size
    if steps < 1:
        raise ValueError(
            f"{ids.size} ids are too few for batch_size = {batch_size}: one step in "
            f"each row takes {batch_size + 1}"
        )
    inputs = ids[: batch_size * steps].reshape(batch_size, steps)
    targets = ids[1 : batch_size * steps + 1].reshape(batch_size, steps)
    return (
        (inputs[:, start : start + time], targets[:, start : start + time])
        for start in range(0, steps, time)
    )


def _lengths(lengths: Ids, minimum: int, name: str = "lengths") -> np.ndarray:
    array = as_int32(1, **{name: np.asarray(lengths)})
    if not array.size:
        raise ValueError(f"there are no {name}")
    if array.min() < minimum:
        raise ValueError(
            f"{name} must be at least {minimum}, got {array.min()} at index "
            f"{array.argmin()}"
        )
    return array.astype(np.int64)
