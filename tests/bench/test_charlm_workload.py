"""The character program's steps and texts as work."""

import numpy as np
import pytest

from experiments.bench import charlm_workload
from experiments.bench.charlm_workload import CHARACTERS
from experiments.charlm.config import PRESETS, Settings

SETTINGS = Settings(embed=8, hidden=8, batch=4, seq_len=6, learning_rate=1e-2)


def test_sizes_are_the_chapters():
    assert len(CHARACTERS) == 80
    chapter = PRESETS["chapter"]
    sizes = (chapter.embed, chapter.hidden, chapter.batch, chapter.seq_len)
    assert sizes == (256, 512, 64, 40)


def test_a_call_is_a_step_over_all_characters():
    work = charlm_workload.train(SETTINGS)
    assert work.units == 4 * 6
    assert [int(work.run().step) for _ in range(3)] == [1, 2, 3]


def test_one_by_one_and_in_one_are_the_same_step():
    torch = pytest.importorskip("torch")
    losses = []
    for one_by_one in (False, True):
        torch.manual_seed(0)
        work = charlm_workload.train_torch(SETTINGS, one_by_one=one_by_one)
        assert work.units == 4 * 6
        losses.append([work.run() for _ in range(3)])
    # Sums in another order, three times.
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][2] < losses[0][0]


@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("make", [charlm_workload.draw, charlm_workload.draw_torch])
def test_texts_have_their_length_and_known_characters(make, texts):
    if make is charlm_workload.draw_torch:
        pytest.importorskip("torch")
    work = make(SETTINGS, length=120, texts=texts)
    assert work.units == 120 * texts
    drawn = work.run()
    assert [len(text) for text in drawn] == [120] * texts
    assert set("".join(drawn)) <= set(CHARACTERS)
    # Untrained, it draws nearly all of them alike.
    assert len(set("".join(drawn))) > 40
