"""`--export` of the sentiment program: what it writes gives the numbers of the run."""

import jax
import numpy as np
from scipy.special import expit

from experiments.imdb.batches import Examples
from experiments.imdb.linear import LinearClassifier
from experiments.imdb.predictor import LINEAR, Reader
from jaxrnn import serving
from jaxrnn.batching import pad
from tests.imdb.test_attribution import save_untrained
from tests.imdb.test_train import assert_refused

TEXTS = ["A good film!", "Bad. Don't see it, don't see the bad film."]


def test_the_exported_model_classifies_alike(program_run, tmp_path):
    path, directory = save_untrained(tmp_path), tmp_path / "exported"
    code, out, err = program_run("--workdir", path, "--export", directory)
    assert code == 0
    assert out.startswith(f"{directory}: the model in {path}, ")
    assert err == (
        f"the run in {path} is not finished: exporting with what it has so far\n"
    )

    reader, exported = Reader.load(path), serving.load(directory)
    assert exported.vocabulary == [*reader.vocab.tokens]
    assert exported.card["labels"] == ["negative", "positive"]
    assert exported.card["tokenizer"] == {
        "kind": "words",
        "lower": True,
        "normalization": "NFC",
        "padding": "<pad>",
        "unknown": "<unk>",
    }
    examples = reader.encode(TEXTS)
    expected = reader.probabilities(examples)[:, 1]
    assert np.ptp(expected) > 0.01
    tokens, lengths = pad(examples.ids)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        logits = exported.classify(tokens, lengths)
    # Compiled for another batch and length: sums may be rounded in another order.
    np.testing.assert_allclose(expit(np.asarray(logits)), expected, atol=1e-6)

    again = program_run("--workdir", path, "--export", directory)
    assert again[0] == 2
    assert f"{directory} is there already" in again[2]


def test_a_linear_part_is_exported_with_it(program_run, tmp_path):
    path, directory = save_untrained(tmp_path), tmp_path / "exported"
    settings = path / "settings.json"
    settings.write_text(settings.read_text().replace('"auto"', '"on"'))
    network = Reader.load(path)
    examples = network.encode(TEXTS)
    labelled = Examples(examples.ids, np.array([1, 0]))
    linear = LinearClassifier.fit(labelled, 2, vocab_size=len(network.vocab))
    linear.save(path / LINEAR)
    (path / "results.json").write_text("{}")
    assert program_run("--workdir", path, "--export", directory)[0] == 0
    expected = Reader.load(path).probabilities(examples)[:, 1]
    assert np.abs(expected - network.probabilities(examples)[:, 1]).min() > 0.01
    tokens, lengths = pad(examples.ids)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        logits = serving.load(directory).classify(tokens, lengths)
    # As above, and float32 sums of the n-grams in another order.
    np.testing.assert_allclose(expit(np.asarray(logits)), expected, atol=1e-6)


def test_without_a_model(program_run, tmp_path):
    path = tmp_path / "none"
    result = program_run("--workdir", path, "--export", tmp_path / "exported")
    assert_refused(result, f"there is no trained model in {path}: train one with")
