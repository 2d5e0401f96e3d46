"""The mixed objective, against the plain classifier with embeddings moved by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.imdb.mixed_objective import (
    Objective,
    make_mixed_loss,
)
from experiments.imdb.model import Settings, make_loss, make_model

pytestmark = pytest.mark.slow

SETTINGS = Settings(embed=3, hidden=4, dropout=0.0, word_dropout=0.0)
NOTHING = Objective(entropy=0, adversarial=0, virtual_adversarial=0)
LABELLED, OTHERS, TIME = 3, 2, 4
LENGTHS = np.array([4, 2, 1, 3, 0])
VOCAB = 1 + (LABELLED + OTHERS) * TIME


@pytest.fixture(params=[2, 3])
def problem(request):
    """A classifier of 2 or 3 classes, its variables and a batch whose words are all
    different: to move the embedding of a word is to move that of its place."""
    model = make_model(SETTINGS, VOCAB, request.param)
    tokens = np.arange(1, VOCAB, dtype=np.int32).reshape(-1, TIME)
    variables = model.init(jax.random.key(0), jnp.asarray(tokens[:1]))
    keys = iter(jax.random.split(jax.random.key(1), 30))
    variables = jax.tree.map(
        lambda leaf: leaf + jax.random.normal(next(keys), leaf.shape), variables
    )
    batch = {
        "tokens": tokens[:LABELLED],
        "lengths": LENGTHS[:LABELLED],
        "labels": np.array([0, 1, request.param - 1]),
        "weights": np.ones(LABELLED, np.float32),
        "other_tokens": tokens[LABELLED:],
        "other_lengths": LENGTHS[LABELLED:],
        "other_weights": np.array([1, 0], np.float32),
    }
    return model, variables, jax.tree.map(jnp.asarray, batch)


def evaluate(loss, variables, batch, key, devices=1):
    """The metrics of a loss, on rows split over devices: their totals and weights."""
    shards = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    run = jax.vmap(lambda batch: loss(variables, batch, key), axis_name="data")
    return jax.tree.map(lambda x: x.sum(axis=0), run(shards))


def log_probabilities(model, variables, batch, moves=None):
    """Of all rows and classes, with the embeddings of the words moved; numpy-like."""
    table = variables["params"]["embed"]["embedding"]
    if moves is not None:
        table = table.at[1:].add(moves.reshape(-1, table.shape[1]))
    params = {**variables["params"], "embed": {"embedding": table}}
    tokens = jnp.concatenate([batch["tokens"], batch["other_tokens"]])
    logits = model.apply({"params": params}, tokens, lengths=jnp.asarray(LENGTHS))
    if logits.ndim == 1:
        logits = jnp.stack([jnp.zeros_like(logits), logits], axis=1)
    return logits - jnp.log(jnp.exp(logits).sum(axis=1, keepdims=True))


def scaled(direction, epsilon):
    """Of norm epsilon in each text, zero at padding; in numpy."""
    out = np.zeros(direction.shape)
    for row, length in enumerate(LENGTHS):
        part = np.float64(direction[row, :length])
        norm = np.sqrt((part**2).sum())
        out[row, :length] = epsilon * part / norm if norm else 0
    return jnp.asarray(out, jnp.float32)


def test_each_part_is_that_of_the_paper(problem):
    model, variables, batch = problem
    objective = Objective(
        entropy=0.5, adversarial=2.0, virtual_adversarial=3.0, epsilon=0.3
    )
    key = jax.random.key(5)
    found = evaluate(make_mixed_loss(model, objective), variables, batch, key)
    labels, rows = np.asarray(batch["labels"]), np.arange(LABELLED)

    def cross_entropy(moves):
        logs = log_probabilities(model, variables, batch, moves)
        return -logs[rows, labels].sum()

    zeros = jnp.zeros((LABELLED + OTHERS, TIME, 3))
    clean = np.float64(log_probabilities(model, variables, batch))
    nats = -clean[rows, labels].mean()
    counted = [0, 1, 2, 3]  # the last row has no weight
    entropy = -(np.exp(clean) * clean).sum(axis=1)[counted].mean()
    adversarial = scaled(jax.grad(cross_entropy)(zeros), 0.3)
    expected_adversarial = cross_entropy(adversarial) / LABELLED

    def divergence(moves):
        logs = log_probabilities(model, variables, batch, moves)
        return (np.exp(clean) * (clean - logs)).sum(axis=1)

    with jax.numpy_dtype_promotion("standard"):
        direction = scaled(
            jax.random.normal(jax.random.split(key, 5)[4], zeros.shape), 0.1
        )
        gradient = jax.grad(lambda moves: divergence(moves).sum())(direction)
        changes = divergence(scaled(gradient, 0.3))
    expected = {
        "cross_entropy": nats,
        "entropy": entropy,
        "adversarial": float(expected_adversarial),
        "virtual_adversarial": float(changes[jnp.array(counted)].mean()),
    }
    for name, value in expected.items():
        assert float(found[name].value) == pytest.approx(value, rel=2e-3), name
    every = 0.5 * expected["entropy"] + 3 * expected["virtual_adversarial"]
    total = nats + 2 * expected["adversarial"] + every
    assert float(found["loss"].value) == pytest.approx(total, rel=2e-3)


@pytest.mark.parametrize("class_weights", [None, np.array([1, 3, 2], np.float32)])
def test_the_parts_are_means_in_uneven_batches_on_several_devices(
    problem, class_weights
):
    model, variables, batch = problem
    if class_weights is not None:
        class_weights = class_weights[: model.num_classes or 2]
    objective = dataclasses.replace(NOTHING, entropy=0.5)
    loss = make_mixed_loss(model, objective, class_weights)
    # 3 texts with a label in 2 rows for each of 2 devices, and 1 without in 2 rows.
    uneven = {
        k: jnp.concatenate([v, jnp.zeros_like(v[:1])]) if "other" not in k else v
        for k, v in batch.items()
    }
    found = evaluate(loss, variables, uneven, jax.random.key(0), devices=2)
    parts = {name: float(mean.value) for name, mean in found.items()}
    expected = parts["cross_entropy"] + 0.5 * parts["entropy"]
    assert parts["loss"] == pytest.approx(expected, rel=1e-5)
    alone = evaluate(loss, variables, batch, jax.random.key(0))
    assert parts["loss"] == pytest.approx(float(alone["loss"].value), rel=1e-5)


def test_without_other_parts_it_is_the_usual_loss(problem):
    model, variables, batch = problem
    key, weights = jax.random.key(0), np.array([1, 3, 2], np.float32)
    for class_weights in (None, weights[: model.num_classes or 2]):
        loss = make_mixed_loss(model, NOTHING, class_weights)
        found = evaluate(loss, variables, batch, key)
        usual = make_loss(model, class_weights=class_weights)(variables, batch, key)
        for name in ("loss", "accuracy"):
            value = float(usual[name].value)
            assert float(found[name].value) == pytest.approx(value, rel=1e-5)


def test_a_batch_may_have_no_texts_without_labels(problem):
    model, variables, batch = problem
    empty = {k: v[:0] if k.startswith("other") else v for k, v in batch.items()}
    loss = make_mixed_loss(model, Objective())
    found = evaluate(loss, variables, empty, jax.random.key(0))
    assert all(np.isfinite(float(mean.value)) for mean in found.values())
    assert float(found["entropy"].weight) == LABELLED


def test_rows_of_weight_zero_change_no_gradient(problem):
    model, variables, batch = problem
    batch |= {"weights": jnp.array([1.0, 1.0, 0.0])}
    loss = make_mixed_loss(model, Objective())

    def gradient(batch):
        return jax.grad(
            lambda variables: (
                evaluate(loss, variables, batch, jax.random.key(0))["loss"].total
            )
        )(variables)

    changed = batch | {
        "labels": batch["labels"].at[2].set(0),
        "tokens": batch["tokens"].at[2, 0].set(1),
    }
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(batch),
        gradient(changed),
    )


@pytest.mark.parametrize("name", ["entropy", "adversarial", "virtual_adversarial"])
def test_each_part_has_a_gradient(problem, name):
    model, variables, batch = problem
    objective = dataclasses.replace(NOTHING, **{name: 1.0})

    def total(variables, objective):
        loss = make_mixed_loss(model, objective)
        return evaluate(loss, variables, batch, jax.random.key(0))["loss"].total

    with_part, without = (
        jax.grad(total)(variables, o)["params"]["output"]["kernel"]
        for o in (objective, NOTHING)
    )
    assert float(jnp.abs(with_part - without).max()) > 1e-4


@pytest.mark.parametrize(
    ("parts", "fewest"),
    [
        ({}, 5),
        ({"adversarial": 0}, 5),
        ({"virtual_adversarial": 0}, 5),
        ({"adversarial": 0, "virtual_adversarial": 0}, 3),
    ],
)
def test_with_perturbations_the_default_is_to_train_for_longer(parts, fewest):
    assert Objective(**parts).fewest_epochs == fewest
