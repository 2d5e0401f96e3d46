"""The sum of both classifiers as one module computes what its parts add up to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.imdb.batches import Examples
from experiments.imdb.combined import combine
from experiments.imdb.linear import LinearClassifier
from jaxrnn import GRU, serving
from jaxrnn.models import SequenceClassifier

VOCAB = 30


@pytest.fixture(params=[2, 3])
def parts(request, rng):
    """A network, a linear classifier of other texts, and texts with and without words
    that it knows; the last one is empty."""
    classes = request.param
    ids = [rng.integers(2, VOCAB, size) for size in rng.integers(1, 12, 40)]
    examples = Examples(ids[:20], np.arange(20) % classes)
    linear = LinearClassifier.fit(examples, classes, VOCAB)
    linear.scales[:] = 0.75, 1.5
    network = SequenceClassifier(
        VOCAB, 4, GRU(3), num_classes=None if classes == 2 else classes
    )
    texts = [*ids[20:], np.array([5, 6, 5, 6, 5]), np.zeros(0, int)]
    lengths = np.array([text.size for text in texts], np.int32)
    tokens = np.full((len(texts), 14), 7, np.int32)  # padding is not read
    for row, text in zip(tokens, texts, strict=True):
        row[: text.size] = text
    variables = network.init(jax.random.key(0), tokens, lengths=lengths)
    return network, variables, linear, texts, tokens, lengths


def test_logits_are_the_scaled_sum(parts):
    network, variables, linear, texts, tokens, lengths = parts
    module, both = combine(network, variables, linear)
    found = module.apply(both, tokens, lengths=lengths)
    logits = np.asarray(network.apply(variables, tokens, lengths=lengths))
    expected = linear.add(logits.reshape(len(texts), -1), texts)
    assert np.ptp(linear.logits(texts)) > 0.1  # it knows some of the n-grams
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-5)


def test_it_is_exported(parts, tmp_path):
    network, variables, linear, _, tokens, lengths = parts
    module, both = combine(network, variables, linear)
    serving.export(module, both, tmp_path / "model", platforms=["cpu", "tpu"])
    found = serving.load(tmp_path / "model").classify(tokens, lengths)
    expected = module.apply(both, tokens, lengths=jnp.asarray(lengths))
    # float32 sums in another order
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
