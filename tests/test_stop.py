"""Stop strings: where rows end, what stands behind, and how pieces see it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.sampling import decode, generate, prefill

VOCAB = 6


def keys(rows):
    return jax.random.split(jax.random.key(0), rows)


def recite(script):
    """A model whose greedy text is its script, whatever it is given to read. Its state
    counts the steps."""
    script = np.array(script, np.int32)

    def step(tokens, steps):
        del tokens
        at = jnp.minimum(steps, script.shape[1] - 1)
        following = jnp.take_along_axis(jnp.array(script), at[:, None], axis=1)[:, 0]
        return jax.nn.one_hot(following, VOCAB), steps + 1

    return step


def begun(script, prompt=None):
    rows = len(script)
    prompt = np.zeros((rows, 1), int) if prompt is None else prompt
    return recite(script), jnp.zeros(rows, jnp.int32), prompt


SCRIPT = [
    [1, 2, 3, 1, 2, 4, 5, 5],  # ends at the sixth token
    [1, 1, 1, 2, 4, 1, 2, 4],  # the string begins inside what looked like its beginning
    [5, 4, 3, 2, 1, 2, 3, 4],  # never
    [1, 2, 4, 1, 2, 4, 3, 3],  # at once
]
STOP = [1, 2, 4]
EXPECTED = [
    [1, 2, 3, 1, 2, 4, 0, 0],
    [1, 1, 1, 2, 4, 0, 0, 0],
    [5, 4, 3, 2, 1, 2, 3, 4],
    [1, 2, 4, 0, 0, 0, 0, 0],
]
LENGTHS = [6, 5, 8, 3]


def test_a_row_ends_with_its_stop_string():
    drawn = generate(*begun(SCRIPT), 8, keys(4), temperature=0, stop=STOP)
    assert drawn.tokens.tolist() == EXPECTED
    assert drawn.lengths.tolist() == LENGTHS
    assert drawn.decode_state.stopped.tolist() == [True, True, False, True]
    assert drawn.decode_state.position.tolist() == LENGTHS


@pytest.mark.parametrize("size", [1, 2, 4])
def test_pieces_see_a_string_across_their_borders(size):
    step, state, prompt = begun(SCRIPT)
    text, tokens, lengths = prefill(step, state, prompt), [], 0
    for _ in range(0, 8, size):
        drawn = decode(step, text, size, keys(4), temperature=0, stop=STOP)
        tokens.append(drawn.tokens)
        lengths += np.asarray(drawn.lengths)
        text = drawn.decode_state
    assert np.concatenate(tokens, axis=1).tolist() == EXPECTED
    assert lengths.tolist() == LENGTHS


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ([4, 4, 4], [2, 3], [3, 0, 0]),  # what was drawn before counts
        ([4], [2, 3], [3, 0, 0]),
        ([4], [1, 2, 3], [3, 1, 2]),  # as far as the first string had to look back
        ([4, 4, 4, 4], [2, 3, 1], [3, 1, 0]),
    ],
)
def test_another_string_may_come_between_two_pieces(first, then, expected):
    step, state, prompt = begun([[1, 2, 3, 1, 2]])
    drawn = generate(step, state, prompt, 2, keys(1), temperature=0, stop=first)
    after = decode(step, drawn.decode_state, 3, keys(1), temperature=0, stop=then)
    assert after.tokens.tolist() == [expected]


def test_padding_may_be_any_id():
    options = {"temperature": 0, "stop": [3], "pad_id": -7}
    drawn = generate(*begun([[1, 3, 2, 2]]), 4, keys(1), **options)
    assert drawn.tokens.tolist() == [[1, 3, -7, -7]]


def test_the_prompt_does_not_count():
    step, state, prompt = begun([[9, 4, 1, 2, 4, 5]], [[1, 2]])  # reads 1 2, draws 4
    drawn = generate(step, state, prompt, 5, keys(1), temperature=0, stop=STOP)
    assert drawn.tokens.tolist() == [[4, 1, 2, 4, 0]]


def test_the_state_stays_behind_the_stop_string():
    drawn = generate(*begun(SCRIPT), 8, keys(4), temperature=0, stop=STOP)
    steps = [1 + length for length in LENGTHS]  # one for the prompt
    assert drawn.decode_state.model_state.tolist() == steps
    greedy = drawn.decode_state.logits.argmax(axis=1).tolist()
    assert greedy == [5, 1, 4, 1]
    seen = [np.flatnonzero(row).tolist() for row in np.asarray(drawn.decode_state.seen)]
    assert seen == [[0, 1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 4]]


def test_without_the_string_all_rows_go_on():
    step, state, prompt = begun(SCRIPT)
    drawn = generate(step, state, prompt, 6, keys(4), temperature=0, stop=STOP)
    after = decode(step, drawn.decode_state, 2, keys(4), temperature=0)
    assert after.tokens.tolist() == [[5, 5], [1, 2], [3, 4], [1, 2]]
    assert after.lengths.tolist() == [2] * 4
    assert not after.decode_state.stopped.any()


def test_a_row_that_goes_on_draws_what_it_would_have_drawn():
    """Its position did not move while others went on."""

    def step(tokens, state):
        state = (7 * state + tokens) % 101
        ids = jnp.arange(VOCAB, dtype=jnp.int32)[None]
        return ((state[:, None] * (ids + 3)) % 5).astype(jnp.float32) / 2, state

    start = (step, jnp.zeros(3, jnp.int32), [[1], [2], [3]])
    whole = np.asarray(generate(*start, 60, keys(3)).tokens)
    drawn = generate(*start, 30, keys(3), stop=[2])
    lengths = drawn.lengths.tolist()
    assert min(lengths) < 30
    after = np.asarray(decode(step, drawn.decode_state, 30, keys(3)).tokens)
    for row, length in enumerate(lengths):
        assert (whole[row, :length] == drawn.tokens[row, :length]).all()
        assert (whole[row, length : length + 30] == after[row]).all()


def test_the_loop_ends_with_the_last_row():
    steps = []

    def step(tokens, state):
        jax.debug.callback(lambda: steps.append(1))
        return jax.nn.one_hot(tokens + 1, VOCAB), state

    drawn = generate(step, None, [[0], [1]], 1000, keys(2), temperature=0, stop=[4])
    assert drawn.lengths.tolist() == [4, 3]
    jax.effects_barrier()
    assert len(steps) == 1 + 4  # the prompt, and the longer row


def test_a_state_without_rows_is_refused():
    def step(tokens, steps):
        return jax.nn.one_hot(tokens, VOCAB), steps + 1

    state = jnp.zeros((), jnp.int32)
    assert generate(step, state, [[1], [2]], 3, keys(2)).decode_state.model_state == 4
    with pytest.raises(ValueError, match=r"shape \(\), but must lead with the 2 rows"):
        generate(step, state, [[1], [2]], 3, keys(2), stop=[1])
