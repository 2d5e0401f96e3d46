"""Signals as a request to stop: the first one only asks."""

import contextlib
import os
import signal

import pytest

from experiments.harness.preemption import Interrupt

SAID = "saving after this step; Ctrl-C again stops at once\n"


@pytest.fixture(autouse=True)
def usual_handler():
    """Python's own: a shell lets its background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number, capsys):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert capsys.readouterr().err == SAID


def test_signals_are_as_before_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with contextlib.suppress(ZeroDivisionError), Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) == before
