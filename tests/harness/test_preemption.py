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
def test_the_first_signal_only_asks(number, capfd):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert capfd.readouterr().err == SAID


def test_signals_are_as_before_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with contextlib.suppress(ZeroDivisionError), Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_that_was_ignored_still_is():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested


def test_a_closed_standard_error_does_not_matter():
    """Ctrl-C also ends the program that reads a pipe."""
    before = os.dup(2)
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 2)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.requested
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(write)
