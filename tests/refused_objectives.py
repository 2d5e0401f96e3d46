"""What `adversarial` and `sampled_softmax` refuse: calls, and words of the message."""

import jax
import jax.numpy as jnp

from jaxrnn import adversarial
from jaxrnn.sampled_softmax import CandidateSampler, sampled_cross_entropy

KEY = jax.random.key(0)
X = jnp.ones((2, 3, 4))
TABLE, BIAS = jnp.ones((5, 4)), jnp.zeros(5)
IDS = jnp.zeros((2, 3), jnp.int32)


def total(x):
    return x.sum()


def logits(x):
    return x.sum(axis=1)


def perturbation(**options):
    given = {"epsilon": 1.0, "key": KEY} | options
    return adversarial.virtual_adversarial_perturbation(logits, X, **given)


REFUSED = {
    "adversarial.normalize_embeddings": [
        (lambda: adversarial.normalize_embeddings(TABLE, [1.0]), "frequencies", "(1,)")
    ],
    "adversarial.adversarial_perturbation": [
        (lambda: adversarial.adversarial_perturbation(total, X, -1.0), "epsilon", "-1"),
        (lambda: adversarial.adversarial_perturbation(total, BIAS, 1.0), "x", "(5,)"),
    ],
    "adversarial.virtual_adversarial_perturbation": [
        (lambda: perturbation(xi=0.0), "xi", "0.0"),
        (lambda: perturbation(num_iterations=0), "num_iterations", "0"),
        (lambda: perturbation(valid=IDS), "valid", "int32"),
    ],
    "adversarial.kl_divergence": [
        (lambda: adversarial.kl_divergence(TABLE, BIAS), "(5, 4)", "(5,)")
    ],
    "adversarial.entropy": [(lambda: adversarial.entropy(BIAS[0]), "logits", "()")],
    "adversarial.two_class_logits": [
        (lambda: adversarial.two_class_logits(None), "NoneType"),  # pyright: ignore[reportArgumentType]
    ],
    "sampled_softmax.CandidateSampler.of": [
        (lambda: CandidateSampler.of([1, 0], 1), "weights", "0"),
        (lambda: CandidateSampler.of([1, 1], 3), "size = 3", "2"),
        (lambda: CandidateSampler.of([1, 1], 0), "size", "0"),
    ],
    "sampled_softmax.CandidateSampler.draw": [
        (lambda: CandidateSampler.of([1, 1], 1).draw("a"), "key", "a"),  # pyright: ignore[reportArgumentType]
    ],
    "sampled_softmax.sampled_cross_entropy": [
        (
            lambda: sampled_cross_entropy(X, TABLE, BIAS[:1], IDS, IDS[0], BIAS + 1),
            "bias",
            "(1,)",
        ),
        (
            lambda: sampled_cross_entropy(X, TABLE, BIAS, IDS[0], IDS[0], BIAS + 1),
            "targets",
            "(3,)",
        ),
    ],
}
