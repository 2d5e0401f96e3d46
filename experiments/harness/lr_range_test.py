"""Learning-rate range test: the loss of training steps while the rate rises.

The rate rises from step to step by the same factor, from one at which nothing is learnt
to one at which the loss grows. Smith (2017), "Cyclical Learning Rates for Training
Neural Networks", section 3.3, where it rises linearly. Suggested is a tenth of the rate
at which the loss, smoothed by a moving average, is the least: near that one it is about
to grow, and the peak of a schedule must hold for many steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from experiments.harness.options import is_temporary
from experiments.harness.plots import plot_rates
from experiments.harness.progress import progress_bar
from jaxrnn.training import Batch, Metrics

STEPS = 200
LOWEST, HIGHEST = 1e-6, 10.0
DECAY = 0.9  # of the moving average
GROWN = 4.0  # the test ends where the smoothed loss is so many times its least
PICTURE = "learning_rates.png"


@dataclass(frozen=True)
class RangeTest:
    """The learning rate of each step and its loss.

    >>> found = RangeTest((0.001, 0.01, 0.1, 1.0), (3.0, 2.0, 1.0, 9.0))
    >>> found.suggestion
    0.01
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> list[float]:
        """The exponential moving average of the losses, without bias to zero."""
        average, found = 0.0, []
        for step, loss in enumerate(self.losses, start=1):
            average = DECAY * average + (1 - DECAY) * loss
            found.append(average / (1 - DECAY**step))
        return found

    @property
    def least(self) -> int:
        """The place of the least smoothed loss."""
        smoothed = self.smoothed
        return smoothed.index(min(smoothed))

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate at which the smoothed loss is the least.

        None if that is the first one: no rate made the loss fall.
        """
        return self.rates[self.least] / 10 if self.least else None

    def describe(self) -> str:
        """What was found, as a line of text."""
        told = (
            f"{len(self.rates)} steps with learning rates from {self.rates[0]:.1e} to "
            f"{self.rates[-1]:.1e}: "
        )
        if self.suggestion is None:
            return f"{told}the loss did not fall at any, so none is suggested"
        return (
            f"{told}the smoothed loss is the least ({self.smoothed[self.least]:.4f}) "
            f"at {self.rates[self.least]:.1e}; a tenth of that is suggested: "
            f"--learning-rate {self.suggestion:.1e}"
        )


def rising_rate(step: Any) -> Any:
    """The learning rate of a step, an `optax.Schedule`.

    >>> [f"{rising_rate(step):.1g}" for step in (0, 199)]
    ['1e-06', '1e+01']
    """
    return LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))


def range_test(
    state: PyTree,
    batches: Callable[[int], Sequence[Callable[[], Batch]]],
    train_step: Callable[[PyTree, Batch], tuple[PyTree, Metrics]],
) -> RangeTest:
    """Trains while the rate rises, until the loss grows, or for `STEPS` steps.

    Args:
        state: the train state, which is given up.
        batches: the batches of an epoch, by its number; as many epochs as it takes.
        train_step: with `rising_rate` for its learning rate.

    Raises:
        ValueError: the first loss is not finite.
    """
    rates: list[float] = []
    losses: list[float] = []
    with progress_bar("learning-rate range test", STEPS) as advance:
        for step, make_batch in zip(range(STEPS), _endless(batches), strict=False):
            state, metrics = train_step(state, make_batch())
            loss = float(metrics["loss"].value)
            if not math.isfinite(loss):
                break
            rates.append(float(rising_rate(step)))
            losses.append(loss)
            advance(step + 1)
            smoothed = RangeTest(tuple(rates), tuple(losses)).smoothed
            if smoothed[-1] > GROWN * min(smoothed):
                break
    if not losses:
        raise ValueError("the loss of the first step is not finite at any rate")
    return RangeTest(tuple(rates), tuple(losses))


def _endless(
    batches: Callable[[int], Sequence[Callable[[], Batch]]],
) -> Iterator[Callable[[], Batch]]:
    epoch = 0
    while True:
        yield from batches(epoch)
        epoch += 1


def report(found: RangeTest, title: str, workdir: Path) -> None:
    """Prints what was found, and writes its picture into the work directory.

    Raises:
        OSError: it cannot be written.
    """
    if jax.process_index() > 0:
        return
    print(found.describe())
    if not is_temporary(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / PICTURE
        plot_rates(
            path, title, found.rates, found.losses, found.smoothed, found.suggestion
        )
        print(f"{path} shows the loss at each rate")
