"""Starts a program: from its first line on, Ctrl-C and SIGTERM end it properly.

Nothing but the standard library is imported here: the imports of JAX and tyro take
seconds, in which a KeyboardInterrupt would become a traceback, another exception or,
raised below C++ code, a crash. So there the signal ends the process at once.
"""

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides
PACKAGED = ("train", "compare", "run")
CLEANUPS: list[Callable[[], None]] = []  # to call before the process ends at once


def launch(program: str, module: str = "train") -> int:
    """Run `main` of experiments/`program`/`module`.py and return the exit code.

    The module also has `Options` and a docstring, and may have `defaults`: see
    `experiments.harness.cli.run`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _exit_at_once)
    try:
        cli = importlib.import_module("experiments.harness.cli")
        found = importlib.import_module(f"experiments.{program}.{module}")
    except ValueError as error:  # of a variable that JAX reads when it is imported
        print(f"error: {error}: correct or unset that variable", file=sys.stderr)
        return 2
    defaults = getattr(found, "defaults", None)
    # The modules that a package's __main__ runs go by the name of the package.
    name = program if module in PACKAGED else f"{program}.{module}"
    code = cli.run(found.main, found.Options, name, found.__doc__, defaults)
    # What is left is Python's own end, in which nothing can be saved or lost.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return code


@contextlib.contextmanager
def cleaned_up(cleanup: Callable[[], None]) -> Iterator[None]:
    """Call `cleanup` at the end of the block.

    Also where a signal ends the program at once, which unwinds no blocks.
    """
    CLEANUPS.append(cleanup)
    try:
        yield
    finally:
        CLEANUPS.remove(cleanup)
        cleanup()


def _exit_at_once(number: int, frame: object) -> None:
    """End the process without unwinding: that could wait for, or crash, XLA's threads.

    What the programs write appears whole or not at all, so little needs cleaning up.
    """
    for cleanup in CLEANUPS:
        cleanup()
    line = b"interrupted\n"
    with contextlib.suppress(OSError):  # a closed standard error
        os.write(2, SHOW_CURSOR + line if os.isatty(2) else line)
    os._exit(130)
