"""Ctrl-C and SIGTERM as a request to stop at the next step boundary.

Between two steps a program can save its state; during one the old state is donated and
the new one does not exist yet. Several processes must stop after the same step: JAX's
preemption service agrees on one when any of them gets a SIGTERM.
"""

import contextlib
import os
import signal

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """A context in which the first Ctrl-C or SIGTERM only makes a request.

    A second Ctrl-C acts as it does outside: the program ends at once.

    >>> with Interrupt() as interrupt:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupt.requested
    True
    """

    requested: bool = False

    def __enter__(self) -> "Interrupt":
        """Install the handlers."""
        numbers = [signal.SIGINT]
        if jax.process_count() == 1:
            numbers.append(signal.SIGTERM)  # of several processes it is JAX's
        self._before = {
            number: signal.signal(number, self._request)
            for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
        }
        return self

    def stops_after(self, step: int) -> bool:
        """Return whether to stop after `step`, the same in all processes."""
        if jax.process_count() == 1:
            return self.requested
        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: object) -> None:
        """Restore the handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        # Nothing may leave a handler: Ctrl-C ends what reads a pipe, too. And a print
        # may have been interrupted, which must not be entered again.
        with contextlib.suppress(OSError):
            os.write(2, b"saving after this step; Ctrl-C again stops at once\n")
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
