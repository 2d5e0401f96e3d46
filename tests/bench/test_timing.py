"""What is timed and what is not, with a clock that the contenders move."""

import numpy as np
import pytest

from experiments.bench.timing import LONG, PAUSE, Timing, measure


class Stage:
    """A clock, and thunks that note their calls and take given times."""

    def __init__(self):
        self.now, self.calls = 100.0, []

    def thunk(self, name, *durations):
        """Takes `durations` in turn, and the last one from then on."""
        left = list(durations)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run

    def sleep(self, seconds):
        self.calls.append(seconds)
        self.now += seconds

    def measure(self, thunks, rounds, **options):
        return measure(
            thunks, rounds, clock=lambda: self.now, sleep=self.sleep, **options
        )


@pytest.fixture
def stage():
    return Stage()


def test_the_first_call_of_a_turn_does_not_count(stage):
    thunks = {
        "a": stage.thunk("a", 64.0, 8.0, 0.125, 8.0, 0.5, 8.0, 0.25),
        "b": stage.thunk("b", 32.0, 8.0, 0.0625),
    }
    found = stage.measure(thunks, rounds=3)
    assert found["a"] == Timing(first=64.0, rounds=(0.125, 0.5, 0.25))
    assert found["b"] == Timing(first=32.0, rounds=(0.0625,) * 3)
    assert found["a"].median == 0.25
    assert found["a"].quartiles == (0.1875, 0.375)


def test_contenders_take_turns_and_every_round_begins_with_another(stage):
    thunks = {name: stage.thunk(name, 0.25) for name in "abc"}
    stage.measure(thunks, rounds=4)
    expected = [*"abc"]
    for order in ("abc", "bca", "cab", "abc"):
        for name in order:
            expected += [PAUSE, name, name]
    assert stage.calls == expected


def test_long_work_is_not_done_twice_in_a_turn(stage):
    thunks = {"long": stage.thunk("long", LONG), "short": stage.thunk("short", 0.25)}
    stage.measure(thunks, rounds=2)
    first_round = [PAUSE, "long", "long", PAUSE, "short", "short"]
    second_round = [PAUSE, "short", "short", PAUSE, "long"]
    assert stage.calls == ["long", "short", *first_round, *second_round]


def test_short_work_is_done_again_and_again(stage):
    """A tenth of a second without counting, and as long for the median."""
    uncounted, counted = [2**-4, 2**-4], [2**-6, 2**-4, 2**-5]
    some = stage.thunk("a", 9.0, *uncounted, *counted)
    found = stage.measure({"a": some, "b": stage.thunk("b", 1.0)}, rounds=1)
    assert found["a"].rounds == (2**-5,)
    assert stage.calls == ["a", "b", PAUSE, *["a"] * 5, PAUSE, "b", "b"]


def test_little_time_is_not_spent_on_long_turns(stage):
    some = {name: stage.thunk(name, 2**-6) for name in "ab"}
    stage.measure(some, rounds=1, seconds=0.25)  # a twentieth is less than a call
    assert stage.calls == ["a", "b", PAUSE, "a", "a", PAUSE, "b", "b"]


def test_nobody_disturbs_one_who_is_alone(stage):
    found = stage.measure({"a": stage.thunk("a", 9.0, 1.0, 2.0)}, rounds=2)
    assert stage.calls == ["a"] * 3
    assert found == {"a": Timing(first=9.0, rounds=(1.0, 2.0))}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (35.0, 4), (1e6, 8)])
def test_a_budget_ends_the_turns_but_not_before_the_third(stage, seconds, rounds):
    found = stage.measure({"a": stage.thunk("a", 10.0)}, rounds=8, seconds=seconds)
    assert len(found["a"].rounds) == rounds


def test_the_first_calls_are_not_in_the_budget(stage):
    found = stage.measure({"a": stage.thunk("a", 99.0, 1.0)}, rounds=8, seconds=50.0)
    assert len(found["a"].rounds) == 8


def test_fewer_rounds_than_three_if_asked_for(stage):
    found = stage.measure({"a": stage.thunk("a", 1.0)}, rounds=2, seconds=0.0)
    assert len(found["a"].rounds) == 2


def test_at_least_one_round(stage):
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        stage.measure({"a": stage.thunk("a", 1.0)}, rounds=0)


@pytest.mark.slow
def test_the_real_clock_sees_the_work(rng):
    matrix = rng.normal(size=(200, 200))
    found = measure({"one": lambda: matrix @ matrix, "none": lambda: None}, rounds=5)
    assert 0 <= found["none"].median < found["one"].median
    assert np.isfinite(found["one"].first)
