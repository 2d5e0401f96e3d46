"""`--serve` of the character model: texts over HTTP, for one and for many at once."""

import asyncio
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from experiments.charlm import serve
from experiments.charlm import train as charlm_train
from experiments.charlm.generator import Writer
from experiments.charlm.scheduler import SLOTS
from experiments.charlm.units import BYTES
from tests.harness.local_server import served
from tests.harness.test_server import waits_until
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

SUM = "8+6=14. "


@pytest.fixture(scope="module")
def writer(charlm_smoke):
    return Writer.load(charlm_smoke[0])


@pytest.fixture(scope="module")
def service(writer):
    return serve.Service(writer, "Model of sums")


@pytest.fixture(scope="module")
def url(service):
    with served(service.app, service.close) as address:
        yield address


def expected(writer, prompt=SUM, length=60, seed=0, **options):
    given = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0} | options
    pieces = writer.write(prompt, length, 1, seed, **given)
    return "".join(piece for [piece] in pieces)


def events(lines):
    """Name and value of each server-sent event."""
    name = ""
    for line in lines:
        kind, _, value = line.partition(": ")
        if kind == "event":
            name = value
        elif kind == "data":
            yield name, json.loads(value)
            name = ""


def test_a_text_is_that_of_the_writer(url, writer):
    options = {"seed": 4, "temperature": 0.8, "top_p": 0.95, "min_p": 0.01}
    body = {"prompt": SUM, "length": 60, **options}
    answer = httpx.post(f"{url}/generate", json=body)
    assert answer.status_code == 200
    found = answer.json()
    assert set(found) == {"text", "probabilities"}
    assert found["text"] == expected(writer, **options)
    assert len(found["probabilities"]) == 60


def test_without_a_prompt_it_begins_as_samples_do(url, writer):
    answer = httpx.post(f"{url}/generate", json={"length": 20})
    assert answer.json()["text"] == expected(writer, writer.beginning, 20)


def test_a_stream_is_the_same_text(url):
    body = {"prompt": SUM, "length": 100, "seed": 3, "alternatives": 2}
    whole = httpx.post(f"{url}/generate", json=body).json()
    with httpx.stream("POST", f"{url}/generate", json={**body, "stream": True}) as got:
        assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
        *pieces, last = events(got.iter_lines())
    assert last == ("done", {"characters": 100})
    assert {name for name, _ in pieces} == {""}
    for name, joined in whole.items():
        parts = [piece[name] for _, piece in pieces]
        assert [*joined] == [*itertools.chain.from_iterable(parts)]
    for character, share, (first, second) in zip(
        whole["text"], whole["probabilities"], whole["alternatives"], strict=True
    ):
        assert first[1] >= second[1]
        known = dict([first, second])
        assert known.get(character, share) == share
        assert share <= first[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "é"}, "the prompt has characters outside the model's vocabulary, "),
        ({"prompt": SUM * 126}, "prompt must have at most 1,000 characters, got 1,008"),
        ({"length": 0}, "length must be from 1 to 2000, got 0"),
        ({"length": 2001}, "length must be from 1 to 2000, got 2001"),
        ({"temperature": -1}, "temperature must be finite and at least 0, got -1.0"),
        (
            {"temperature": 10**400},
            "temperature must be finite and at least 0, got inf",
        ),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"min_p": 2}, "min_p must be from 0 to 1, got 2.0"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295, got 4294967296"),
        ({"alternatives": 6}, "alternatives must be from 0 to 5, got 6"),
        ({"top_k": 3}, "there is no field 'top_k': there are prompt, length, temperat"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_written(url, body, message):
    answer = httpx.post(f"{url}/generate", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)


def test_nan_is_no_temperature(url):
    body, headers = b'{"temperature": NaN}', {"content-type": "application/json"}
    answer = httpx.post(f"{url}/generate", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("temperature must be finite")


def test_it_says_what_it_is(url, writer):
    found = httpx.get(f"{url}/model").json()
    assert found["vocabulary"] == [*writer.vocab.tokens]
    assert found["limits"] == {
        "prompt": 1000,
        "length": 2000,
        "alternatives": 5,
        "requests": 320,
    }
    health = httpx.get(f"{url}/health")
    assert health.status_code == 200
    assert health.json() == {"status": "ok", "drawing": 0, "waiting": 0}
    page = httpx.get(url)
    assert "Model of sums" in page.text
    assert "connect-src 'self'" in page.text
    assert "http" not in re.sub(r"http://www\.w3\.org/|http-equiv", "", page.text)


def test_bytes_of_a_prompt_are_read_one_by_one(writer):
    model, variables = writer._model, writer._variables
    of_bytes = Writer(model, variables, writer.vocab, BYTES)
    service = serve.Service(of_bytes, "Model of bytes")
    try:
        with pytest.raises(ValueError, match=r"'\\x82', '¬', 'â'"):
            service._encode("€")
        assert service._encode(SUM).size == len(SUM)
    finally:
        service.close()


def test_too_many_requests_are_refused(url, service, monkeypatch):
    monkeypatch.setattr(service._gate, "limit", 1)
    body = {"length": 2000, "stream": True}
    with httpx.stream("POST", f"{url}/generate", json=body):
        waits_until(lambda: service._gate.inside == 1)
        answer = httpx.post(f"{url}/generate", json={})
        assert answer.status_code == 503
        assert answer.json() == {"error": "all 1 places are taken: try again later"}
        assert httpx.get(f"{url}/health").status_code == 200
    waits_until(lambda: service._gate.inside == 0)
    assert httpx.post(f"{url}/generate", json={"length": 5}).status_code == 200


def ask_many(url, bodies, leaves):
    """The text of each body, asked for by 200 at a time; None of those who leave."""
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)

    async def ask(client, body, leaves):
        found = []
        async with client.stream("POST", f"{url}/generate", json=body) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            async for line in lines:
                if line.startswith("data: "):
                    told = json.loads(line.removeprefix("data: "))
                    if "characters" in told:
                        assert told["characters"] == body["length"]
                        return "".join(found)
                    found.append(told["text"])
                    if leaves:
                        return None
        raise AssertionError(f"the stream of {body} ended early")

    async def ask_all():
        async with httpx.AsyncClient(limits=limits, timeout=300) as client:
            jobs = (ask(client, *job) for job in zip(bodies, leaves, strict=True))
            return await asyncio.gather(*jobs)

    return asyncio.run(ask_all())


@pytest.mark.parametrize("number", [60, 1_000], ids=str)
def test_many_at_once_get_what_each_would_alone(url, service, writer, number):
    """Some leave in the middle; every text is that of its own seed and options."""
    choose = random.Random(0)
    bodies = [
        {
            "prompt": SUM[: choose.randint(1, 8)] * choose.randint(1, 9),
            "length": choose.randint(1, 150),
            "seed": choose.choice([k, 0]),
            "temperature": choose.choice([0.0, 0.7, 1.0, 1.5]),
            "top_p": choose.choice([0.8, 1.0]),
            "stream": True,
        }
        for k in range(number)
    ]
    leaves = [choose.random() < 0.2 for _ in bodies]
    found = ask_many(url, bodies, leaves)
    assert [text is None for text in found] == leaves
    for body, text in choose.sample([*zip(bodies, found, strict=True)], 40):
        if text is not None:
            options = {k: v for k, v in body.items() if k != "stream"}
            assert text == expected(writer, **options)
    waits_until(lambda: service._gate.inside == 0)
    waits_until(lambda: httpx.get(f"{url}/health").json()["drawing"] == 0)


def test_a_reader_that_stops_holds_up_nobody(url, service):
    """More of them than there are slots: each text is drawn to its end."""
    body = {"length": 2000, "stream": True, "alternatives": 5}
    with httpx.Client() as client:
        slow = [
            client.stream("POST", f"{url}/generate", json=body)
            for _ in range(SLOTS + 3)
        ]
        for stream in slow:
            stream.__enter__()
        answer = httpx.post(f"{url}/generate", json={"length": 100}, timeout=120)
        assert len(answer.json()["text"]) == 100
        for stream in slow:
            stream.__exit__(None, None, None)
    waits_until(lambda: service._gate.inside == 0)


def test_without_a_model(charlm_run, tmp_path):
    path = tmp_path / "none"
    result = charlm_run("--workdir", path, "--serve")
    assert_refused(result, f"there is no trained model in {path}: train one with")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", 8000], "--port needs --serve"),
        (["--serve", "--port", 0], "--port must be from 1 to 65535, got 0"),
        (["--serve", "--port", 65536], "--port must be from 1 to 65535, got 65536"),
        (["--serve", "--sample"], "--serve goes alone: without --sample, --score"),
        (["--serve", "--export", "x"], "--export goes alone: without --sample, --sco"),
        (["--serve", "--smoke"], "need a trained model, and --smoke keeps none"),
    ],
)
def test_options_that_contradict_each_other(charlm_run, arguments, message):
    assert_refused(charlm_run(*arguments), message)


def test_a_port_that_is_taken(charlm_smoke, charlm_run, url):
    port = url.rpartition(":")[2]
    result = charlm_run("--workdir", charlm_smoke[0], "--serve", "--port", port)
    assert_refused(result, f"cannot listen on port {port} (Address already in use): g")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it(charlm_smoke, number):
    """With streams open: they end, and so does the program, with one line."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.charlm"),
            *("--serve", f"--workdir={charlm_smoke[0]}"),
        ],
        cwd=Path(charlm_train.__file__).parent.parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        assert "trained on generated: http://127.0.0.1:" in line
        [url] = re.findall(r"http://127\.0\.0\.1:\d+/", line)
        body = {"length": 2000, "stream": True}
        with httpx.stream("POST", f"{url}generate", json=body) as answer:
            lines = events(answer.iter_lines())
            next(lines)
            process.send_signal(number)
            began = time.monotonic()
            *_, (name, told) = lines
            assert (name, told) in [
                ("error", {"error": "the server is ending"}),
                ("done", {"characters": 2000}),
            ]
        assert process.wait(30) == 130
        assert time.monotonic() - began < 10
        assert process.stdout.read() == ""
        assert process.stderr.read() == "interrupted\n"
