"""Continuous batching: a text is the one that its request alone would get."""

import queue
import threading

import jax
import numpy as np
import pytest

from experiments.charlm import scheduler as scheduling
from experiments.charlm.generator import Writer
from experiments.charlm.scheduler import Scheduler, StoppedError, TextRequest

PROMPTS = ("8+6=14. ", "1", "5+2=7. " * 9)


@pytest.fixture(scope="module")
def writer(charlm_smoke):
    return Writer.load(charlm_smoke[0])


@pytest.fixture(scope="module")
def scheduler(writer):
    made = Scheduler(writer, slots=4)
    yield made
    made.close()


class Received:
    """What is delivered of a text."""

    def __init__(self, writer):
        self.writer, self.pieces, self.ended = writer, [], queue.Queue()

    def __call__(self, piece):
        if isinstance(piece, scheduling.Piece):
            self.pieces.append(piece)
        else:
            self.ended.put(piece)

    def wait(self):
        """The text, and of each character its bits: of whatever the model says."""
        end = self.ended.get(timeout=60)
        assert end is None
        arrays = [np.concatenate(parts) for parts in zip(*self.pieces, strict=True)]
        return "".join(self.writer.vocab.decode(arrays[0])), arrays[1:]


def request(writer, prompt=PROMPTS[0], length=50, **options):
    return TextRequest(writer.vocab.encode(list(prompt)), length, **options)


def draw(scheduler, writer, *requests):
    received = [Received(writer) for _ in requests]
    for wanted, deliver in zip(requests, received, strict=True):
        scheduler.submit(wanted, deliver)
    return [deliver.wait() for deliver in received]


OPTIONS = (
    {"seed": 0},
    {"seed": 7, "temperature": 0.0},
    {"seed": 2**32 - 1, "temperature": 1.5, "top_p": 0.9},
    {"seed": 3, "min_p": 0.2, "temperature": 0.7},
)


@pytest.mark.parametrize("prompt", PROMPTS, ids=["one step", "one", "several steps"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_text_is_that_of_the_writer(scheduler, writer, prompt, options):
    [(text, _)] = draw(scheduler, writer, request(writer, prompt, 45, **options))
    given = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0} | options
    pieces = writer.write(prompt, 45, 1, **given)
    assert text == "".join(piece for [piece] in pieces)


def test_who_shares_the_batch_changes_no_bit(scheduler, writer):
    """Neither the others, nor the slot, nor when one enters."""
    wanted = request(writer, length=100, seed=5, temperature=1.2)
    [(text, alone)] = draw(scheduler, writer, wanted)
    others = [
        request(writer, prompt, 10 + 13 * k, seed=k, **options)
        for k, (prompt, options) in enumerate(
            (prompt, {key: o[key] for key in o if key != "seed"})
            for prompt in PROMPTS
            for o in OPTIONS
        )
    ]
    for place in (0, 3, 7, len(others)):
        mixed = [*others[:place], wanted, *others[place:]]
        found, bits = draw(scheduler, writer, *mixed)[place]
        assert found == text
        for mine, theirs in zip(bits, alone, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert len({found for found, _ in draw(scheduler, writer, *others)}) > 6


def test_probabilities_are_the_models(scheduler, writer):
    prompt = PROMPTS[0]
    wanted = request(writer, prompt, 40, seed=1, temperature=2.0, top_p=0.95)
    [(text, (probabilities, alternatives, shares))] = draw(scheduler, writer, wanted)
    ids = writer.vocab.encode(list(prompt + text))
    logits, _ = writer._model.apply(writer._variables, ids[None])
    expected = np.asarray(jax.nn.softmax(logits[0].astype(np.float32)))
    expected = expected[len(prompt) - 1 : -1]
    # One character at a time and all at once: sums in another order.
    each = expected[np.arange(40), ids[len(prompt) :]]
    np.testing.assert_allclose(probabilities, each, atol=1e-5)
    assert alternatives.shape == (40, scheduling.ALTERNATIVES)
    found = np.take_along_axis(expected, alternatives, axis=1)
    np.testing.assert_allclose(shares, found, atol=1e-5)
    np.testing.assert_allclose(shares, -np.sort(-expected)[:, :5], atol=1e-5)


def test_a_cancelled_request_frees_its_slot(scheduler, writer):
    endless, begun = [], threading.Semaphore(0)
    for seed in range(4):  # all the slots there are
        wanted = request(writer, length=10**9, seed=seed)
        ticket = scheduler.submit(wanted, lambda piece: begun.release())
        endless.append(ticket)
    for _ in range(8):
        assert begun.acquire(timeout=60)
    assert scheduler.active == 4
    received = Received(writer)
    scheduler.submit(request(writer, length=20), received)
    dropped = scheduler.submit(request(writer), pytest.fail)
    assert scheduler.waiting == 2
    dropped.cancel()
    assert received.ended.empty()
    endless[2].cancel()
    text, _ = received.wait()
    assert len(text) == 20
    for ticket in endless:
        ticket.cancel()


def test_closing_ends_every_text(writer):
    made = Scheduler(writer, slots=1)
    received = [Received(writer) for _ in range(2)]
    for deliver in received:
        made.submit(request(writer, length=10**9), deliver)
    made.close()
    for deliver in received:
        end = deliver.ended.get(timeout=60)
        assert isinstance(end, StoppedError)
        assert str(end) == "the server is ending"
    with pytest.raises(StoppedError, match="the server is ending"):
        made.submit(request(writer), pytest.fail)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_is_told_to_all(writer, monkeypatch):
    made = Scheduler(writer, slots=1)

    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(made, "_advance", fail)
    received = Received(writer)
    made.submit(request(writer), received)
    end = received.ended.get(timeout=60)
    assert str(end) == "the server cannot draw any more (no memory)"
    assert made.stopped == str(end)
    made.close()


@pytest.mark.parametrize(("prompt", "length"), [("", 5), ("8", 0)])
def test_there_must_be_something_to_do(scheduler, writer, prompt, length):
    with pytest.raises(ValueError, match="a text needs a prompt and a length"):
        scheduler.submit(request(writer, prompt, length), pytest.fail)
