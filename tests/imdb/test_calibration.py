"""Calibration: the error by loops, the temperature by a grid."""

import jax
import numpy as np
import pytest
from scipy.special import expit, logit

from experiments.imdb import attribution, serve
from experiments.imdb.calibration import expected_calibration_error, fit_temperature
from experiments.imdb.evaluation import class_probabilities
from experiments.imdb.predictor import Reader
from jaxrnn import serving
from jaxrnn.batching import pad
from tests.imdb.test_attribution import save_untrained


def test_the_error_is_that_of_bins_made_one_by_one(rng):
    """Certainties on the edges of bins, 0 and 1 among them, belong to the lower bin."""
    shares = rng.dirichlet([1, 1, 1], size=50)
    shares[:3] = [[1, 0, 0], [0.5, 0.25, 0.25], [0.4, 0.3, 0.3]]
    labels = rng.integers(3, size=50)
    for bins in (4, 15):
        expected = 0.0
        for k in range(bins):
            some = [
                (row.max(), row.argmax() == label)
                for row, label in zip(shares, labels, strict=True)
                if k / bins < row.max() <= (k + 1) / bins
            ]
            if some:
                certainty, right = np.mean(some, axis=0)
                expected += len(some) / 50 * abs(certainty - right)
        found = expected_calibration_error(shares, labels, bins)
        assert found == pytest.approx(expected)
        assert found > 0.1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("number", [8, 500])
def test_the_temperature_is_the_best_of_a_grid(rng, classes, number):
    """Labels drawn with a temperature of 2.5, which 500 of them tell."""
    logits = 4 * rng.normal(size=(number, 1 if classes == 2 else classes))
    shares = class_probabilities(logits / 2.5)
    labels = (rng.random((number, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    temperatures = np.geomspace(0.2, 20, 4_000)
    losses = [
        -np.log(class_probabilities(logits / t)[np.arange(number), labels]).sum()
        + (1 / t - 1) ** 2
        for t in temperatures
    ]
    best = temperatures[np.argmin(losses)]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(best, rel=2e-3)
    if number == 500:
        assert found == pytest.approx(2.5, rel=0.15)


def test_a_model_that_is_never_wrong_stays_of_a_moderate_temperature():
    logits = np.array([[3.0], [-3.0]] * 5)
    assert 0.5 < fit_temperature(logits, np.array([1, 0] * 5)) < 1


def test_whatever_answers_divides_the_logits_by_the_temperature(program_run, tmp_path):
    """Against the logits of the same run before it had a temperature."""
    path, exported = save_untrained(tmp_path), tmp_path / "exported"
    text = "A good film!"
    reader = Reader.load(path, devices=1)
    examples = reader.encode([text])
    expected = logit(reader.probabilities(examples)[0, 1]) / 2.5
    assert abs(expected) > 0.1
    (path / "results.json").write_text('{"temperature": 2.5}')

    scaled = Reader.load(path, devices=1)
    [served] = serve.Classifier(scaled)(examples.ids)
    [explained] = attribution.describe(scaled, {1: text})
    assert program_run("--workdir", path, "--export", exported)[0] == 0
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        [alone] = serving.load(exported).classify(*pad(examples.ids))
    # Compiled for other batches and lengths: sums may be rounded in another order.
    assert logit(scaled.probabilities(examples)[0, 1]) == pytest.approx(expected, 1e-4)
    assert logit(served[1]) == pytest.approx(expected, 1e-4)
    assert explained["logit"] == pytest.approx(expected, 1e-4)
    assert float(alone) == pytest.approx(expected, 1e-4)
    code, out, _ = program_run("--workdir", path, "--predict", text)
    share = float(out.split("\t")[1])
    assert code == 0
    assert share == pytest.approx(expit(abs(expected)), abs=1e-4)
