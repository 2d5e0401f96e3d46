"""Ctrl-C and SIGTERM as a request to stop at the next safe point.

Between two steps a program can save what it has; in the middle of one the old state is
already given away and the new one not there yet. Several processes must all stop after
the same step: JAX's preemption service hears of a SIGTERM to any of them, and finds it.
"""

import signal
import sys

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """While it is open, the first Ctrl-C or SIGTERM only makes a request. A second
    Ctrl-C interrupts at once, as usual.

    >>> with Interrupt() as interrupt:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupt.requested
    True
    """

    requested: bool = False

    def __enter__(self) -> "Interrupt":
        numbers = [signal.SIGINT]
        if jax.process_count() == 1:
            numbers.append(signal.SIGTERM)  # of several processes it is JAX's
        self._before = {
            number: signal.signal(number, self._request) for number in numbers
        }
        return self

    def stops_after(self, step: int) -> bool:
        """Whether to stop when `step` is done, the same in all processes."""
        if jax.process_count() == 1:
            return self.requested
        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        print("stopping when this is done ...", file=sys.stderr)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
