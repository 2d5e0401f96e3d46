"""Ctrl-C and SIGTERM as a request to stop at the next safe point.

Between two steps a program can save what it has; in the middle of one the old state is
already given away and the new one not there yet.
"""

import signal
import sys


class Interrupt:
    """While it is open, the first Ctrl-C or SIGTERM only sets `requested`. A second
    Ctrl-C interrupts at once, as usual.

    >>> with Interrupt() as interrupt:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupt.requested
    True
    """

    requested: bool = False

    def __enter__(self) -> "Interrupt":
        self._before = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        print("stopping after this step ...", file=sys.stderr)
