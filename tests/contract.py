"""What every layer promises, as checks that hold for any of them.

Each check runs a layer in two ways that must agree and come from different code: padded
against cut, packed against alone, in one go against piece by piece. That the values are
the right ones is the business of the oracles and of the comparison with PyTorch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

B, T, D = 4, 6, 3
LENGTHS = np.array([T, 0, 1, T - 1])

# Sequences sharing a row, with padding before, between, behind and inside them.
PACKED = [
    [1, 1, 1, 2, 2, 3],
    [1, 1, 0, 0, 2, 2],
    [0, 1, 2, 0, 2, 0],
    [0, 0, 0, 0, 0, 0],
]

# Both sides add the same float32 numbers, in another order at most.
TOLERANCE = {"rtol": 0, "atol": 2e-6}


@functools.cache
def initialized_and_compiled(layer):
    """Its variables and its `apply`: of all the checks, so that none compiles again."""
    variables = jax.jit(layer.init)(jax.random.key(1), np.ones((B, T, D), np.float32))
    apply = jax.jit(layer.apply, static_argnames=("reverse", "train", "method"))
    return variables, apply


class Subject:
    """A layer with parameters and inputs to try it on."""

    def __init__(self, layer, directions, rng):
        self.layer = layer
        self.directions = directions  # of each cell: f(orward) or b(ackward)
        self.has_step = "b" not in directions
        self.rng = rng
        self.x = self.normal(B, T, D)
        initial, self.run = initialized_and_compiled(layer)
        # Zero biases and zero states would hide much.
        self.variables = jax.tree.map(
            lambda leaf: leaf + 0.1 * self.normal(*leaf.shape), initial
        )

    def normal(self, *shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def state(self, *batch):
        zeros = self.layer.initial_state(batch)
        return jax.tree.map(
            lambda leaf: leaf + self.normal(*leaf.shape).astype(leaf.dtype), zeros
        )

    def gradients(self, **options):
        """A function of x and state: a loss on all outputs, and all its gradients."""
        results = jax.eval_shape(
            lambda x, state: self.layer.apply(
                self.variables, x, state=state, **options
            ),
            self.x,
            self.state(B),
        )
        cotangents = [self.normal(*leaf.shape) for leaf in jax.tree.leaves(results)]

        def loss(variables, x, state):
            results = self.layer.apply(variables, x, state=state, **options)
            # The state of some cells is complex.
            return sum(
                jnp.vdot(cotangent, leaf.real)
                for leaf, cotangent in zip(
                    jax.tree.leaves(results), cotangents, strict=True
                )
            )

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        return lambda x, state: jax.device_get(run(self.variables, x, state))

    def __call__(self, x, state=None, **options):
        return self.run(self.variables, x, state=state, **options)

    def step(self, x, state):
        return self.run(self.variables, x, state, method="step")


def row(tree, r):
    return jax.tree.map(lambda leaf: leaf[r], tree)


def assert_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, **(tolerance or TOLERANCE))


def padded_equals_cut(subject):
    """Lengths 0, 1, T-1, T: outputs, zeros at padding, and the final state."""
    for reverse in (False, True):
        initial = subject.state(B)
        outputs, final = subject(subject.x, initial, lengths=LENGTHS, reverse=reverse)
        for r, length in enumerate(LENGTHS):
            alone, alone_final = subject(
                subject.x[r, :length], row(initial, r), reverse=reverse
            )
            assert_close(outputs[r, :length], alone)
            assert_close(row(final, r), alone_final)
            assert not np.any(outputs[r, length:])
    assert_close(row(final, 1), row(initial, 1), rtol=0, atol=0)


def padding_is_not_read(subject):
    """NaN in padding, whole rows of it included, reaches no output and no gradient."""
    segment_ids = np.array(PACKED)
    ends = np.arange(T) < LENGTHS[:, None]
    for valid, reverse, options in [
        (ends, False, {"lengths": LENGTHS}),
        (segment_ids > 0, True, {"segment_ids": segment_ids}),
    ]:
        state = subject.state(B)
        gradients = subject.gradients(reverse=reverse, **options)
        zeros = np.where(valid[..., None], subject.x, 0)
        nans = np.where(valid[..., None], subject.x, np.float32(np.nan))
        clean, found = gradients(zeros, state), gradients(nans, state)
        assert_close(found, clean, rtol=0, atol=0)
        loss, (_, x_gradient, _) = found
        assert np.isfinite(loss)
        assert not np.any(x_gradient[~valid])
        # Not at each step: a rectifier may be shut.
        used = np.any(x_gradient != 0, axis=(1, 2))
        assert np.array_equal(used, np.any(valid, axis=1))


def reverse_is_flipped(subject):
    """Reversed = cut, flip, run, flip back."""
    initial = subject.state(B)
    outputs, final = subject(subject.x, initial, lengths=LENGTHS, reverse=True)
    for r, length in enumerate(LENGTHS):
        flipped, flipped_final = subject(subject.x[r, :length][::-1], row(initial, r))
        assert_close(outputs[r, :length], flipped[::-1])
        assert_close(row(final, r), flipped_final)


def packed_equals_alone(subject):
    """Sequences sharing a row, padding before, between and behind them, in both
    directions; the caller's state belongs to the first one of the row."""
    segment_ids = np.array(PACKED)
    for reverse in (False, True):
        initial = subject.state(B)
        outputs, final = subject(
            subject.x, initial, segment_ids=segment_ids, reverse=reverse
        )
        zero = subject.layer.initial_state(())
        for r, ids in enumerate(segment_ids):
            finals = {}
            for number in sorted(set(ids) - {0}):
                steps = ids == number
                before = row(initial, r) if number == 1 else zero
                alone, finals[number] = subject(
                    subject.x[r, steps], before, reverse=reverse
                )
                assert_close(outputs[r, steps], alone)
            assert not np.any(outputs[r, ids == 0])
            # Each direction ends with the sequence that it reads last.
            expected_final = list(row(initial, r))
            for entry, direction in enumerate(subject.directions if finals else ""):
                last_read = 1 if (direction == "b") != reverse else max(finals)
                expected_final[entry] = finals[last_read][entry]
            assert_close(row(final, r), tuple(expected_final))


def packed_gradients_equal_alone(subject):
    """Of one row with two sequences, in both directions: of weights, x and states."""
    first, second = slice(0, 2), slice(3, 6)
    segment_ids = np.array([1, 1, 0, 2, 2, 2])
    x, state = subject.x[0], subject.state()
    zero = subject.layer.initial_state(())
    for reverse in (False, True):

        def packed(variables, x, state, reverse=reverse):
            outputs, _ = subject.layer.apply(
                variables, x, state=state, segment_ids=segment_ids, reverse=reverse
            )
            return jnp.sum(outputs**2)

        def alone(variables, x, state, reverse=reverse):
            parts = [
                subject.layer.apply(variables, x[steps], state=before, reverse=reverse)[
                    0
                ]
                for steps, before in [(first, state), (second, zero)]
            ]
            return sum(jnp.sum(part**2) for part in parts)

        found, expected = (
            jax.jit(jax.grad(function, argnums=(0, 1, 2)))(subject.variables, x, state)
            for function in (packed, alone)
        )
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert any(np.any(leaf) for leaf in jax.tree.leaves(found[2]))


def holes_are_skipped(subject):
    """Padding before and inside a sequence is as good as cut out."""
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 0, 0, 1, 0, 1]] * 2)
    initial = subject.state(B)
    for reverse in (False, True):
        outputs, final = subject(subject.x, initial, segment_ids=mask, reverse=reverse)
        for r, steps in enumerate(mask == 1):
            alone, alone_final = subject(
                subject.x[r, steps], row(initial, r), reverse=reverse
            )
            assert_close(outputs[r, steps], alone)
            assert_close(row(final, r), alone_final)


def steps_equal_the_whole(subject):
    state = subject.layer.initial_state((B,))
    if not subject.has_step:
        with pytest.raises(ValueError, match="needs the whole sequence"):
            subject.step(subject.x[:, 0], state)
        return
    outputs, final = subject(subject.x, state)
    for t in range(T):
        output, state = subject.step(subject.x[:, t], state)
        assert_close(output, outputs[:, t])
    assert_close(state, final)


def chunks_equal_one_pass(subject):
    """Only a layer that reads forward can be fed in pieces."""
    if not subject.has_step:
        return
    initial = subject.state(B)
    outputs, final = subject(subject.x, initial, lengths=LENGTHS)
    cut = 2
    head, state = subject(subject.x[:, :cut], initial, lengths=np.minimum(LENGTHS, cut))
    tail, state = subject(
        subject.x[:, cut:], state, lengths=np.maximum(LENGTHS - cut, 0)
    )
    assert_close(np.concatenate([head, tail], axis=1), outputs)
    assert_close(state, final)


def outputs_depend_on_the_past_alone(subject):
    changed = subject.x.copy()
    changed[:, 3:] += 1
    before, after = subject(subject.x)[0], subject(changed)[0]
    assert np.all(np.any(before[:, 3:] != after[:, 3:], axis=-1))
    past_is_equal = np.array_equal(before[:, :3], after[:, :3])
    assert past_is_equal == subject.has_step


def any_batch_axes(subject):
    initial = subject.state(B)
    outputs, final = subject(subject.x, initial, segment_ids=np.array(PACKED))
    folded = subject.x.reshape(2, 2, T, D)
    folded_outputs, folded_final = subject(
        folded,
        jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), initial),
        segment_ids=np.array(PACKED).reshape(2, 2, T),
    )
    assert_close(folded_outputs.reshape(outputs.shape), outputs)
    unfold = jax.tree.map(lambda leaf: leaf.reshape(B, *leaf.shape[2:]), folded_final)
    assert_close(unfold, final)
    alone, _ = subject(subject.x[0], row(initial, 0), segment_ids=np.array(PACKED[0]))
    assert_close(alone, outputs[0])


def state_keeps_its_type(subject):
    zero = subject.layer.initial_state((B,))
    _, final = subject(subject.x, zero, lengths=LENGTHS)
    spell = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(spell, final) == jax.tree.map(spell, zero)
    default = subject(subject.x, lengths=LENGTHS)[1]
    assert_close(default, final, rtol=0, atol=0)


def second_call_compiles_nothing(subject):
    run = jax.jit(subject.layer.apply)
    state = subject.state(B)
    _, state = run(subject.variables, subject.x, LENGTHS, state=state)
    run(subject.variables, subject.x + 1, LENGTHS[::-1].copy(), state=state)
    assert run._cache_size() == 1


def vmap_and_jvp(subject):
    """Over a batch of parameters, and forward-mode against reverse-mode."""
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), subject.variables)
    mapped, _ = jax.vmap(subject.layer.apply, in_axes=(0, None))(many, subject.x)
    halves = jax.tree.map(lambda leaf: leaf / 2, subject.variables)
    assert_close(mapped[0], subject(subject.x)[0])
    assert_close(mapped[1], subject.run(halves, subject.x)[0])

    def loss(x):
        return jnp.sum(subject(x, lengths=LENGTHS)[0] ** 2)

    tangent = subject.normal(*subject.x.shape)
    _, forward = jax.jvp(loss, (subject.x,), (tangent,))
    reverse = np.vdot(jax.grad(loss)(subject.x), tangent)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)


CHECKS = [
    padded_equals_cut,
    padding_is_not_read,
    reverse_is_flipped,
    packed_equals_alone,
    packed_gradients_equal_alone,
    holes_are_skipped,
    steps_equal_the_whole,
    chunks_equal_one_pass,
    outputs_depend_on_the_past_alone,
    any_batch_axes,
    state_keeps_its_type,
    second_call_compiles_nothing,
    vmap_and_jvp,
]
