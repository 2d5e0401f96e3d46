"""The HTTP server under both programs: requests it refuses, readers that leave."""

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import dataclass

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route

from experiments.harness import server
from experiments.harness.server import EventStream, Gate
from experiments.harness.worker import EndingError, Worker
from tests.harness.local_server import served


@dataclass
class Wanted:
    length: int
    share: float = 0.5
    text: str = ""
    stream: bool = False

    def check(self):
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")


class App:
    """Echoes what it is asked, and streams without an end."""

    def __init__(self):
        self.gate, self.closed, self.sent = Gate(2), threading.Event(), 0
        self.cancelled = threading.Event()
        routes = [
            Route("/echo", self.echo, methods=["POST"]),
            Route("/stream", self.stream, methods=["POST"]),
            Route("/wait", self.wait, methods=["POST"]),
            Route("/broken", self.broken),
        ]
        self.app = server.make_app("<p>page</p>", {"model": "none"}, routes)

    async def echo(self, request):
        return JSONResponse(vars(await server.read_json(request, Wanted)))

    async def events(self):
        while True:
            self.sent += 1
            yield "", {"text": "x" * 10_000}

    async def stream(self, request):
        self.gate.enter()

        def close():
            self.gate.leave()
            self.closed.set()

        return EventStream(self.events(), close)

    async def wait(self, request):
        async def forever():
            try:
                await asyncio.sleep(3600)
            finally:
                self.cancelled.set()

        return await server.unless_disconnected(request, forever())

    async def broken(self, request):
        raise RuntimeError("not expected")


@pytest.fixture
def app():
    return App()


@pytest.fixture
def url(app):
    with served(app.app) as address:
        yield address


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is no JSON object: Expecting value"),
        (b"{", 400, "the body is no JSON object: Expecting property name"),
        (b"[1]", 400, "the body is no JSON object: not a JSON object"),
        (b"\xff", 400, "the body is no JSON object: 'utf-8' codec"),
        (b"[" * 100_000, 400, "the body is nested too deeply"),
        (b" " * 200_001, 413, "the body has more than 200,000 bytes"),
        (b"{}", 400, "there must be a field length"),
        (b'{"length": 1, "size": 2}', 400, "there is no field 'size': there are leng"),
        (b'{"length": "1"}', 400, "length must be an integer, got '1'"),
        (b'{"length": true}', 400, "length must be an integer, got True"),
        (b'{"length": null}', 400, "length must be an integer, got None"),
        (b'{"length": 1, "share": "x"}', 400, "share must be a number, got 'x'"),
        (b'{"length": 1, "stream": 1}', 400, "stream must be true or false, got 1"),
        (b'{"length": 1, "text": 1}', 400, "text must be a string, got 1"),
        (b'{"length": 1, "text": "\\ud800"}', 400, "text has half of a surrogate"),
        (b'{"length": 0}', 400, "length must be at least 1, got 0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_broken_request_is_told_what_is_wrong(url, body, status, message):
    answer = httpx.post(f"{url}/echo", content=body, headers=JSON)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith(message)


def test_what_is_right_comes_in_as_it_is(url):
    body = {"length": 3, "share": 1, "text": "é\n\0"}
    answer = httpx.post(f"{url}/echo", json=body)
    assert answer.status_code == 200
    assert answer.json() == {**body, "stream": False}
    page = httpx.get(url)
    assert page.text == "<p>page</p>"
    assert httpx.get(f"{url}/model").json() == {"model": "none"}
    assert page.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "message"),
    [
        ("GET", "/echo", {}, 405, "Method Not Allowed"),
        ("GET", "/nowhere", {}, 404, "Not Found"),
        ("POST", "/echo", {"content-type": "text/plain"}, 415, "send JSON, with the"),
        # As forms of other sites send it, which ask nobody for leave.
        ("POST", "/echo", {}, 415, "send JSON, with the header Content-Type: applic"),
    ],
)
def test_a_request_of_another_kind(url, method, path, headers, status, message):
    answer = httpx.request(method, url + path, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(message)


def test_another_host_is_not_answered(url):
    """A page of another site may have its name mean this machine."""
    answer = httpx.get(url, headers={"host": "example.com"})
    assert answer.status_code == 400
    assert httpx.get(url.replace("127.0.0.1", "localhost")).status_code == 200


def test_only_this_machine_is_listened_to():
    with server.listen(None) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
        port = listening.getsockname()[1]
        listening.listen()
        with pytest.raises(ValueError, match=f"port {port} .*: give another --port"):
            server.listen(port)


def test_an_error_of_the_server_is_a_500(url, capsys):
    answer = httpx.get(f"{url}/broken")
    assert answer.status_code == 500
    assert answer.json() == {"error": "an error of the server, see its terminal"}
    assert "RuntimeError: not expected" in capsys.readouterr().err


def waits_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_reader_that_leaves_is_seen(app, url):
    with httpx.stream("POST", f"{url}/stream") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()  # it closes the connection when it is let go
        next(lines)
        assert app.gate.inside == 1
    assert app.closed.wait(30)
    assert app.gate.inside == 0


def test_a_reader_that_does_not_read_is_left(app, url, monkeypatch):
    """The events wait for it, and the others do not."""
    monkeypatch.setattr(server, "SEND_TIMEOUT", 0.5)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as stalled:
        stalled.sendall(b"POST /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        waits_until(lambda: app.gate.inside == 1)
        assert httpx.post(f"{url}/echo", json={"length": 1}).status_code == 200
        assert app.closed.wait(30)
        sent = app.sent
        assert sent < 5_000  # of 10,000 characters each
        assert app.gate.inside == 0
        with contextlib.suppress(ConnectionError):
            while stalled.recv(2**20):  # what was sent before
                pass
    assert app.sent == sent


def test_too_many_are_told_to_come_again(app, url):
    with (
        httpx.stream("POST", f"{url}/stream"),
        httpx.stream("POST", f"{url}/stream"),
    ):
        waits_until(lambda: app.gate.inside == 2)
        answer = httpx.post(f"{url}/stream")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json() == {"error": "all 2 places are taken: try again later"}


def test_work_for_one_who_left_is_cancelled(app, url):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/wait", timeout=0.2)
    assert app.cancelled.wait(30)


def test_a_worker_takes_what_waits_together():
    calls, entered, go = [], threading.Event(), threading.Event()

    def work(items):
        calls.append([*items])
        entered.set()
        assert go.wait(30)
        return [item.upper() for item in items]

    worker = Worker(work, together=3)

    async def ask():
        first = asyncio.ensure_future(worker("a"))
        await asyncio.to_thread(entered.wait)
        others = [asyncio.ensure_future(worker(letter)) for letter in "bcdef"]
        await asyncio.sleep(0)
        others.pop(1).cancel()
        assert worker.waiting == 5
        go.set()
        return [await first, *(await asyncio.gather(*others))]

    assert asyncio.run(ask()) == [*"ABDEF"]
    assert calls == [["a"], ["b", "d", "e"], ["f"]]
    worker.close()
    with pytest.raises(EndingError, match="the server is ending"):
        asyncio.run(worker("g"))


def test_an_error_of_the_work_reaches_who_asked():
    def work(items):
        raise RuntimeError(f"cannot do {items}")

    worker = Worker(work)
    for item in "ab":
        with pytest.raises(RuntimeError, match=f"cannot do \\['{item}'\\]"):
            asyncio.run(worker(item))
    worker.close()


def test_closing_a_worker_ends_what_waits():
    entered, go = threading.Event(), threading.Event()

    def work(items):
        entered.set()
        assert go.wait(30)
        return items

    worker = Worker(work)

    async def ask():
        first = asyncio.ensure_future(worker("a"))
        await asyncio.to_thread(entered.wait)
        second = asyncio.ensure_future(worker("b"))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(worker.close))
        await asyncio.to_thread(waits_until, lambda: worker._closed)
        go.set()
        await closing
        assert await first == "a"
        with pytest.raises(EndingError):
            await second

    asyncio.run(ask())
