"""A thread that does the work of waiting requests together."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class EndingError(Exception):
    """The worker was closed before it came to an item."""


class Worker(Generic[Item, Result]):
    """Calls `work` in a thread of its own, with as many waiting items as there are.

    At most `together` items are given to a call, which returns a result for each, in
    their order. Those that nobody awaits any more are left out.

    >>> async def ask(worker):
    ...     return await asyncio.gather(*map(worker, range(3)))
    >>> worker = Worker(lambda numbers: [2 * number for number in numbers], together=2)
    >>> asyncio.run(ask(worker))
    [0, 2, 4]
    >>> worker.close()
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], together=1):
        """Start the thread."""
        self._work, self._together = work, together
        self._waiting: deque[tuple[Item, asyncio.Future, asyncio.AbstractEventLoop]]
        self._waiting = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of items that no call has taken yet."""
        return len(self._waiting)

    async def __call__(self, item: Item) -> Result:
        """Return the result of an item.

        Raises:
            EndingError: the worker is closed.
            Exception: what `work` raises.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._changed:
            if self._closed:
                raise EndingError("the server is ending")
            self._waiting.append((item, future, loop))
            self._changed.notify()
        return await future

    def close(self) -> None:
        """End after the call that is going on."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for _, future, loop in self._waiting:
            error = EndingError("the server is ending")
            _settle(loop, future, lambda f, e=error: f.set_exception(e))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                taken = []
                while self._waiting and len(taken) < self._together:
                    entry = self._waiting.popleft()
                    if not entry[1].cancelled():
                        taken.append(entry)
            if not taken:
                continue
            try:
                results = self._work([item for item, _, _ in taken])
            except Exception as error:
                for _, future, loop in taken:
                    _settle(loop, future, lambda f, e=error: f.set_exception(e))
            else:
                for (_, future, loop), found in zip(taken, results, strict=True):
                    _settle(loop, future, lambda f, r=found: f.set_result(r))


def _settle(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future,
    settle: Callable[[asyncio.Future], Any],
) -> None:
    """Settle a future in its loop, if anyone awaits it still."""

    def settle_if_awaited() -> None:
        if not future.done():
            settle(future)

    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(settle_if_awaited)
