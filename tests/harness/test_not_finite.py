"""NaN and infinity stop a run before they are saved."""

import numpy as np
import pytest

from jaxrnn.metrics import Mean
from tests.harness.test_training_loop import (
    STEPS,
    checkpoints,
    compiled_step,
    evaluate,
    files_below,
    run,
)


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_a_step_that_is_not_finite_stops_and_saves_nothing(tmp_path, name):
    before = {}

    def train_step(state, batch):
        state, metrics = compiled_step(state, batch)
        if int(state.step) == STEPS + 2:
            before.update(files_below(tmp_path))
            return state, metrics | {name: Mean.of(np.array([np.inf]))}
        return state, metrics

    with pytest.raises(ValueError, match=f"^{name} at step 6 .* is inf: low") as error:
        run(tmp_path, train_step=train_step)
    # The rate of the step itself, the sixth: 0.1 / 6.
    assert "(batch 2 of epoch 2, learning rate 0.01667) is inf" in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert checkpoints(tmp_path).steps() == (STEPS,)
    assert files_below(tmp_path) == before


def test_an_evaluation_that_is_not_finite_stops_and_saves_nothing(tmp_path):
    before = {}

    def evaluate_nan(state):
        if int(state.step) < 2 * STEPS:
            return evaluate(state)
        before.update(files_below(tmp_path))
        return {"loss": float("nan"), "score": 0.0}

    with pytest.raises(ValueError, match=r"^loss at step 8 .* is nan: lower") as error:
        run(tmp_path, evaluate=evaluate_nan)
    assert "(batch 4 of epoch 2, learning rate 0.0125) is nan" in str(error.value)
    assert files_below(tmp_path) == before
