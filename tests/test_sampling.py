"""Texts against explicit loops: an automaton gives exact integers, a GRU logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import sampling
from jaxrnn.placement import data_mesh
from jaxrnn.sampling import (
    decode,
    generate,
    init_decode_state,
    penalize,
    prefill,
    sample,
    stream,
)

VOCAB = 11
PROMPT = np.array([[3, 1], [4, 1], [5, 9], [2, 6], [5, 3]], np.int32)


def automaton(tokens, state):
    """The next token is (3 * token + state) % 11; the state adds the tokens up."""
    following = (3 * tokens + state) % VOCAB
    return jax.nn.one_hot(following, VOCAB), (state + tokens) % VOCAB


def automaton_by_hand(prompt, length):
    state, drawn = 0, []
    for token in prompt:
        following, state = (3 * token + state) % VOCAB, (state + token) % VOCAB
    for _ in range(length):
        drawn.append(following)
        token = following
        following, state = (3 * token + state) % VOCAB, (state + token) % VOCAB
    return drawn


def noisy(tokens, state):
    """Logits that depend on all tokens read, through exact integers alone."""
    state = (31 * state + tokens + 1) % 1009
    ids = jnp.arange(VOCAB, dtype=jnp.int32)[None]
    return ((state[:, None] * (ids + 3)) % 17).astype(jnp.float32) / 4 - 2, state


class Reader(nn.Module):
    def setup(self):
        self.embed = nn.Embed(VOCAB, 4)
        self.layer = jaxrnn.GRU(16)
        self.output = nn.Dense(VOCAB)

    def __call__(self, tokens, state):
        y, state = self.layer.step(self.embed(tokens), state)
        return 6 * self.output(y), state

    def step(self, tokens, state):
        return self(tokens, state)


def gru(rows):
    model, state = Reader(), jaxrnn.GRU(16).initial_state((rows,))
    variables = model.init(jax.random.key(7), jnp.zeros(rows, jnp.int32), state)
    return functools.partial(model.apply, variables, method="step"), state


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def ints(rows):
    return jnp.zeros(rows, jnp.int32)


def loop(step, state, prompt, length, key, penalty=1.0, **options):
    """The text, step by step in Python."""

    @jax.jit
    def draw(logits, seen, position):
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, position)
        return sample(penalize(logits, seen, penalty), folded, **options)

    step = jax.jit(step)
    each_row = np.arange(len(prompt))
    seen = np.zeros((len(prompt), VOCAB), bool)
    for tokens in prompt.T:
        seen[each_row, tokens] = True
        logits, state = step(tokens, state)
    drawn = []
    for position in range(length):
        tokens = draw(logits, seen, position)
        seen[each_row, tokens] = True
        drawn.append(tokens)
        logits, state = step(tokens, state)
    return np.stack(drawn, axis=1)


def test_the_automaton_runs_as_by_hand():
    drawn = generate(automaton, ints(5), PROMPT, 30, keys(5), temperature=0)
    expected = [automaton_by_hand(row, 30) for row in PROMPT.tolist()]
    assert drawn.tokens.tolist() == expected
    assert drawn.lengths.tolist() == [30] * 5
    assert drawn.tokens.dtype == jnp.int32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5, "top_k": 4},
        {"temperature": np.array([0.0, 0.5, 1.0, 2.0, 9.0]), "top_p": 0.8},
        {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "penalty": 1.5},
        {"min_p": np.array([0.0, 0.1, 0.2, 0.3, 1.0]), "penalty": 0.8},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["noisy", "gru"])
def test_it_equals_an_explicit_loop(options, model):
    step, state = (noisy, ints(5)) if model == "noisy" else gru(5)
    expected = loop(step, state, PROMPT, 25, keys(5), **options)
    renamed = dict(options)
    renamed["repetition_penalty"] = renamed.pop("penalty", 1.0)
    drawn = generate(step, state, PROMPT, 25, keys(5), **renamed)
    np.testing.assert_array_equal(drawn.tokens, expected)


def test_other_keys_give_other_texts():
    one, other = (
        generate(noisy, ints(5), PROMPT, 25, keys(5, seed)).tokens for seed in (0, 1)
    )
    assert (np.asarray(one) != np.asarray(other)).any(axis=1).all()


def test_keys_may_come_in_a_list():
    one, other = (
        generate(noisy, ints(5), PROMPT, 25, key).tokens
        for key in (keys(5), list(keys(5)))
    )
    np.testing.assert_array_equal(one, other)


def test_draws_at_different_positions_are_independent():
    """A model without memory: every pair of neighbours is as likely as its tokens."""

    def step(tokens, state):
        return jnp.log(jnp.tile(jnp.array([0.5, 0.3, 0.2]), (tokens.size, 1))), state

    tokens = np.asarray(generate(step, None, [[0]], 18001, keys(1)).tokens[0])
    p = np.outer([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]).ravel()
    pairs = 3 * tokens[:-1] + tokens[1:]
    counts = np.bincount(pairs[::2], minlength=9)
    expected = p * counts.sum()
    # Passed once in 1,000 times by chi-square with 8 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 26.12


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9, "stop": [3, 4]}])
def test_a_row_does_not_depend_on_those_beside_it(options):
    together = generate(noisy, ints(5), PROMPT, 40, keys(5), **options)
    for row in range(5):
        one = slice(row, row + 1)
        alone = generate(noisy, ints(1), PROMPT[one], 40, keys(5)[one], **options)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(
            alone.decode_state.logits[0], together.decode_state.logits[row]
        )
        assert alone.lengths[0] == together.lengths[row]


def test_a_row_of_a_gru_does_not_depend_on_those_beside_it():
    step, state = gru(5)
    together = generate(step, state, PROMPT, 40, keys(5))
    for row in range(5):
        one = slice(row, row + 1)
        alone = generate(step, gru(1)[1], PROMPT[one], 40, keys(5)[one])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


def test_prompts_of_different_lengths_equal_those_alone():
    lengths = [2, 1, 1, 2, 1]
    together = generate(
        noisy, ints(5), PROMPT, 20, keys(5), prompt_lengths=lengths, top_k=6
    )
    for row, length in enumerate(lengths):
        prompt = PROMPT[row : row + 1, :length]
        alone = generate(noisy, ints(1), prompt, 20, keys(5)[row : row + 1], top_k=6)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("noisy", {}),
        ("noisy", {"top_k": 5}),
        ("gru", {"stop": [3]}),
        ("gru", {"top_p": 0.9, "repetition_penalty": 1.2}),
    ],
    ids=str,
)
def test_two_devices_draw_what_one_does(model, options):
    step, state = (noisy, ints(4)) if model == "noisy" else gru(4)
    expected = generate(step, state, PROMPT[:4], 12, keys(4), **options)
    sharding = NamedSharding(data_mesh(2), P("data"))
    state, prompt, key = jax.device_put((state, PROMPT[:4], keys(4)), sharding)
    found = generate(step, state, prompt, 12, key, **options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    assert found.tokens.sharding.is_equivalent_to(sharding, ndim=2)


@pytest.mark.parametrize("pieces", [(100, 100), (1, 6, 193)])
@pytest.mark.parametrize("model", ["noisy", "gru"])
def test_pieces_are_the_text_drawn_at_once(pieces, model):
    step, state = (noisy, ints(5)) if model == "noisy" else gru(5)
    options = {"top_k": 8, "repetition_penalty": 1.1}
    whole = generate(step, state, PROMPT, 200, keys(5), **options)
    text, tokens = prefill(step, state, PROMPT), []
    for length in pieces:
        drawn = decode(step, text, length, keys(5), **options)
        tokens.append(drawn.tokens)
        text = drawn.decode_state
    np.testing.assert_array_equal(np.concatenate(tokens, axis=1), whole.tokens)
    assert text.position.tolist() == [200] * 5


def test_a_text_may_begin_without_a_prompt():
    logits = jax.nn.one_hot(jnp.array([4, 0]), VOCAB)
    drawn = decode(
        automaton, init_decode_state(ints(2), logits), 3, keys(2), temperature=0
    )
    assert drawn.tokens.tolist() == [[4, 1, 7], [0, 0, 0]]


def test_it_runs_inside_a_jitted_function():
    @jax.jit
    def inside(state, prompt, key, temperature):
        return generate(
            noisy, state, prompt, 20, key, temperature=temperature, stop=[3, 4]
        )

    expected = generate(
        noisy, ints(5), PROMPT, 20, keys(5), temperature=0.7, stop=[3, 4]
    )
    found = inside(ints(5), PROMPT, keys(5), 0.7)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_tokens_without_a_distribution_are_minus_one():
    def step(tokens, state):
        return jnp.full((tokens.size, VOCAB), jnp.nan), state

    assert generate(step, None, [[1]], 3, keys(1)).tokens.tolist() == [[-1, -1, -1]]


def test_the_second_call_compiles_nothing():
    traced = []

    def step(weights, tokens, state):
        traced.append(tokens.shape)
        return weights["w"][tokens] + state[:, None], state

    def draw(seed, temperature, stop):
        weights = {"w": jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB))}
        options = {"temperature": temperature, "top_p": temperature, "stop": stop}
        options["params"] = weights
        prompt = PROMPT + seed
        drawn = generate(step, jnp.zeros(5), prompt, 6, keys(5, seed), **options)
        again = decode(step, drawn.decode_state, 6, keys(5, seed), **options)
        return np.concatenate([drawn.tokens, again.tokens], axis=1)

    first = draw(0, 0.9, [1, 2, 3])
    times = len(traced)
    assert (draw(1, 0.5, [4, 5, 6]) != first).any()
    assert len(traced) == times


def test_a_flax_module_is_compiled_once():
    held, state = gru(5)
    model, variables = held.func.__self__, held.args[0]
    step = functools.partial(model.apply, method="step")
    generate(step, state, PROMPT, 6, keys(5), params=variables)
    compiled = sampling._decode._cache_size()
    doubled = jax.tree.map(lambda leaf: 2 * leaf, variables)
    drawn = generate(step, state, PROMPT, 6, keys(5), params=doubled)
    held = functools.partial(step, doubled)
    np.testing.assert_array_equal(drawn.tokens, loop(held, state, PROMPT, 6, keys(5)))
    assert sampling._decode._cache_size() == compiled


def test_what_is_compiled_anew_is_another_function():
    """And a functools.partial is equal to itself alone."""

    def times(number, tokens, state):
        return jax.nn.one_hot(number * tokens % VOCAB, VOCAB), state

    def compiled(step):
        before = sampling._decode._cache_size()
        drawn = generate(step, None, [[3]], 2, keys(1), temperature=0)
        return drawn.tokens.tolist(), sampling._decode._cache_size() - before

    twice = functools.partial(times, 2)
    assert compiled(twice) == ([[6, 1]], 1)
    assert compiled(twice) == ([[6, 1]], 0)
    assert compiled(functools.partial(times, 2)) == ([[6, 1]], 1)
    assert compiled(functools.partial(times, np.int32(4))) == ([[1, 4]], 1)


def stream_of(piece_length, length, options):
    """The pieces put together, and the last one."""
    text = prefill(noisy, ints(5), PROMPT)
    options = {"piece_length": piece_length, **options}
    pieces = list(stream(noisy, text, length, keys(5), **options))
    rows = [
        np.concatenate([piece.tokens[row, : piece.lengths[row]] for piece in pieces])
        for row in range(5)
    ]
    assert {piece.tokens.shape for piece in pieces} == {(5, piece_length)}
    return rows, pieces


@pytest.mark.parametrize("options", [{}, {"stop": [3, 4]}, {"stop": [7]}], ids=str)
@pytest.mark.parametrize(("piece_length", "length"), [(10, 40), (7, 40), (50, 40)])
def test_a_stream_is_the_text_drawn_at_once(piece_length, length, options):
    whole = generate(noisy, ints(5), PROMPT, length, keys(5), **options)
    rows, pieces = stream_of(piece_length, length, options)
    for row, drawn in enumerate(whole.lengths.tolist()):
        assert rows[row].tolist() == whole.tokens[row, :drawn].tolist()
    for ours, theirs in zip(
        jax.tree.leaves(pieces[-1].decode_state),
        jax.tree.leaves(whole.decode_state),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_stream_ends_with_its_last_row():
    drawn = generate(noisy, ints(5), PROMPT, 400, keys(5), stop=[7])
    longest = drawn.lengths.max()
    assert longest < 300
    _, pieces = stream_of(10, 400, {"stop": [7]})
    assert len(pieces) == -(-longest // 10)


def test_the_last_piece_of_a_stream_compiles_nothing(caplog):
    def compilations():
        found = [text for text in caplog.messages if text.startswith("Compiling")]
        caplog.clear()
        return found

    text = prefill(noisy, ints(5), PROMPT)
    pieces = stream(noisy, text, 20, keys(5), piece_length=9, top_k=7, stop=[3, 4, 5])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        next(pieces)
        assert compilations()
        next(pieces)
        compilations()  # that of whether all rows have stopped
        [last] = pieces
    assert last.lengths.max() == 2
    assert not compilations()


def test_methods_that_would_be_compiled_with_their_parameters_are_refused():
    """The same method of a module that has learned since is equal to itself."""
    rngs = nnx.Rngs(0)
    encoder = jaxrnn.nnx.GRU(4, 6, rngs=rngs)
    model = jaxrnn.nnx.LanguageModel(9, 4, encoder, rngs=rngs)
    keys = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(TypeError, match=r"method of an NNX module.*nnx\.split"):
        sampling.generate(model.step, model.initial_state((1,)), [[1]], 5, keys)
    linen, variables = jaxrnn.nnx.to_linen(model)
    state = linen.initial_state((1,))
    with pytest.raises(TypeError, match=r"partial\(model\.apply, method=.step.\)"):
        sampling.generate(linen.apply, state, [[1]], 5, keys, params=variables)
