"""What sampling refuses: by function, calls and the words of the error."""

import jax
import jax.numpy as jnp

from jaxrnn import sampling

KEY = jax.random.key(0)
X = jnp.zeros((2, 5, 3))
LOGITS = jnp.zeros((2, 4))


def step(tokens, state):
    return jnp.zeros((2, 4)), state


class Unhashable:
    __hash__ = None

    def __call__(self, tokens, state):
        return step(tokens, state)


KEYS = jax.random.split(KEY, 2)
PROMPT = [[1], [2]]
STATE = sampling.init_decode_state(None, LOGITS)


def drawing(draw):
    """The options that all of sampling shares."""
    return [
        (lambda: draw(temperature=-1), "temperature", "got -1"),
        (lambda: draw(temperature="hot"), "temperature", "'hot'"),
        (lambda: draw(temperature=None), "temperature", "None"),
        (lambda: draw(top_k=0), "top_k", "got 0"),
        (lambda: draw(top_k=2.5), "top_k", "got 2.5"),
        (lambda: draw(top_k=[2]), "top_k", "got [2]"),
        (lambda: draw(top_p=[0.5, 0]), "top_p", "got 0"),
        (lambda: draw(min_p=[0.5] * 3), "min_p", "(3,)"),
    ]


def continuing(draw):
    return [
        *drawing(draw),
        (lambda: draw(length=0), "length", "got 0"),
        (lambda: draw(length="9"), "length", "'9'"),
        (lambda: draw(key=KEY), "key", "shape ()"),
        (lambda: draw(key=LOGITS), "key", "float32"),
        (lambda: draw(repetition_penalty=0), "repetition_penalty", "got 0"),
        (lambda: draw(repetition_penalty=None), "repetition_penalty", "None"),
        (lambda: draw(stop=[]), "stop", "empty"),
        (lambda: draw(stop=[9]), "stop", "got 9"),
        (lambda: draw(pad_id=0.5), "pad_id", "float64"),
        (lambda: draw(step=Unhashable()), "step", "Unhashable"),
        (lambda: draw(step=3), "function", "got 3"),
        (lambda: draw(step=lambda tokens, _: LOGITS), "step", "state"),
    ]


def generate(**options):
    given = {"step": step, "state": None, "prompt": PROMPT, "length": 3, "key": KEYS}
    return sampling.generate(**(given | options))


def decode(**options):
    given = {"step": step, "decode_state": STATE, "length": 3, "key": KEYS} | options
    return sampling.decode(**given)


def stream(**options):
    given = {"step": step, "decode_state": STATE, "length": 3, "key": KEYS} | options
    return list(sampling.stream(**given))


def prefill(prompt=PROMPT, lengths=None, step=step):
    return sampling.prefill(step, None, prompt, lengths)


def choose(*uniform):
    return sampling.sample_inverse_cdf(sampling.truncate(LOGITS), jnp.array(uniform))


REFUSED = {
    "sampling.init_decode_state": [
        (lambda: sampling.init_decode_state(None, X), "logits", "(2, 5, 3)")
    ],
    "sampling.prefill": [
        (lambda: prefill([[0.5], [1.0]]), "prompt", "float64"),
        (lambda: prefill([[9], [0]]), "prompt", "got 9"),
        (lambda: prefill([1, 2]), "prompt", "(2,)"),
        (lambda: prefill([[1], [2, 3]]), "prompt", "pad"),
        (lambda: prefill([[], []]), "prompt", "(2, 0)"),
        (lambda: prefill(lengths=[1]), "prompt_lengths", "(1,)"),
        (lambda: prefill(lengths=[1, 2]), "prompt_lengths", "got 2"),
        (lambda: prefill(step=None), "function", "None"),
    ],
    "sampling.decode": [
        *continuing(decode),
        (lambda: decode(limit=1.5), "limit", "float64"),
    ],
    "sampling.generate": continuing(generate),
    "sampling.stream": [
        *continuing(stream),
        (lambda: stream(piece_length=0), "piece_length", "got 0"),
    ],
    "sampling.penalize": [
        (lambda: sampling.penalize(LOGITS, [True], 2.0), "seen", "(1,)"),
        (lambda: sampling.penalize(X, X > 0, 2.0), "logits", "(2, 5, 3)"),
        (lambda: sampling.penalize(LOGITS, LOGITS > 0, -2), "penalty", "got -2"),
    ],
    "sampling.truncate": [
        *drawing(lambda **options: sampling.truncate(LOGITS, **options)),
        (lambda: sampling.truncate(LOGITS.astype(int)), "logits", "int32"),
    ],
    "sampling.sample": [
        *drawing(lambda **options: sampling.sample(LOGITS, KEYS, **options)),
        (lambda: sampling.sample(LOGITS, KEYS[:1]), "key", "(1,)"),
        (lambda: sampling.sample(LOGITS, 7), "key", "int32"),
    ],
    "sampling.sample_inverse_cdf": [(lambda: choose(0.5), "uniform", "(1,)")],
}
