"""Reading a prompt against stepping through it, with exact integers and with a GRU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.sampling import init_decode_state, prefill

VOCAB = 7
PROMPT = np.array([[3, 1, 4, 1], [5, 0, 2, 6], [5, 3, 5, 0]], np.int32)


def digits(tokens, state):
    """Appends each token to the decimal number that is the state."""
    number, steps = state
    logits = jax.nn.one_hot((tokens + number) % VOCAB, VOCAB)
    return logits, (10 * number + tokens, steps + 1)


def zeros(rows):
    return jnp.zeros(rows, jnp.int32), jnp.zeros((rows, 2), jnp.int32)


def test_the_state_has_read_every_token_in_order():
    text = prefill(digits, zeros(3), PROMPT)
    assert text.model_state[0].tolist() == [3141, 5026, 5350]
    assert text.model_state[1].tolist() == [[4, 4]] * 3
    expected = [(314 + 1) % VOCAB, (502 + 6) % VOCAB, (535 + 0) % VOCAB]
    assert text.logits.argmax(axis=1).tolist() == expected
    seen = [np.flatnonzero(row).tolist() for row in np.asarray(text.seen)]
    assert seen == [[1, 3, 4], [0, 2, 5, 6], [0, 3, 5]]
    assert text.position.tolist() == [0, 0, 0]
    assert not text.stopped.any()


def test_it_goes_on_from_the_state():
    state = (jnp.array([9]), jnp.zeros((1, 2), jnp.int32))
    assert prefill(digits, state, [[1, 2]]).model_state[0].tolist() == [912]


@pytest.mark.parametrize("padding", [0, -1, VOCAB])
def test_padded_prompts_equal_those_alone(padding):
    lengths = [2, 4, 1]
    prompt = np.where(np.arange(4) < np.array(lengths)[:, None], PROMPT, padding)
    text = prefill(digits, zeros(3), prompt, prompt_lengths=lengths)
    for row, length in enumerate(lengths):
        alone = prefill(digits, zeros(1), PROMPT[row : row + 1, :length])
        for ours, theirs in zip(
            jax.tree.leaves(text), jax.tree.leaves(alone), strict=True
        ):
            np.testing.assert_array_equal(ours[row], theirs[0])


def test_reading_equals_stepping_through_a_gru(rng):
    layer = jaxrnn.GRU(8)
    embedding = rng.normal(size=(VOCAB, 4)).astype(np.float32)
    w_o = rng.normal(size=(8, VOCAB)).astype(np.float32)
    variables = layer.init(jax.random.key(0), embedding)

    def step(variables, tokens, state):
        x = jnp.asarray(embedding)[tokens]
        y, state = layer.apply(variables, x, state, method="step")
        return y @ w_o, state

    text = prefill(step, layer.initial_state((3,)), PROMPT, params=variables)
    outputs, state = layer.apply(variables, embedding[PROMPT])
    # float32; the products of the whole sequence are summed in another order
    np.testing.assert_allclose(text.model_state[0], state[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(text.logits, outputs[:, -1] @ w_o, rtol=1e-5, atol=1e-5)


def test_begin_takes_the_first_logits():
    text = init_decode_state("anything", [[0.0, 1.0], [2.0, 3.0]])
    assert text.logits.tolist() == [[0, 1], [2, 3]]
    assert text.model_state == "anything"
    assert not text.seen.any()
    with pytest.raises(ValueError, match=r"\[rows, vocabulary\], got \(3,\)"):
        init_decode_state(None, jnp.zeros(3))


@pytest.mark.parametrize(
    ("prompt", "lengths", "message"),
    [
        (
            np.zeros((3, 0), int),
            None,
            "the prompt has shape (3, 0), but each row needs",
        ),
        (
            np.zeros((0, 2), int),
            None,
            "the prompt has shape (0, 2), but each row needs",
        ),
        ([1, 2], None, "prompt must have 2 axes, got shape (2,)"),
        ([[1, 7]], None, "prompt must be from 0 to 6, got 7"),
        ([[1, -1]], None, "prompt must be from 0 to 6, got -1"),
        ([[1, 2**32 + 1]], None, "prompt must fit into 32 bits, got 4294967297"),
        ([[1, 7, 7]], [2], "prompt must be from 0 to 6, got 7"),
        (PROMPT, [1, 2], "prompt_lengths has shape (2,), but the prompt 3 rows"),
        (PROMPT, [1, 0, 2], "prompt_lengths must be from 1 to 4, got 0"),
        (PROMPT, [1, 5, 2], "prompt_lengths must be from 1 to 4, got 5"),
    ],
)
def test_bad_prompts_are_refused(prompt, lengths, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prefill(digits, zeros(len(prompt)), prompt, lengths)


def test_prompts_of_other_types_are_refused():
    with pytest.raises(TypeError, match="prompt must be integers, got float64"):
        prefill(digits, zeros(1), [[1.0, 2.0]])
    with pytest.raises(TypeError, match="prompt must be integers, got <U2"):
        prefill(digits, zeros(1), [["to", "be"]])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda tokens, h: jnp.zeros((3, 7)), "must return (logits, state), not Shape"),
        (
            lambda tokens, h: (jnp.zeros(3), h),
            "must return logits of shape [3, vocabulary], not ShapeDtypeStruct(",
        ),
        (lambda tokens, h: (jnp.zeros((2, 7)), h), "logits of shape [3, vocabulary]"),
        (
            lambda tokens, h: (jnp.zeros((3, 7)), h[:, :1]),
            "a state like the one it is given: float32[3, 2], not float32[3, 1]",
        ),
        (
            lambda tokens, h: (jnp.zeros((3, 7)), h.astype(jnp.bfloat16)),
            "float32[3, 2], not bfloat16[3, 2]",
        ),
        (lambda tokens, h: (jnp.zeros((3, 7)), (h,)), "float32[3, 2], not ('float32"),
    ],
)
def test_a_step_that_returns_something_else_is_refused(step, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prefill(step, jnp.zeros((3, 2)), PROMPT)


def test_padded_prompts_need_a_state_of_rows():
    def step(tokens, steps):
        return jax.nn.one_hot(tokens, VOCAB), steps + 1

    assert prefill(step, jnp.array(0), PROMPT).model_state == 4
    with pytest.raises(ValueError, match="shape \\(\\), but must lead with the 3 rows"):
        prefill(step, jnp.array(0), PROMPT, prompt_lengths=[1, 2, 3])
