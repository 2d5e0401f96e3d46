"""A local HTTP server for a trained model: a page, JSON and server-sent events.

It listens on the loopback address only and answers to that name only, so that neither
another machine nor a page of another site reaches it. Requests are JSON, checked field
by field; whatever is wrong with one is answered by a 4xx with `{"error": ...}`.
"""

import asyncio
import contextlib
import dataclasses
import json
import math
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, get_type_hints

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from experiments.harness.files import matches_type, parse_object

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
LARGEST_BODY = 200_000  # bytes
SEND_TIMEOUT = 30.0  # seconds without anything read, then a connection is closed
KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}

Fields = TypeVar("Fields")
Result = TypeVar("Result")


def listen(port: int | None) -> socket.socket:
    """Return a socket on the loopback address, with None on any free port.

    Raises:
        ValueError: the port is taken, or not for this user.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port or 0))
    except OSError as error:
        listening.close()
        raise ValueError(
            f"cannot listen on port {port} ({error.strerror}): give another --port, or "
            "none for one that is free"
        ) from error
    return listening


def run(
    app: Starlette, listening: socket.socket, about: str, close: Callable[[], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM, which then does what it does elsewhere.

    `close` ends the work that is going on, so that its answers end, too.
    """
    port = listening.getsockname()[1]
    listening.listen()  # who opens the page at once waits, and is not refused
    print(f"{about}: http://{ADDRESS}:{port}/ (Ctrl-C ends it)", flush=True)
    Server(app, close).run(sockets=[listening])


class Server(uvicorn.Server):
    """A server of `app` that calls `close` when it begins to end.

    >>> Server(Starlette(), lambda: None).config.access_log
    False
    """

    def __init__(self, app: Starlette, close: Callable[[], None]):
        """Takes over no log: what fails is reported by the app."""
        config = uvicorn.Config(
            app,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._close = close

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the work first: streams would wait for it."""
        self._close()
        await super().shutdown(sockets)


def make_app(page: str, about: Any, routes: Sequence[BaseRoute]) -> Starlette:
    """Return an app that serves a page and JSON; errors are JSON, too.

    The HTML `page` is at /, the JSON `about` at /model, beside these routes.
    """

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers={"Cache-Control": "no-store"})

    async def show_model(request: Request) -> Response:
        return JSONResponse(about)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(
            {"error": error.detail}, error.status_code, headers=error.headers
        )

    async def failed(request: Request, error: Exception) -> Response:
        traceback.print_exception(error)
        return JSONResponse({"error": "an error of the server, see its terminal"}, 500)

    return Starlette(
        routes=[Route("/", show_page), Route("/model", show_model), *routes],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[*NAMES])],
        exception_handlers={HTTPException: refused, Exception: failed},
    )


def refuse(message: str, status: int = 400) -> NoReturn:
    """Raise what is answered with this status.

    >>> refuse("too long", 413)
    Traceback (most recent call last):
    starlette.exceptions.HTTPException: 413: too long
    """
    raise HTTPException(status, message)


async def read_json(request: Request, kind: type[Fields]) -> Fields:
    """Return the body of a request as `kind`, a dataclass with a method `check`.

    Raises:
        HTTPException: it is not JSON, too large, or has a field that `kind` has not,
            that is of another type, or that its `check` refuses with a ValueError.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type.strip().lower() != "application/json":
        refuse("send JSON, with the header Content-Type: application/json", 415)
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                refuse(f"the body has more than {LARGEST_BODY:,} bytes", 413)
    except ClientDisconnect:
        refuse("the connection was closed")
    try:
        return parse(body, kind)
    except ValueError as error:
        refuse(str(error))


def parse(body: bytes, kind: type[Fields]) -> Fields:
    """Return a JSON object as `kind`, as `read_json` does.

    Raises:
        ValueError: `read_json` would refuse it.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Body:
    ...     length: int
    ...     seed: int = 0
    ...     def check(self): pass
    >>> parse(b'{"length": 3}', Body)
    Body(length=3, seed=0)
    >>> parse(b'{"length": "3"}', Body)
    Traceback (most recent call last):
    ValueError: length must be an integer, got '3'
    """
    try:
        values = parse_object(body.decode())
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the body is no JSON object: {error}") from error
    hints = {
        field.name: get_type_hints(kind)[field.name]
        for field in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    }
    unknown = sorted(values.keys() - hints)
    if unknown:
        raise ValueError(
            f"there is no field {unknown[0]!r:.40}: there are {', '.join(hints)}"
        )
    for name, value in values.items():
        hint = hints[name]
        if not matches_type(value, hint):
            raise ValueError(f"{name} must be {KINDS[hint]}, got {value!r:.40}")
        if hint is float:
            try:
                values[name] = float(value)
            except OverflowError:
                values[name] = math.inf
        if hint is str and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{name} has half of a surrogate pair")
    try:
        made = kind(**values)
    except TypeError:
        required = [
            field.name
            for field in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
            if field.default is dataclasses.MISSING
        ]
        raise ValueError(f"there must be a field {required[0]}") from None
    made.check()  # pyright: ignore[reportAttributeAccessIssue]
    return made


class Gate:
    """At most `limit` requests at a time; more are answered by a 503.

    >>> gate = Gate(1)
    >>> with gate.passed():
    ...     gate.enter()
    Traceback (most recent call last):
    starlette.exceptions.HTTPException: 503: all 1 places are taken: try again later
    """

    def __init__(self, limit: int):
        """Open."""
        self.limit, self.inside = limit, 0

    def enter(self) -> None:
        """Count one more, or raise an HTTPException; `leave` counts one less."""
        if self.inside >= self.limit:
            raise HTTPException(
                503,
                f"all {self.limit} places are taken: try again later",
                headers={"Retry-After": "1"},
            )
        self.inside += 1

    def leave(self) -> None:
        """Count one less."""
        self.inside -= 1

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        """Count one more within the block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """Await `work`, which is cancelled where the client closes the connection.

    Raises:
        HTTPException: it did; nobody gets this answer.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            refuse("the connection was closed")
        return working.result()
    finally:
        await _cancel(working, leaving)


class EventStream(Response):
    """A response of server-sent events, each a name ("" for none) and a JSON value.

    It ends with the events, where the client closes the connection, or where it reads
    nothing for `SEND_TIMEOUT` seconds; in any case `close` is called.
    """

    def __init__(
        self,
        events: AsyncIterator[tuple[str, Any]],
        close: Callable[[], None] = lambda: None,
    ):
        """See the class."""
        super().__init__()
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._close()
            await _cancel(sending, leaving)
        if not sending.cancelled() and (error := sending.exception()):
            if isinstance(error, TimeoutError):
                return  # nobody reads: the server closes the connection
            raise error

    async def _send(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT):
                await send(message)
            # Sending may wait for nothing, then nobody else would ever run.
            await asyncio.sleep(0)

        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
        ]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send_in_time(start)
        async for name, value in self._events:
            body = encode_event(name, value)
            await send_in_time(
                {"type": "http.response.body", "body": body, "more_body": True}
            )
        await send_in_time({"type": "http.response.body", "body": b""})


def encode_event(name: str, value: Any) -> bytes:
    r"""Return an event as it is sent.

    >>> encode_event("done", {"characters": 3})
    b'event: done\ndata: {"characters": 3}\n\n'
    """
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(value)}\n\n".encode()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
