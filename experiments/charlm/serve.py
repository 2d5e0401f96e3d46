"""What `experiments.charlm --serve` answers: texts, as JSON or as they are drawn.

The guide on serving (docs/guides/serving.md) describes the interface.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from experiments.charlm import datasets, inference
from experiments.charlm.generator import Writer
from experiments.charlm.scheduler import (
    ALTERNATIVES,
    SLOTS,
    Piece,
    Scheduler,
    StoppedError,
    TextRequest,
)
from experiments.charlm.units import WORDS
from experiments.harness import server
from experiments.harness.html_report import render
from experiments.harness.server import EventStream, Gate, read_json, refuse
from experiments.harness.validation import AMOUNT, SEED, SHARE, SHARE_ABOVE_0, Range
from experiments.harness.workdir import About

TEMPLATE = Path(__file__).parent / "templates" / "serve"
LONGEST_PROMPT = 1_000  # characters
LONGEST_TEXT = 2_000  # characters, bytes or words
REQUESTS = 5 * SLOTS  # at a time: drawn, waiting, or not yet read to the end
LENGTH = Range(f"from 1 to {LONGEST_TEXT}", lambda x: 1 <= x <= LONGEST_TEXT)
SHOWN = Range(f"from 0 to {ALTERNATIVES}", lambda x: 0 <= x <= ALTERNATIVES)


@dataclass(frozen=True)
class GenerateBody:
    """The body of a request to /generate; the options are those of --sample."""

    prompt: str = ""
    length: int = 400
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    alternatives: int = 0
    stream: bool = False

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: one is out of range; it is named.
        """
        if len(self.prompt) > LONGEST_PROMPT:
            raise ValueError(
                f"prompt must have at most {LONGEST_PROMPT:,} characters, got "
                f"{len(self.prompt):,}"
            )
        for name, range_ in (
            ("length", LENGTH),
            ("temperature", AMOUNT),
            ("top_p", SHARE_ABOVE_0),
            ("min_p", SHARE),
            ("seed", SEED),
            ("alternatives", SHOWN),
        ):
            range_.check_value(name, getattr(self, name))


class Service:
    """A trained model as an app, and what it needs to end.

    Attributes:
        app: serves the page at /, and /generate, /model and /health.
    """

    def __init__(self, writer: Writer, model: str):
        """Compiles the step; `model` says on the page what writes."""
        self._writer, self._units = writer, writer.units
        self._scheduler = Scheduler(writer)
        self._gate = Gate(REQUESTS)
        about = {
            "model": model,
            "bytes": writer.units.by_byte,
            "units": writer.units.plural,
            "vocabulary": [*writer.vocab.tokens],
            "beginning": writer.beginning,
            "limits": {
                "prompt": LONGEST_PROMPT,
                "length": LONGEST_TEXT,
                "alternatives": ALTERNATIVES,
                "requests": REQUESTS,
            },
        }
        routes = [
            Route("/generate", self._generate, methods=["POST"]),
            Route("/health", self._health),
        ]
        page = render(TEMPLATE, "Write with the model", about, served=True)
        self.app: Starlette = server.make_app(page, about, routes)

    def close(self) -> None:
        """End all texts."""
        self._scheduler.close()

    async def _health(self, request: Request) -> Response:
        stopped = self._scheduler.stopped
        found = {
            "status": stopped or "ok",
            "drawing": self._scheduler.active,
            "waiting": self._scheduler.waiting,
        }
        return JSONResponse(found, 503 if stopped else 200)

    async def _generate(self, request: Request) -> Response:
        body = await read_json(request, GenerateBody)
        try:
            ids = self._encode(body.prompt)
        except ValueError as error:
            refuse(str(error))
        options = (body.seed, body.temperature, body.top_p, body.min_p)
        text = TextRequest(ids, body.length, *options)
        self._gate.enter()
        try:
            mailbox = _Mailbox(self._scheduler, text)
        except BaseException as error:
            self._gate.leave()
            if isinstance(error, StoppedError):
                refuse(str(error), 503)
            raise

        def close() -> None:
            mailbox.ticket.cancel()
            self._gate.leave()

        if body.stream:
            events = self._events(mailbox, body.alternatives, ids[-1])
            return EventStream(events, close)
        try:
            whole = self._whole(mailbox, body.alternatives, ids[-1])
            return JSONResponse(await server.unless_disconnected(request, whole))
        except StoppedError as error:
            refuse(str(error), 503)
        finally:
            close()

    def _encode(self, prompt: str) -> np.ndarray:
        """The ids of a prompt, or of the default one."""
        text = datasets.decode(prompt.encode(), "the prompt", self._units.by_byte)
        if text:
            remedy = "leave them out"
            text = self._writer.known(text, "the prompt", skip=False, remedy=remedy)
        return self._writer.encode(text or self._writer.beginning)

    async def _whole(
        self, mailbox: "_Mailbox", alternatives: int, before: int
    ) -> dict[str, Any]:
        parts = [part async for part in mailbox]
        return self._describe(parts, alternatives, before)

    async def _events(
        self, mailbox: "_Mailbox", alternatives: int, before: int
    ) -> AsyncIterator[tuple[str, Any]]:
        """What has come since the last event, and an event at the end."""
        drawn = 0
        try:
            async for piece in mailbox:
                pieces = [piece, *mailbox.here()]
                drawn += sum(piece.ids.size for piece in pieces)
                yield "", self._describe(pieces, alternatives, before)
                before = pieces[-1].ids[-1]
        except StoppedError as error:
            yield "error", {"error": str(error)}
        else:
            # Bytes are told of as the characters that stand for them.
            of_words = self._units is WORDS
            yield "done", {"words" if of_words else "characters": drawn}

    def _describe(
        self, pieces: list[Piece], alternatives: int, before: int
    ) -> dict[str, Any]:
        """Pieces of a text as JSON has them, with probabilities of four decimals.

        They follow the token `before`.
        """
        ids, probabilities, others, shares = (
            np.concatenate(parts) for parts in zip(*pieces, strict=True)
        )
        vocab = self._writer.vocab
        written = self._units.written(vocab.decode(ids), vocab.tokens[before])
        found: dict[str, Any] = {
            "text": "".join(written),
            "probabilities": _rounded(probabilities),
        }
        if self._units is WORDS:
            found["words"] = written
        if alternatives:
            found["alternatives"] = [
                [*zip(vocab.decode(row), likely, strict=True)]
                for row, likely in zip(
                    others[:, :alternatives],
                    _rounded(shares[:, :alternatives]),
                    strict=True,
                )
            ]
        return found


def _rounded(probabilities: np.ndarray) -> list[Any]:
    return probabilities.astype(float).round(4).tolist()


class _Mailbox:
    """The pieces of a text, from the scheduler's thread to the event loop.

    There are no more of them than a text has, read or not: they hold up nobody.
    """

    def __init__(self, scheduler: Scheduler, request: TextRequest):
        self._pieces: deque[Piece | StoppedError | None] = deque()
        self._come = asyncio.Event()
        loop = asyncio.get_running_loop()

        def deliver(piece: Piece | StoppedError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._put, piece)

        self.ticket = scheduler.submit(request, deliver)

    def _put(self, piece: Piece | StoppedError | None) -> None:
        self._pieces.append(piece)
        self._come.set()

    def here(self) -> list[Piece]:
        """The pieces that have come."""
        found = []
        while self._pieces and isinstance(self._pieces[0], Piece):
            found.append(self._pieces.popleft())
        return found

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            while not self._pieces:
                self._come.clear()
                await self._come.wait()
            piece = self._pieces.popleft()
            if piece is None:
                return
            if isinstance(piece, StoppedError):
                raise piece
            yield piece


def serve(path: Path, port: int | None) -> None:
    """Serve the model in a work directory until Ctrl-C.

    Raises:
        ValueError: there is no model, or the port cannot be listened on.
    """
    workdir, writer = inference.load(path, "serving")
    listening = server.listen(port)
    about = f"Model in {path}, trained on {workdir.settings_as(About).dataset}"
    service = Service(writer, about)
    server.run(service.app, listening, about, service.close)
