"""Continuous batching: texts of many requests, drawn together.

There is a fixed number of slots, each a row of one recurrent state. A compiled step
advances all of them by some characters: rows that still read their prompt take its
characters, the others draw theirs. Between two such steps requests that are done leave
their slot and waiting ones enter (Yu et al., 2022, "Orca: A Distributed Serving System
for Transformer-Based Generative Models", section 3.2, of iterations; the state of a
recurrent network needs no more memory for a longer text).

A row's draws depend on its own seed and position alone, and all rows go through the
same program whatever else is in the batch. So a text depends on its request only, and
it is the one that `Writer.write` returns.
"""

import functools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.charlm.generator import Writer
from jaxrnn import sampling

SLOTS = 64
STEPS = 16  # characters of each row between two chances to enter or leave
ALTERNATIVES = 5  # likeliest characters that are told of each place


@dataclass(frozen=True)
class TextRequest:
    """What to write: `length` characters after the prompt, which is given as ids.

    The options are those of `jaxrnn.sampling.truncate`, and the seed and they make the
    same text as `Writer.write` does of one text.
    """

    prompt: np.ndarray
    length: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0


class Piece(NamedTuple):
    """The next characters of a text, as ids [n].

    Attributes:
        ids: the characters.
        probabilities: the model's of each, before temperature, top-p and min-p [n].
        alternatives: ids of the likeliest characters in its place [n, a].
        shares: the model's probabilities of those, in descending order [n, a].
    """

    ids: np.ndarray
    probabilities: np.ndarray
    alternatives: np.ndarray
    shares: np.ndarray


class StoppedError(Exception):
    """The scheduler was closed, or failed, before a text was finished."""


# Called with each piece and at the end with None, or with what ended it before.
Deliver = Callable[[Piece | StoppedError | None], None]


class Ticket:
    """A request in the scheduler, which may be cancelled at any time."""

    def __init__(self, request: TextRequest, deliver: Deliver):
        """Nothing is read or drawn yet."""
        self.request, self.deliver = request, deliver
        self.read = self.drawn = 0
        self.cancelled = False

    def cancel(self) -> None:
        """Draw no more; nothing is delivered any more."""
        self.cancelled = True


class Scheduler:
    """Draws the texts of requests in a thread of its own.

    >>> from jaxrnn import GRU
    >>> from jaxrnn.models import LanguageModel
    >>> from jaxrnn.text import Vocab
    >>> model = LanguageModel(3, 4, GRU(2))
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    >>> writer = Writer(model, variables, Vocab(("a", "b", "c")))
    >>> scheduler, found, done = Scheduler(writer, slots=2), [], threading.Event()
    >>> def deliver(piece):
    ...     done.set() if piece is None else found.extend(piece.ids)
    >>> _ = scheduler.submit(TextRequest(np.array([0]), length=20), deliver)
    >>> done.wait(60), len(found)
    (True, 20)
    >>> scheduler.close()
    """

    def __init__(self, writer: Writer, slots: int = SLOTS):
        """Start; the step is compiled before anything is drawn."""
        self._params = writer.step_params
        self._initial = writer.initial_state(1)
        size = len(writer.vocab)
        state = jax.tree.map(
            lambda leaf: jnp.repeat(leaf, slots, axis=0), self._initial
        )
        self._carry = (state, _zero_logits(writer.step, self._params, state))
        self._advance = _make_advance(writer.step, min(ALTERNATIVES, size))
        self._slots: list[Ticket | None] = [None] * slots
        self._waiting: deque[Ticket] = deque()
        self._delivering: list[Ticket] = []
        self._changed = threading.Condition()
        self._reason = ""  # why it stopped
        jax.block_until_ready(self._dispatch([]))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Number of texts being drawn."""
        return sum(ticket is not None for ticket in self._slots)

    @property
    def waiting(self) -> int:
        """Number of requests without a slot yet."""
        return len(self._waiting)

    @property
    def stopped(self) -> str:
        """Why nothing is drawn any more, or ""."""
        return self._reason

    def submit(self, request: TextRequest, deliver: Deliver) -> Ticket:
        """Draw a text as soon as there is a slot.

        `deliver` is called in the scheduler's thread and should return at once.

        Raises:
            StoppedError: the scheduler is closed, or failed.
            ValueError: the prompt or the length is 0.
        """
        if not request.prompt.size or request.length < 1:
            raise ValueError(
                f"a text needs a prompt and a length, got {request.prompt.size} and "
                f"{request.length}"
            )
        ticket = Ticket(request, deliver)
        with self._changed:
            if self._reason:
                raise StoppedError(self._reason)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """End; of texts that are not finished `StoppedError` is delivered."""
        with self._changed:
            self._reason = self._reason or "the server is ending"
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._draw()
        except Exception as error:
            with self._changed:
                self._reason = f"the server cannot draw any more ({error})"
            raise
        finally:
            left = [*filter(None, self._slots), *self._waiting, *self._delivering]
            for ticket in dict.fromkeys(left):
                if not ticket.cancelled:
                    ticket.deliver(StoppedError(self._reason))

    def _draw(self) -> None:
        """Dispatch a step, then deliver what the one before has made meanwhile."""
        before: tuple[list[_Part], Any] | None = None
        while True:
            with self._changed:
                self._admit()
                while not (self._reason or before or self.active):
                    self._changed.wait()
                    self._admit()
                if self._reason:
                    return
            parts = [
                _Part.of(slot, ticket)
                for slot, ticket in enumerate(self._slots)
                if ticket is not None
            ]
            after = (parts, self._dispatch(parts)) if parts else None
            for part in parts:
                if part.is_last:
                    self._slots[part.slot] = None
            drawing = [part.ticket for part in parts]
            if before:
                self._delivering += drawing
                _deliver(*before)
            self._delivering, before = drawing, after

    def _admit(self) -> None:
        """Free the slots of cancelled requests, and fill the free ones."""
        for slot, ticket in enumerate(self._slots):
            if ticket is not None and ticket.cancelled:
                self._slots[slot] = None
            while self._slots[slot] is None and self._waiting:
                entering = self._waiting.popleft()
                if not entering.cancelled:
                    self._slots[slot] = entering

    def _dispatch(self, parts: Sequence["_Part"]) -> Any:
        """Start a step of all rows and return its outputs, which may not be there yet.

        Rows without a request read what their logits no one looks at.
        """
        rows = len(self._slots)
        # New arrays for each step: JAX may read them later.
        fresh = np.zeros(rows, bool)
        seeds, positions = np.zeros(rows, np.uint32), np.zeros(rows, np.int32)
        forced = np.zeros((STEPS, rows), np.int32)
        options = {
            name: np.full(rows, value, np.float32)
            for name, value in (("temperature", 1), ("top_p", 1), ("min_p", 0))
        }
        for slot, ticket, start, read, drawn, _ in parts:
            request = ticket.request
            fresh[slot] = start == 0
            seeds[slot], positions[slot] = request.seed, ticket.drawn
            forced[:, slot] = -1
            forced[:read, slot] = request.prompt[start : start + read]
            for name, values in options.items():
                values[slot] = getattr(request, name)
            ticket.read, ticket.drawn = ticket.read + read, ticket.drawn + drawn
        self._carry, outputs = self._advance(
            self._params,
            self._carry,
            self._initial,
            fresh,
            seeds,
            positions,
            forced,
            options,
        )
        return outputs


class _Part(NamedTuple):
    """What a step does for one request: so many characters read, then drawn."""

    slot: int
    ticket: Ticket
    start: int
    read: int
    drawn: int
    is_last: bool

    @classmethod
    def of(cls, slot: int, ticket: Ticket) -> "_Part":
        request = ticket.request
        read = min(request.prompt.size - ticket.read, STEPS)
        drawn = min(STEPS - read, request.length - ticket.drawn)
        is_last = ticket.drawn + drawn == request.length
        return cls(slot, ticket, ticket.read, read, drawn, is_last)


def _deliver(parts: Sequence[_Part], outputs: Any) -> None:
    arrays = jax.device_get(outputs)
    for part in parts:
        if part.ticket.cancelled:
            continue
        places = slice(part.read, part.read + part.drawn)
        if part.drawn:
            made = (array[places, part.slot] for array in arrays)
            part.ticket.deliver(Piece(*made))
        if part.is_last:
            part.ticket.deliver(None)


def _zero_logits(step: sampling.Step, params: Any, state: Any) -> jax.Array:
    """As of a row that read nothing: its first character is one of the prompt."""
    rows = jax.tree.leaves(state)[0].shape[0]
    spec, _ = jax.eval_shape(step, params, jnp.zeros(rows, jnp.int32), state)
    return jnp.zeros(spec.shape, spec.dtype)


def _make_advance(step: sampling.Step, alternatives: int) -> Callable[..., Any]:
    """A compiled function that advances all rows by `STEPS` characters.

    Of the forced characters [STEPS, rows] those below 0 are drawn. It returns what
    follows it as carry, and the fields of a `Piece`, each [STEPS, rows, ...].
    """

    @functools.partial(jax.jit, donate_argnums=1)
    def advance(
        params: Any,
        carry: tuple[Any, jax.Array],
        initial: Any,
        fresh: jax.Array,
        seeds: jax.Array,
        positions: jax.Array,
        forced: jax.Array,
        options: dict[str, jax.Array],
    ) -> Any:
        state, logits = carry
        state = jax.tree.map(
            lambda new, old: jnp.where(
                jnp.expand_dims(fresh, range(1, old.ndim)), new, old
            ),
            initial,
            state,
        )
        # As `sampling` does: before the loop and for all steps at once.
        draws = (forced < 0).astype(jnp.int32)
        drawn = positions[None] + jnp.cumsum(draws, axis=0) - draws
        uniforms = jax.vmap(_uniforms, in_axes=(None, 0))(seeds, drawn)

        def advance_one(carry: Any, inputs: Any) -> Any:
            (state, logits), (given, uniform) = carry, inputs
            candidates = sampling.truncate(
                logits,
                temperature=options["temperature"],
                top_p=options["top_p"],
                min_p=options["min_p"],
            )
            token = sampling.sample_inverse_cdf(candidates, uniform)
            token = jnp.where(given < 0, token, given)
            after, state = step(params, token, state)
            return (state, after), (token, logits)

        carry, (tokens, logits) = jax.lax.scan(
            advance_one, (state, logits), (forced, uniforms)
        )
        probabilities = jax.nn.softmax(logits)
        own = jnp.take_along_axis(probabilities, tokens[..., None], axis=-1)[..., 0]
        shares, likeliest = jax.lax.top_k(probabilities, alternatives)
        return carry, (tokens, own, likeliest, shares)

    return advance


def _uniforms(seeds: jax.Array, drawn: jax.Array) -> jax.Array:
    """The number that decides each row's draw: that of the first text of its seed."""

    def uniform(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), 0)
        return jax.random.uniform(jax.random.fold_in(key, position))

    return jax.vmap(uniform)(seeds, drawn)
