"""Segment ids against loops over steps, and what wrong input says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn
from jaxrnn import segments

# A row of every kind: packed, holes, left padding, full, empty.
ROWS = np.array(
    [
        [1, 1, 2, 2, 2, 3],
        [1, 0, 1, 0, 2, 2],
        [0, 0, 1, 2, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ]
)


def starts_by_loop(row):
    starts, current = [], None
    for segment in row:
        starts.append(bool(segment) and segment != current)
        current = segment or current
    return starts


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1))
@settings(max_examples=100, deadline=None)
def test_starts_and_first(rows):
    rows = np.array(rows, np.int32)
    rows = np.where(rows > 0, np.maximum.accumulate(rows, axis=1), 0)
    expected = np.array([starts_by_loop(row) for row in rows])
    backwards = np.array([starts_by_loop(row[::-1])[::-1] for row in rows])
    np.testing.assert_array_equal(segments.starts(jnp.asarray(rows)), expected)
    np.testing.assert_array_equal(
        segments.starts(jnp.asarray(rows), reverse=True), backwards
    )
    firsts = np.array([[i == next(filter(None, r), -1) for i in r] for r in rows])
    np.testing.assert_array_equal(segments.first(jnp.asarray(rows)), firsts)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_starts_of_the_greatest_id(dtype):
    most = np.iinfo(dtype).max
    ids = jnp.array([most - 1, most, 0, most], dtype)
    assert segments.starts(ids).tolist() == [True, True, False, False]
    assert segments.starts(ids, reverse=True).tolist() == [True, False, False, True]


def test_conversions():
    ids = segments.from_lengths(np.array([0, 1, 4]), time=4)
    assert ids.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert segments.lengths(ids, num_segments=1).tolist() == [[0], [1], [4]]
    mask = np.array([[True, False, True]])
    assert segments.from_mask(mask).tolist() == [[1, 0, 1]]
    assert segments.lengths(ROWS, 3).tolist() == [
        [2, 3, 1],
        [2, 2, 0],
        [1, 1, 0],
        [6, 0, 0],
        [0, 0, 0],
    ]
    nested = segments.from_lengths(np.array([[1, 2]]), time=2)
    assert nested.tolist() == [[[1, 0], [1, 1]]]


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
def test_pool(how, rng):
    x = rng.normal(size=(*ROWS.shape, 2)).astype(np.float32)
    x[ROWS == 0] = np.nan  # Padding is not read.
    pooled = segments.pool(jnp.asarray(x), jnp.asarray(ROWS), how, num_segments=3)
    assert pooled.shape == (5, 3, 2)
    reduce = {
        "first": lambda v: v[0],
        "last": lambda v: v[-1],
        "mean": np.mean,
        "max": np.max,
    }[how]
    for r, row in enumerate(ROWS):
        for k in range(3):
            steps = x[r, row == k + 1]
            for feature in range(2):
                values = steps[:, feature]
                expected = reduce(values) if len(values) else 0
                # A mean of at most six float32 numbers.
                np.testing.assert_allclose(pooled[r, k, feature], expected, rtol=1e-6)


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
def test_gradient_of_pool_reaches_the_steps_read_and_no_padding(how, rng):
    x = rng.normal(size=(*ROWS.shape, 2)).astype(np.float32)
    x[ROWS == 0] = np.nan

    def total(x):
        return segments.pool(x, jnp.asarray(ROWS), how, num_segments=3).sum()

    gradient = np.asarray(jax.grad(total)(x))
    assert not gradient[ROWS == 0].any()
    for r, row in enumerate(ROWS):
        for k in range(3):
            steps = gradient[r, row == k + 1]
            if len(steps):
                # Each pooled number has one gradient of 1 to give away.
                np.testing.assert_allclose(steps.sum(axis=0), [1, 1], rtol=1e-6)
    share = {"first": [1, 0, 0], "last": [0, 0, 1], "mean": [1 / 3] * 3}.get(how)
    if share:
        np.testing.assert_allclose(gradient[0, 2:5, 0], share, rtol=1e-6)
    else:
        np.testing.assert_array_equal(
            gradient[0, 2:5, 0], x[0, 2:5, 0] == x[0, 2:5, 0].max()
        )


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
def test_a_sequence_that_is_not_finite_stays_by_itself(how):
    x = jnp.array([[1.0], [jnp.nan], [jnp.inf], [2.0]])
    pooled = segments.pool(x, jnp.array([1, 2, 2, 3]), how, num_segments=3)
    assert pooled[::2].tolist() == [[1.0], [2.0]]
    assert not jnp.isfinite(pooled[1]).any()


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
def test_more_sequences_than_the_type_of_the_ids_can_count(how):
    ids = jnp.array([1, 127, 0], jnp.int8)
    pooled = segments.pool(jnp.array([[3.0], [4.0], [5.0]]), ids, how, num_segments=200)
    assert {k: float(v) for k, [v] in enumerate(pooled) if v} == {0: 3.0, 126: 4.0}


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
def test_many_sequences_of_a_row_cost_no_pass_each(how):
    """By the operations of the compiled gradient: 64 masks took 64 times as many."""
    x = jnp.ones((256, 8))

    def total(x, ids, number):
        return segments.pool(x, ids, how, number).sum()

    operations = []
    for number in (1, 64):
        ids = jnp.repeat(jnp.arange(1, number + 1), 256 // number)
        gradient = jax.jit(jax.grad(total), static_argnums=2).lower(x, ids, number)
        operations.append(gradient.compile().cost_analysis().get("flops", 0))
    assert operations[1] < 3 * operations[0]


def test_lengths_that_jit_cannot_check_are_clipped():
    ids = jax.jit(segments.from_lengths, static_argnames="time")(
        np.array([-1, 9]), time=2
    )
    assert ids.tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("lengths", "segment_ids", "message"),
    [
        (np.array([1, 4]), None, "length 4 is above the 3 steps"),
        (np.array([1, -2]), None, "negative: -2"),
        (np.array([1.0, 2.0]), None, "must be integers, got float"),
        (np.array([1]), None, r"shape \(1,\), but the batch \(2,\)"),
        (
            None,
            np.ones((2, 4), int),
            r"\(2, 4\), but batch and time are \(2, 3\)",
        ),
        (None, np.full((2, 3), -1), "segment id is negative: -1"),
        (None, np.full((2, 3), 2**32), "above 32 bits: 4294967296"),
        (None, np.array([[1, 2, 0], [2, 0, 1]]), "1 stands behind a greater one"),
        ([1.5, 2], None, "must be integers, got float"),
        (None, np.ones((2, 3), bool), "bool; convert it with segments.from_mask"),
        (np.array([1, 1]), np.ones((2, 3), int), "lengths or segment_ids, not both"),
    ],
)
def test_bad_lengths_and_ids(lengths, segment_ids, message):
    with pytest.raises(ValueError, match=message):
        segments.resolve((2, 3), lengths, segment_ids)


def test_no_steps_at_all():
    none = jnp.zeros((2, 0), jnp.int32)
    assert segments.starts(none).shape == segments.first(none).shape == (2, 0)
    for how in ("first", "last", "mean", "max"):
        pooled = segments.pool(jnp.ones((2, 0, 3)), none, how, num_segments=2)
        assert pooled.tolist() == np.zeros((2, 2, 3)).tolist()


def test_half_precision_counts_and_adds_up_long_sequences():
    x = jnp.ones((70_000, 1), jnp.float16)
    pooled = segments.pool(x, jnp.ones(70_000, jnp.int32), "mean")
    assert pooled.dtype == jnp.float16
    assert pooled.tolist() == [[1.0]]


def test_an_id_that_would_be_left_out():
    with pytest.raises(ValueError, match="id 3 is above num_segments = 2"):
        segments.pool(jnp.ones((4, 1)), jnp.array([1, 2, 3, 0]), "mean", 2)


def test_bad_mask_and_pooling():
    with pytest.raises(ValueError, match="boolean, got int32"):
        segments.from_mask(np.ones((2, 3), np.int32))
    with pytest.raises(ValueError, match="got 'sum'"):
        segments.pool(jnp.ones((2, 1)), jnp.ones(2, jnp.int32), "sum")  # type: ignore


def test_plain_lists_are_taken_too():
    assert segments.starts([1, 1, 2]).tolist() == [True, False, True]  # pyright: ignore[reportArgumentType]
    assert segments.first([0, 1, 2]).tolist() == [False, True, False]  # pyright: ignore[reportArgumentType]
    assert segments.from_lengths([], 3).shape == (0, 3)


LAYERS = [
    jaxrnn.LSTM(4, num_layers=2),
    jaxrnn.GRU(4),
    jaxrnn.Stack([jaxrnn.Recurrent(nn.GRUCell(3)), jaxrnn.RNN(2)]),
]


def rollout(layer, variables, x, state, resets):
    """`step` by `step`, with a fresh state before each that resets."""
    fresh, outputs = layer.initial_state(x.shape[:1]), []
    for t in range(x.shape[1]):
        rows = resets[:, t, None]
        state = jax.tree.map(lambda a, b, rows=rows: np.where(rows, a, b), fresh, state)
        y, state = layer.apply(variables, x[:, t], state, method="step")
        outputs.append(y)
    return np.stack(outputs, axis=1), state


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("convention", ["resets", "dones"])
def test_a_rollout_with_resets(layer, convention, rng):
    """In two calls, of which the second starts from the state of the first: a row that
    begins with a reset, one with two of them in a row, one that ends with one, none."""
    x = rng.normal(size=(4, 6, 3)).astype(np.float32)
    flags = np.array(
        [
            [1, 0, 0, 1, 0, 0],
            [0, 0, 1, 1, 0, 0],
            [0, 1, 0, 0, 0, 1],
            [0, 0, 0, 0, 0, 0],
        ],
        bool,
    )
    variables = layer.init(jax.random.key(0), x)
    state = jax.tree.map(
        lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32),
        layer.initial_state((4,)),
    )
    before = np.array([False, True, False, False])  # of the step before the first
    resets = flags
    if convention == "dones":
        resets = np.concatenate([before[:, None], flags[:, :-1]], axis=1)
    expected, expected_state = rollout(layer, variables, x, state, resets)
    outputs = []
    for steps in (slice(0, 3), slice(3, 6)):
        if convention == "resets":
            ids, state = segments.from_resets(flags[:, steps], state)
        else:
            ids, state = segments.from_dones(flags[:, steps], state, done_before=before)
            before = flags[:, steps][:, -1]
        y, state = layer.apply(variables, x[:, steps], segment_ids=ids, state=state)
        outputs.append(y)
    # The same float32 sums, of a few terms.
    np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, expected_state
    )


def test_a_fresh_state_that_is_not_zero():
    state, fresh = (jnp.full((2, 1), 5.0),), (jnp.full((2, 1), 7.0),)
    resets = np.array([[True, False], [False, True]])
    ids, (h,) = segments.from_resets(resets, state, fresh)
    assert ids.tolist() == [[1, 1], [1, 2]]
    assert h.tolist() == [[7.0], [5.0]]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (2, 3, 4)])
def test_flags_of_any_shape(shape):
    flags, state = np.ones(shape, bool), (jnp.ones((*shape[:-1], 2)),)
    for read in (segments.from_resets, segments.from_dones):
        ids, (h,) = read(flags, state)
        assert ids.shape == shape
        assert h.shape == state[0].shape
        assert read(flags)[1] is None
    ids, (h,) = segments.from_resets(flags, state)
    assert (h == (0 if shape[-1] else 1)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: segments.from_resets(np.ones((2, 3), int)),
            r"resets must be boolean, got int\d+: give resets != 0",
        ),
        (lambda: segments.from_dones(np.ones((2, 3))), "dones must be boolean, got fl"),
        (
            lambda: segments.from_resets(np.ones((2, 3), bool), (jnp.ones((3, 4)),)),
            r"rows \(2,\), but the state has shape \(3, 4\)",
        ),
        (
            lambda: segments.from_dones(
                np.ones((2, 3), bool), done_before=np.ones(3, bool)
            ),
            r"done_before has shape \(3,\), but the rows of dones \(2,\)",
        ),
    ],
)
def test_flags_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
