"""The sum of a recurrent and a linear classifier as one Flax module, for export."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.imdb.linear import LinearClassifier
from jaxrnn.models import SequenceClassifier
from jaxrnn.types import Array, Bool, Float, Int


class CombinedClassifier(nn.Module):
    """A classifier whose logits are the scaled sum of two others'.

    It is called as `network` is. `combine` makes it, and its variables.

    >>> from jaxrnn import GRU
    >>> network = SequenceClassifier(5, 4, GRU(2))
    >>> tokens, lengths = jnp.array([[2, 3, 2, 4]]), jnp.array([3])
    >>> variables = network.init(jax.random.key(0), tokens, lengths=lengths)
    >>> linear = LinearClassifier(
    ...     keys=np.array([2, 18]),  # the word 2, and it after the word 3
    ...     weights=np.array([[1.0], [10.0]], np.float32),
    ...     bias=np.array([100.0], np.float32),
    ...     base=np.array(4),
    ...     scales=np.array([0.0, 1.0], np.float32),
    ... )
    >>> model, variables = combine(network, variables, linear)
    >>> model.apply(variables, tokens, lengths=lengths).tolist()
    [111.0]
    """

    network: SequenceClassifier

    @property
    def vocab_size(self) -> int:
        """That of the network."""
        return self.network.vocab_size

    @property
    def num_classes(self) -> int | None:
        """That of the network."""
        return self.network.num_classes

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b t"], *, lengths: Int[Array, "b"]
    ) -> Float[Array, "..."]:
        """The logits of each row."""
        scales = self.get_variable("linear", "scales")
        logits = self._linear_logits(tokens, lengths)
        if self.num_classes is None:
            logits = logits[:, 0]
        return scales[0] * self.network(tokens, lengths=lengths) + scales[1] * logits

    def _linear_logits(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, "b"]
    ) -> Float[Array, "b k"]:
        """What `LinearClassifier.logits` returns: each n-gram of a text counts once."""
        keys, weights, bias = (
            jnp.asarray(self.get_variable("linear", name))
            for name in ("keys", "weights", "bias")
        )
        valid = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        words = jnp.stack([jnp.zeros_like(tokens), tokens], axis=-1)
        pairs = jnp.stack([tokens[:, :-1] + 1, tokens[:, 1:]], axis=-1)
        places = jnp.concatenate(
            [_places(words, valid, keys), _places(pairs, valid[:, 1:], keys)], axis=1
        )
        places = jnp.sort(places, axis=1)
        first = jnp.diff(places, axis=1, prepend=-1) != 0
        # Unknown n-grams are all in one place, behind the others.
        weights = jnp.pad(weights, ((0, 1), (0, 0)))
        return jnp.where(first[..., None], weights[places], 0).sum(axis=1) + bias[None]


def combine(
    network: SequenceClassifier, variables: Any, linear: LinearClassifier
) -> tuple[CombinedClassifier, dict[str, Any]]:
    """The module that adds a linear classifier to a network, and its variables.

    Arrays are of types that JAX has on every device: keys of 64 bits become two of 32
    in the same order, `[f, 2]`, one more than the first word's id, zero for a single
    word, and the last word's id.
    """
    before, last = np.divmod(linear.keys, linear.base)
    arrays = {
        "keys": np.stack([before, last], axis=1).astype(np.int32),
        "weights": linear.weights,
        "bias": linear.bias,
        "scales": linear.scales,
    }
    params = {"network": variables["params"]}
    return CombinedClassifier(network), {"params": params, "linear": arrays}


def _places(
    grams: Int[Array, "b n 2"], valid: Bool[Array, "b n"], keys: Int[Array, "f 2"]
) -> Int[Array, "b n"]:
    """The places of n-grams among the sorted keys, f where they are not there.

    A binary search: keys before `low` are smaller.
    """
    number = len(keys)
    low = jnp.zeros(valid.shape, jnp.int32)
    high = jnp.full(valid.shape, number, jnp.int32)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        found = keys[jnp.minimum(middle, number - 1)]
        smaller = (found[..., 0] < grams[..., 0]) | (
            (found[..., 0] == grams[..., 0]) & (found[..., 1] < grams[..., 1])
        )
        smaller &= low < high
        return jnp.where(smaller, middle + 1, low), jnp.where(smaller, high, middle)

    low, _ = jax.lax.fori_loop(0, number.bit_length(), halve, (low, high))
    found = (keys[jnp.minimum(low, number - 1)] == grams).all(axis=-1)
    return jnp.where(valid & found & (low < number), low, number)
