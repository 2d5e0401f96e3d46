"""Zoneout, dropout inside of cells, dropout of inputs, skip connections and norms:
where, when, of what, how much, and that evaluation knows nothing of chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Layer, Recurrent, cells
from jaxrnn.dropout import sequence_mask
from jaxrnn.equations import NO_DROP, Drop

pytestmark = pytest.mark.slow

B, T, H = 40, 6, 25
RATE = 0.3
# Five standard errors of a share of draws, each for one unit of a sequence or a step.
PER_SEQUENCE = 5 * np.sqrt(RATE * (1 - RATE) / (B * H))
PER_STEP = PER_SEQUENCE / np.sqrt(T)
IDS = np.array([[1, 1, 0, 1, 2, 2]] * B)
X = np.random.default_rng(0).normal(size=(B, T, 3)).astype(np.float32)


class Counter(cells.Cell):
    """A cell with weights of ones and zeros, so that what is dropped shows: each unit
    counts its steps, and the output tells the state that the products would see."""

    gates = 1
    recurrent_gates = 0
    regularizers = frozenset({"zoneout_h", "recurrent_dropout", "update_dropout"})

    def _step(self, h, x_gates, w_h, drop=NO_DROP):
        return h + drop.of_update(jnp.ones_like(h)), drop.of_state(jnp.ones_like(h))


class Clock(cells.Cell):
    """A cell that counts its steps, as its output too."""

    gates = 1
    recurrent_gates = 0
    regularizers = frozenset({"zoneout_h"})

    def _step(self, h, x_gates, w_h):
        return h + 1, h + 1


def run(layer, *, train=True, seed=0, **options):
    variables = layer.init(jax.random.key(1), X)
    rngs = {"dropout": jax.random.key(seed)}
    outputs, (state,) = jax.jit(
        lambda v: layer.apply(v, X, train=train, rngs=rngs, **options)
    )(variables)
    return np.asarray(outputs), np.asarray(state)


@pytest.mark.parametrize("remat_chunk", [None, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_recurrent_dropout_has_one_draw_a_sequence(reverse, remat_chunk):
    layer = Recurrent(Counter(H), recurrent_dropout=RATE, remat_chunk=remat_chunk)
    outputs, _ = run(layer, segment_ids=IDS, reverse=reverse)
    first, second = outputs[:, [0, 1, 3]], outputs[:, [4, 5]]
    for sequence in (first, second):
        np.testing.assert_array_equal(
            sequence, sequence[:, :1].repeat(len(sequence[0]), 1)
        )
        dropped = sequence[:, 0] == 0
        assert abs(dropped.mean() - RATE) < PER_SEQUENCE
        np.testing.assert_allclose(sequence[:, 0][~dropped], 1 / (1 - RATE), rtol=1e-6)
    assert (first[:, 0] != second[:, 0]).mean() > 0.3  # 2 * 0.3 * 0.7 = 0.42
    assert not outputs[:, 2].any()


def test_update_dropout_has_one_draw_a_step():
    layer = Recurrent(Counter(H), update_dropout=RATE)
    _, state = run(layer)
    counted = state * (1 - RATE)
    np.testing.assert_allclose(counted, counted.round(), atol=1e-5)
    assert abs(counted.mean() / T - (1 - RATE)) < PER_STEP
    # Each step on its own: the variance of a binomial number, to five errors of 8%.
    assert abs(counted.var() / (T * RATE * (1 - RATE)) - 1) < 0.4


def test_zoneout_keeps_units_in_training_and_takes_the_mean_at_evaluation():
    layer = Recurrent(Clock(H), zoneout_h=RATE)
    outputs, state = run(layer)
    np.testing.assert_array_equal(outputs[:, -1], state)
    steps = np.diff(outputs, axis=1, prepend=0)
    assert set(np.unique(steps)) == {0.0, 1.0}
    assert abs((steps == 0).mean() - RATE) < PER_STEP
    assert (steps[:, 0] != steps[:, 1]).mean() > 0.3
    expected, _ = run(layer, train=False)
    np.testing.assert_allclose(
        expected,
        np.broadcast_to(0.7 * np.arange(1, T + 1)[:, None], (B, T, H)),
        rtol=1e-5,
    )
    # Padding leaves the state alone, whatever is drawn.
    outputs, state = run(layer, lengths=np.full(B, 2))
    np.testing.assert_array_equal(outputs[:, 1], state)


def test_zoneout_of_the_memory_cell_and_of_the_output_are_two(rng):
    """Krueger et al. (2017): the output is that of the memory cell before zoneout."""
    x = rng.normal(size=(2, 4, 3)).astype(np.float32)
    plain = jaxrnn.LSTM(4)
    variables = plain.init(jax.random.key(0), x)
    zoned = plain.copy(zoneout_h=0.2, zoneout_c=0.4)
    outputs, _ = zoned.apply(variables, x)
    state = plain.initial_state((2,))
    for t in range(4):
        y, after = plain.apply(variables, x[:, t], state, method="step")
        h = 0.2 * state[0].h + 0.8 * y
        c = 0.4 * state[0].c + 0.6 * after[0].c
        state = (jaxrnn.LSTMState(h, c),)
        np.testing.assert_allclose(outputs[:, t], h, atol=1e-6)


WITH_SOME = {
    name: getattr(cells, name)
    for name in cells.__all__
    if getattr(getattr(cells, name), "regularizers", ())
}


@pytest.mark.parametrize("name", WITH_SOME)
def test_every_cell_does_what_its_class_says(name, rng):
    """One step of each, with all dropped: without a state to see, it is that of weights
    of zero; without an update, what is left of the state is not above what it was."""
    cell, x = WITH_SOME[name](6), X[:2, 0]
    state = cell.initial_state((2,))
    variables = cell.init(jax.random.key(0), state, x)
    # Zero biases and states would hide much.
    variables = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
        variables,
    )
    state = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1, size=leaf.shape).astype(np.float32), state
    )

    def step(drop=None, variables=variables):
        x_gates = cell.apply(variables, x, method="project")
        after, output = cell.apply(variables, state, x_gates, drop, method="recur")
        h = after.h if "zoneout_c" in cell.regularizers else after
        if "zoneout_h" in cell.regularizers:
            np.testing.assert_array_equal(output, h)
        return after, output

    _, plain = step()
    nothing = jnp.zeros((2, 6))
    if "recurrent_dropout" in cell.regularizers:
        _, output = step(Drop(state=nothing))
        assert np.abs(output - plain).max() > 1e-3
        unseen = {
            key: jnp.zeros_like(w) if key in ("w_h", "mogrify_1", "mogrify_3") else w
            for key, w in variables["params"].items()
        }
        if name == "MogrifierLSTMCell":
            unseen["mogrify_5"] = jnp.zeros_like(unseen["mogrify_5"])
        _, expected = step(variables={"params": unseen})
        np.testing.assert_allclose(output, expected, atol=1e-6)
    if "update_dropout" in cell.regularizers:
        after, output = step(Drop(update=nothing))
        assert np.abs(output - plain).max() > 1e-3
        memory, before = (
            s.c if "zoneout_c" in cell.regularizers else s for s in (after, state)
        )
        assert ((memory >= 0) & (memory < before)).all()


def test_what_means_nothing_for_a_cell_is_refused():
    with pytest.raises(ValueError, match=r"zoneout_c has no meaning for GRUCell"):
        jaxrnn.GRU(4, zoneout_c=0.1).init(jax.random.key(0), X)
    with pytest.raises(
        ValueError, match="recurrent_dropout has no meaning for LRUCell"
    ):
        Recurrent(cells.LRUCell(4), recurrent_dropout=0.1)
    layer = Recurrent(cells.LRUCell(4), learned_initial_state=True)
    with pytest.raises(ValueError, match="is complex: it cannot be learned"):
        layer.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        Recurrent(cells.GRUCell(4), recurrent_dropout=2)


def test_sequence_masks(rng):
    ids = jnp.asarray(IDS)
    mask = np.asarray(sequence_mask(jax.random.key(0), RATE, (B, T, H), ids))
    np.testing.assert_array_equal(mask[:, 0], mask[:, 3])
    np.testing.assert_array_equal(mask[:, 4], mask[:, 5])
    assert (mask[:, 0] != mask[:, 4]).mean() > 0.3
    assert abs((mask[:, 0] == 0).mean() - RATE) < PER_SEQUENCE
    assert not np.asarray(sequence_mask(jax.random.key(0), 1.0, (2, T, H))).any()


def test_locked_dropout_has_one_draw_a_sequence_where_they_share_a_row():
    class Same(cells.Cell):
        """Gives its inputs on."""

        gates = 1
        recurrent_gates = 0

        def _step(self, h, x_gates, w_h):
            return h, x_gates

    layer = Layer(
        Same,
        features=H,
        use_bias=False,
        locked_dropout=True,
        input_dropout=RATE,
        kernel_init=lambda key, shape, dtype: jnp.eye(shape[0], dtype=dtype),
    )
    ones = np.ones((B, T, H), np.float32)
    variables = layer.init(jax.random.key(0), ones)
    rngs = {"dropout": jax.random.key(1)}
    outputs, _ = layer.apply(variables, ones, segment_ids=IDS, train=True, rngs=rngs)
    outputs = np.asarray(outputs)
    np.testing.assert_array_equal(outputs[:, 0], outputs[:, 3])
    np.testing.assert_array_equal(outputs[:, 4], outputs[:, 5])
    assert (outputs[:, 0] != outputs[:, 4]).mean() > 0.3
    assert abs((outputs[:, 0] == 0).mean() - RATE) < PER_SEQUENCE
    still, _ = layer.apply(variables, ones, segment_ids=IDS)
    assert (np.asarray(still)[:, [0, 1, 3, 4, 5]] == 1).all()


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}])
@pytest.mark.parametrize("skip", [None, "residual", "dense"])
def test_what_is_between_layers(skip, options, rng):
    """By hand, with layers of one; and step by step."""
    x = rng.normal(size=(2, 4, 5)).astype(np.float32)
    layer = jaxrnn.GRU(5, num_layers=3, skip=skip, **options)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes
    )
    outputs, _ = layer.apply(variables, x, lengths=np.array([4, 2]))
    params = variables["params"]
    one, y, read = jaxrnn.GRU(5), x, [x]
    for k in range(3):
        below = y
        if k:
            if options:
                norm = params["stack"][f"norm_{k}"]
                centred = y - y.mean(-1, keepdims=True)
                deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
                y = centred / deviation * norm["scale"] + norm["bias"]
            read.append(y)
            if skip == "dense":
                y = np.concatenate(read, axis=-1)
        weights = {"params": {"l0": params[f"l{k}"]}}
        y, _ = one.apply(weights, y, lengths=np.array([4, 2]))
        y = np.asarray(y) + (below if k and skip == "residual" else 0)
    np.testing.assert_allclose(outputs, y, atol=1e-5)
    assert not np.asarray(outputs)[1, 2:].any()

    whole, _ = layer.apply(variables, x)
    state = layer.initial_state((2,))
    for t in range(4):
        step, state = layer.apply(variables, x[:, t], state, method="step")
        np.testing.assert_allclose(whole[:, t], step, atol=1e-5)


@pytest.mark.parametrize("skip", [None, "residual", "dense"])
def test_every_layer_reads_the_lengths_of_time_steps(skip, rng):
    x = rng.normal(size=(2, 4, 5)).astype(np.float32)
    elapsed = rng.uniform(0.1, 2, size=(2, 4, 1)).astype(np.float32)
    options = {"time_feature": True}
    layer = Layer(
        cells.CfCCell, features=5, num_layers=2, skip=skip, cell_options=options
    )
    inputs = np.concatenate([x, elapsed], axis=-1)
    variables = layer.init(jax.random.key(0), inputs)
    outputs, _ = layer.apply(variables, inputs)
    one = Layer(cells.CfCCell, features=5, cell_options=options)
    first, second = (
        {"params": {"l0": variables["params"][name]}} for name in ("l0", "l1")
    )
    below, _ = one.apply(first, inputs)
    read = [x, below] if skip == "dense" else [below]
    y, _ = one.apply(second, np.concatenate([*read, elapsed], axis=-1))
    expected = y + below if skip == "residual" else y
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    # Dropout of the inputs leaves time alone.
    rngs = {"dropout": jax.random.key(1)}
    gone, _ = layer.copy(input_dropout=1.0).apply(
        variables, inputs, train=True, rngs=rngs
    )
    zeros, _ = layer.apply(variables, np.concatenate([0 * x, elapsed], axis=-1))
    np.testing.assert_allclose(gone, zeros, atol=1e-6)


@pytest.mark.parametrize("layer", [jaxrnn.LSTM(4, num_layers=2), jaxrnn.GRU(4)])
def test_every_sequence_starts_from_the_learned_state(layer, rng):
    """As if it were given to each, alone: outputs, states and gradients."""
    learned = layer.copy(learned_initial_state=True, bidirectional=True)
    plain = layer.copy(bidirectional=True)
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    shapes = jax.eval_shape(learned.init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes
    )
    weights = {
        name: w for name, w in variables["params"].items() if "initial" not in name
    }
    assert len(variables["params"]) == 2 * len(weights)
    ids = np.array([[1, 1, 2, 2, 2], [0, 1, 1, 0, 2]])
    state = learned.apply(variables, (), method="initial_state")
    expected = np.zeros((2, 5, 8), np.float32)
    for r, row in enumerate(ids):
        for number in (1, 2):
            steps = row == number
            y, _ = plain.apply({"params": weights}, x[r, steps], state=state)
            expected[r, steps] = y
    outputs, _ = learned.apply(variables, x, segment_ids=ids)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)

    def loss(variables):
        return jnp.sum(learned.apply(variables, x, segment_ids=ids)[0] ** 2)

    gradient = jax.jit(jax.grad(loss))(variables)["params"]
    used = jax.tree.map(lambda leaf: bool(jnp.any(leaf != 0)), gradient)
    assert all(jax.tree.leaves(used))
    with pytest.raises(ValueError, match="the initial state is learned"):
        learned.initial_state((2,))


def test_bad_skips():
    with pytest.raises(ValueError, match="skip must be one of"):
        jaxrnn.Stack([jaxrnn.GRU(4)], skip="highway")
    stack = jaxrnn.Stack([jaxrnn.GRU(4), jaxrnn.GRU(5)], skip="residual")
    with pytest.raises(ValueError, match="layers 0 and 1 give"):
        stack.init(jax.random.key(0), X)
    layer = jaxrnn.GRU(4, num_layers=2, skip="dense")
    variables = layer.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="all layers read the inputs"):
        layer.apply(variables, X[:, 0], method="project")
