"""What sampling refuses: every message names the argument and the value."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.sampling import decode, generate, penalize, prefill, sample

VOCAB = 11
PROMPT = np.array([[3, 1], [4, 1], [5, 9], [2, 6], [5, 3]], np.int32)


def keys(rows):
    return jax.random.split(jax.random.key(0), rows)


def count(tokens, state):
    return jax.nn.one_hot(tokens + 1, VOCAB), state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature must be finite and at least 0, got -0.5"),
        (
            {"temperature": math.nan},
            "temperature must be finite and at least 0, got nan",
        ),
        (
            {"temperature": math.inf},
            "temperature must be finite and at least 0, got inf",
        ),
        ({"temperature": 1e39}, "temperature must be finite"),  # in float32
        ({"temperature": np.ones(3)}, "one for each of 2 rows, got shape (3,)"),
        ({"temperature": np.array([1.0, -2.0])}, "at least 0, got -2.0"),
        ({"top_k": 0}, "top_k must be from 1 to the 5 tokens, got 0"),
        ({"top_k": 6}, "top_k must be from 1 to the 5 tokens, got 6"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_p": np.ones((2, 1))}, "top_p must be one number or one for each of 2"),
        ({"min_p": -0.25}, "min_p must be from 0 to 1, got -0.25"),
        ({"min_p": 1.25}, "min_p must be from 0 to 1, got 1.25"),
        ({"key": jax.random.key(0)}, "jax.random.split(key, 2)"),
        ({"key": keys(3)}, "got key<fry> of shape (3,)"),
        ({"key": jnp.zeros((2, 2), jnp.uint32)}, "got uint32 of shape (2, 2)"),
        ({"logits": jnp.zeros(5)}, "[rows, vocabulary], got float32 of shape (5,)"),
        ({"logits": jnp.zeros((2, 5), int)}, "must be floating point"),
    ],
)
def test_bad_options_are_refused(options, message):
    given = {"logits": jnp.zeros((2, 5)), "key": keys(2)} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(**given)


@pytest.mark.parametrize(
    ("seen", "penalty", "message"),
    [
        ((2, 4), 1.2, "seen has shape (2, 4), the logits (2, 5)"),
        ((2, 5), 0.0, "repetition_penalty must be finite and above 0, got 0.0"),
        ((2, 5), math.nan, "repetition_penalty must be finite and above 0, got nan"),
    ],
)
def test_bad_penalties_are_refused(seen, penalty, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        penalize(jnp.zeros((2, 5)), jnp.zeros(seen, bool), penalty)


def test_top_k_is_not_traced_and_traced_values_pass():
    with pytest.raises(TypeError, match="top_k must be an integer that is not traced"):
        jax.jit(lambda k: sample(jnp.zeros((2, 5)), keys(2), top_k=k))(3)
    cold = jax.jit(lambda t: sample(jnp.eye(2), keys(2), temperature=t))
    assert cold(0).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"length": -3}, "length must be at least 1, got -3"),
        ({"key": keys(4)}, "got key<fry> of shape (4,)"),
        ({"key": jax.random.key(0)}, "jax.random.split(key, 5)"),
        ({"prompt": np.zeros((5, 0), int)}, "the prompt has shape (5, 0)"),
        ({"prompt": PROMPT + 5}, "prompt must be from 0 to 10, got 14"),
        ({"temperature": -1.0}, "temperature must be finite and at least 0, got -1.0"),
        ({"temperature": np.nan}, "temperature must be finite and at least 0, got nan"),
        ({"temperature": np.ones(4)}, "one for each of 5 rows, got shape (4,)"),
        ({"top_k": 12}, "top_k must be from 1 to the 11 tokens, got 12"),
        ({"top_k": 0}, "top_k must be from 1 to the 11 tokens, got 0"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"min_p": 2}, "min_p must be from 0 to 1, got 2.0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be finite and above 0"),
        ({"stop": []}, "stop is empty"),
        ({"stop": [3, 11]}, "stop must be from 0 to 10, got 11"),
        ({"stop": [[3]]}, "stop must have one axis, got shape (1, 1)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    given = {"prompt": PROMPT, "length": 4, "key": keys(5)} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(count, None, **given)


def test_arguments_of_other_types_are_refused():
    with pytest.raises(TypeError, match=r"length must be an integer, got 2\.5"):
        generate(count, None, PROMPT, 2.5, keys(5))
    with pytest.raises(TypeError, match="stop must be integers, got <U3"):
        generate(count, None, PROMPT, 2, keys(5), stop="end")


def test_another_step_cannot_go_on():
    text = prefill(count, None, PROMPT)

    def wider(tokens, state):
        return jnp.zeros((5, VOCAB + 1)), state

    message = re.escape(
        "logits float32[5, 12], but those of the decode state are float32[5, 11]"
    )
    with pytest.raises(ValueError, match=message):
        decode(wider, text, 3, keys(5))
