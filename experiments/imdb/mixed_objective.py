"""The mixed objective: the loss of a classifier on texts with and without labels.

Sachan, Zaheer and Salakhutdinov (2019), "Revisiting LSTM networks for semi-supervised
text classification via mixed objective function": the cross-entropy and the adversarial
loss of texts with labels, the entropy and the virtual adversarial loss of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.validation import AMOUNT
from experiments.imdb.model import FEWEST_EPOCHS
from jaxrnn import adversarial, metrics, segments
from jaxrnn.metrics import Mean
from jaxrnn.models import SequenceClassifier
from jaxrnn.training import Batch, Metrics
from jaxrnn.types import Array


@dataclass(frozen=True)
class Objective:
    """With --preset best or --encoder: what is added to the cross-entropy."""

    entropy: float = 1.0
    """Weight of the entropy of the predictions."""
    adversarial: float = 1.0
    """Weight of the loss of texts with a label under an adversarial perturbation."""
    virtual_adversarial: float = 1.0
    """Weight of the change of the prediction under a perturbation."""
    epsilon: float = 5.0
    """Norm of the perturbations of a text's normalized embeddings."""

    @property
    def fewest_epochs(self) -> int:
        """The fewest to train for by default: more if embeddings are perturbed.

        The cross-entropy alone begins to overfit in the third epoch on IMDB; with
        perturbations validation is still better in the fifth.
        """
        perturbs = self.adversarial or self.virtual_adversarial
        return 5 if perturbs else FEWEST_EPOCHS

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: a field is out of range; the option is named.
        """
        AMOUNT.check(self, "entropy", "adversarial", "virtual_adversarial", "epsilon")


def make_mixed_loss(
    model: SequenceClassifier,
    objective: Objective,
    class_weights: np.ndarray | None = None,
) -> Callable[..., Metrics]:
    """Return the loss for `training.make_train_step`.

    A batch has tokens, lengths, labels and weights, and of texts without labels
    other_tokens, other_lengths and other_weights; they may have no rows. The parts of
    the loss are means, of texts with labels or of all. It is to be called where there
    is the axis "data", as in a train step.
    """

    def loss(params: Any, batch: Batch, key: Array) -> Metrics:
        word_key, clean_key, gradient_key, moved_key, direction_key = jax.random.split(
            key, 5
        )
        tokens = jnp.concatenate([batch["tokens"], batch["other_tokens"]])
        lengths = jnp.concatenate([batch["lengths"], batch["other_lengths"]])
        valid = segments.from_lengths(lengths, tokens.shape[1]) > 0
        labels, labelled = batch["labels"], slice(len(batch["labels"]))
        label_weights = batch["weights"]
        if class_weights is not None:
            label_weights = label_weights * jnp.asarray(class_weights)[labels]
        weights = jnp.concatenate([batch["weights"], batch["other_weights"]])

        def logits(x: Array, lengths: Array, key: Array) -> Array:
            found: Any = model.apply(
                params,
                x,
                lengths,
                train=True,
                method="from_embeddings",
                rngs={"dropout": key},
            )
            return found if model.num_classes else adversarial.two_class_logits(found)

        def label_loss(x: Array) -> Array:
            found = logits(x, lengths[labelled], gradient_key)
            return (label_weights * metrics.cross_entropy(found, labels)).sum()

        rngs = {"dropout": word_key}
        x: Any = model.apply(
            params, tokens, train=True, method="embed_tokens", rngs=rngs
        )
        clean = logits(x, lengths, clean_key)
        nats = metrics.cross_entropy(clean[labelled], labels)
        correct = metrics.correct(clean[labelled], labels)
        parts = {
            "cross_entropy": Mean.of(nats, label_weights),
            "accuracy": Mean.of(correct, batch["weights"]),
            "entropy": Mean.of(adversarial.entropy(clean), weights),
        }
        if objective.adversarial:
            move = adversarial.adversarial_perturbation(
                label_loss, x[labelled], objective.epsilon, valid[labelled]
            )
            moved = logits(x[labelled] + move, lengths[labelled], moved_key)
            nats = metrics.cross_entropy(moved, labels)
            parts["adversarial"] = Mean.of(nats, label_weights)
        if objective.virtual_adversarial:
            move = adversarial.virtual_adversarial_perturbation(
                lambda x: logits(x, lengths, clean_key),
                x,
                objective.epsilon,
                direction_key,
                valid,
                reference=clean,
            )
            moved = logits(x + move, lengths, moved_key)
            change = adversarial.kl_divergence(clean, moved)
            parts["virtual_adversarial"] = Mean.of(change, weights)
        labelled_weight, weight = jax.lax.psum(
            (label_weights.sum(), weights.sum()), "data"
        )
        return {"loss": _total(parts, objective, labelled_weight / weight), **parts}

    return loss


def _total(parts: Metrics, objective: Objective, share: Array) -> Mean:
    """The sum of the parts, as a mean over texts with labels.

    These have a `share` of the weight of all, on all devices together: there totals and
    weights are added, so that the parts' own means are in the mean of their sum.
    """
    cross_entropy = parts["cross_entropy"]
    total = cross_entropy.total + objective.entropy * share * parts["entropy"].total
    if "adversarial" in parts:
        total += objective.adversarial * parts["adversarial"].total
    if "virtual_adversarial" in parts:
        weight = objective.virtual_adversarial * share
        total += weight * parts["virtual_adversarial"].total
    return Mean(total, cross_entropy.weight)
