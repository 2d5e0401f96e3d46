"""The sentiment program's steps as work: the same words in every layout."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.bench import imdb_workload
from experiments.bench.imdb_workload import Reviews
from experiments.imdb.model import Settings
from tests.harness.test_training_loop import compilations

pytestmark = pytest.mark.slow

SETTINGS = Settings(embed=4, hidden=4, vocab=50, batch=4, buckets=2, max_words=60)
REVIEWS = Reviews(SETTINGS, number=10)


def test_made_up_reviews_are_as_long_as_imdb_s():
    ids = Reviews(Settings(max_words=3000), number=20_000).examples().ids
    lengths = np.array([sequence.size for sequence in ids])
    # The mean of the 25,000 reviews is 233.4, their deviation 174: 1.2 for the mean of
    # so many; and straight lines between the percentages.
    assert lengths.mean() == pytest.approx(233.4, abs=8)
    assert np.median(lengths) == pytest.approx(174, abs=5)
    cut = Reviews(Settings(), number=20_000).examples()
    assert np.mean([sequence.size for sequence in cut.ids]) == pytest.approx(208, abs=5)


def test_made_up_words_have_ids_of_words_and_the_first_is_the_most_frequent():
    ids = np.concatenate(Reviews(SETTINGS, number=200).examples().ids)
    assert (ids.min(), ids.max()) == (2, SETTINGS.vocab - 1)
    counts = np.bincount(ids)
    assert counts[2] == counts.max()
    # Zipf and Mandelbrot: 1 / 3.7 against 1 / 5.7.
    assert counts[4] / counts[2] == pytest.approx(2.7 / 4.7, rel=0.1)


@pytest.mark.parametrize("layout", ["buckets", "packed rows", "plain padding"])
def test_every_layout_trains_on_all_words(layout):
    work = imdb_workload.train(REVIEWS, layout)
    assert work.units == sum(ids.size for ids in REVIEWS.examples().ids)
    first = work.run()
    steps = int(first.step)
    assert steps == work.steps >= 2
    weights = np.array(first.params["params"]["output"]["kernel"])  # to be donated
    second = work.run()
    assert int(second.step) == 2 * steps
    assert np.abs(second.params["params"]["output"]["kernel"] - weights).max() > 0
    with compilations() as events:
        work.run()
    assert not events


def test_an_epoch_is_one_step_of_all_words():
    work = imdb_workload.train_epoch(replace(REVIEWS, sample=1))
    words = sum(ids.size for ids in REVIEWS.examples().ids)
    assert (work.units, work.steps) == (words, 1)


def test_a_sample_is_of_the_middles():
    sampled = Reviews(SETTINGS, number=10, sample=3).sampled(range(9))
    assert sampled == [1, 4, 7]
    assert [*Reviews(SETTINGS, number=10, sample=3).sampled(range(2))] == [0, 1]


@pytest.mark.parametrize("packs", [False, True])
def test_torch_trains_on_all_words(packs):
    pytest.importorskip("torch")
    work = imdb_workload.train_torch(REVIEWS, packs=packs)
    assert work.units == sum(ids.size for ids in REVIEWS.examples().ids)
    losses = [work.run() for _ in range(60)]
    assert losses[-1] < losses[0] - 0.005  # Ten labels, at a low learning rate.


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_and_padded_are_one_model_in_torch(bidirectional):
    """Only backwards they differ: padded, that direction begins in the padding."""
    torch = pytest.importorskip("torch")
    settings = replace(SETTINGS, bidirectional=bidirectional)
    losses = []
    for packs in (False, True):
        torch.manual_seed(0)
        work = imdb_workload.train_torch(
            replace(REVIEWS, settings=settings), packs=packs
        )
        losses.append(work.run())
    # Float32 sums of a few terms, in another order.
    assert (losses[0] == pytest.approx(losses[1], rel=1e-5)) is not bidirectional


def test_a_deep_step_is_compiled_every_time():
    work = imdb_workload.compile_deep(time=4)
    for _ in range(2):
        with compilations() as events:
            assert int(work.run().step) == 1
        assert events
