"""The learning-rate range test: its rates, its end, its rule, and both programs'."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.charlm import model as charlm_model
from experiments.charlm.config import Settings as CharacterSettings
from experiments.harness import lr_range_test
from experiments.harness.lr_range_test import RangeTest, range_test, rising_rate
from experiments.imdb import model as imdb_model
from jaxrnn.metrics import Mean
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """As it was, after the program has set it up for JAX."""
    monkeypatch.setenv("XLA_FLAGS", "")


def run(loss, epoch_length=7):
    """A range test whose loss is a function of the step, and the batches it took."""
    taken = []

    def batches(epoch):
        return [lambda k=k: (epoch, k) for k in range(epoch_length)]

    def train_step(state, batch):
        taken.append(batch)
        return state + 1, {"loss": Mean.of(jnp.array([loss(state)]))}

    return range_test(0, batches, train_step), taken


def test_rates_rise_by_the_same_factor_from_end_to_end():
    rates = [rising_rate(step) for step in range(200)]
    assert rates[0] == 1e-6
    assert rates[-1] == pytest.approx(10)
    factors = [b / a for a, b in zip(rates, rates[1:], strict=False)]  # noqa: RUF007
    assert np.ptp(factors) < 1e-9
    assert factors[0] > 1


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_least_average():
    """By a loop of its own, over a loss that falls from step 80 and rises from 150."""
    noise = np.random.default_rng(0).normal(0, 0.05, 200)

    def loss(step):
        return float(2 - 0.02 * min(max(step - 80, 0), 70) + noise[step]) + 0.03 * max(
            step - 150, 0
        )

    found, taken = run(loss)
    assert taken == [divmod(step, 7) for step in range(200)]
    weights = [0.9**k for k in range(200)]
    averages = [
        sum(w * loss(step - k) for k, w in enumerate(weights[: step + 1]))
        / sum(weights[: step + 1])
        for step in range(200)
    ]
    np.testing.assert_allclose(found.smoothed, averages, rtol=1e-5)
    best = int(np.argmin(averages))
    assert 140 < best < 165
    rate = 1e-6 * 10 ** (7 * best / 199)
    assert found.suggestion == pytest.approx(rate / 10)
    assert f"at {rate:.1e}; a tenth of that" in found.describe()
    assert found.describe().endswith(f"--learning-rate {rate / 10:.1e}")


@pytest.mark.parametrize("last", [math.nan, math.inf, 1e6])
def test_it_ends_where_the_loss_grows(last):
    found, taken = run(lambda step: 1.0 - step / 100 if step < 50 else last)
    assert len(taken) == 51
    assert len(found.losses) == (51 if math.isfinite(last) else 50)
    assert found.suggestion == pytest.approx(found.rates[49] / 10)


def test_a_loss_that_never_falls_suggests_nothing():
    found, _ = run(lambda step: 1.0 + step / 1000)
    assert found.suggestion is None
    assert "the loss did not fall at any, so none is suggested" in found.describe()


def test_a_first_loss_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="the loss of the first step is not finite"):
        run(lambda step: math.nan)


def test_the_optimizers_follow_the_rate():
    """Adam's first step is as long as its rate, in every direction; AdamW's too, where
    there is no weight to decay."""
    gradients = {"embed": jnp.full((2, 3), 0.1), "other": jnp.array([[-2.0], [3.0]])}
    params = jax.tree.map(jnp.zeros_like, gradients)
    for make, embed_rate in (
        (lambda rate: imdb_model.make_optimizer(imdb_model.Settings(), 9, rate), 0.1),
        (lambda rate: charlm_model.make_optimizer(CharacterSettings(), 9, rate), 1.0),
    ):
        optimizer = make(lambda step: jnp.where(step == 0, 0.25, 0.75))
        state = optimizer.init(params)
        for rate in (0.25, 0.75):
            with jax.numpy_dtype_promotion("standard"):  # as optax needs it
                updates, state = optimizer.update(gradients, state, params)
            expected = jnp.array([[rate], [-rate]])
            np.testing.assert_allclose(updates["other"], expected, rtol=1e-4)
            np.testing.assert_allclose(updates["embed"], -rate * embed_rate, rtol=1e-4)


@pytest.mark.parametrize(
    ("program", "more"),
    [("program_run", []), ("charlm_run", []), ("charlm_run", ["--words"])],
)
def test_it_writes_a_picture_and_nothing_else(
    request, tmp_path, monkeypatch, program, more
):
    """The smoke model, whose loss falls at some rate; with fewer steps."""
    monkeypatch.setattr(lr_range_test, "STEPS", 60)
    path = tmp_path / "run"
    run = request.getfixturevalue(program)
    code, out, err = run("--smoke", "--lr-find", "--workdir", path, *more)
    assert (code, err) == (0, "")
    told, where = out.splitlines()
    assert where == f"{path}/learning_rates.png shows the loss at each rate"
    rate = float(re.search(r"--learning-rate (\S+)$", told)[1])
    assert 1e-4 < rate < 1
    assert [p.name for p in path.iterdir()] == ["learning_rates.png"]
    assert imread(path / "learning_rates.png").ndim == 3


def test_without_a_directory_that_stays_there_is_no_picture(program_run, monkeypatch):
    monkeypatch.setattr(lr_range_test, "STEPS", 60)
    code, out, _ = program_run("--smoke", "--lr-find")
    assert code == 0
    assert out.count("\n") == 1
    assert "--learning-rate" in out


def test_a_picture_that_cannot_be_written(program_run, monkeypatch, tmp_path):
    monkeypatch.setattr(lr_range_test, "STEPS", 5)
    (tmp_path / "file").touch()
    result = program_run("--smoke", "--lr-find", "--workdir", tmp_path / "file")
    code, _, err = result
    assert code == 2
    assert err == f"error: {tmp_path}/file: File exists\n"


@pytest.mark.parametrize("more", [["--sample"], ["--serve"], ["--score", "x"]])
def test_what_it_does_not_go_with_in_the_character_model(charlm_run, more):
    assert_refused(charlm_run("--lr-find", *more), "--lr-find goes alone: without --sa")


def test_a_range_test_is_described_in_a_line():
    found = RangeTest((1e-3, 1e-2, 1e-1), (2.0, 1.0, 3.0))
    # Averages of 2 and 1, then with 3, with weights of 1, 0.9 and 0.81.
    assert found.smoothed == pytest.approx([2, 2.8 / 1.9, 5.52 / 2.71])
    assert found.describe() == (
        "3 steps with learning rates from 1.0e-03 to 1.0e-01: the smoothed loss is the "
        "least (1.4737) at 1.0e-02; a tenth of that is suggested: --learning-rate "
        "1.0e-03"
    )
