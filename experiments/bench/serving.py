"""Latency of trained models and throughput of the server of the character model.

    python -m experiments.bench.serving

prints two tables. Latency: one text of 200 words through the sentiment program's
network, and one more character through the character model's, in the process that asks:
jaxrnn, the exported model, and PyTorch with the same weights, eager and compiled. All
are timed in turns; the first call of each compiles. Where ExecuTorch is installed
(`pip install executorch`) it is another contender; exporting to it, which unrolls the
loop over the words, is not timed and takes minutes. Throughput: characters per second
that one and 64 people get from `--serve` over HTTP, streamed, each a client of its own
in another process.
"""

import sys

if __name__ == "__main__":  # before the imports, which take seconds
    from experiments.harness.launch import launch

    sys.exit(launch("bench", "serving"))

import asyncio
import importlib
import json
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench.frameworks import SEED, load
from experiments.bench.timing import Timing, measure
from experiments.charlm.config import Settings as CharacterSettings
from experiments.charlm.generator import Writer
from experiments.charlm.model import make_model as make_language_model
from experiments.harness import jax_setup
from experiments.imdb.model import Settings as ReviewSettings
from experiments.imdb.model import make_model as make_classifier
from jaxrnn import serving, torch_weights
from jaxrnn.text import Vocab

WORDS, WORD_VOCABULARY = 200, 20_000
CHARACTERS = tuple(map(chr, range(32, 97)))  # 65, as many as tiny shakespeare has
ROUNDS = 7
PEOPLE = (1, 64)
TEXTS, LENGTH = 4, 1_000  # of each person, one after the other; characters of each

Calls = dict[str, Callable[[], Any]]


def classifier_calls(directory: Path) -> Calls:
    """Functions that return the logit of one text of `WORDS` words as a float."""
    torch = load("torch")
    model = make_classifier(ReviewSettings(), WORD_VOCABULARY)
    ids = np.random.default_rng(SEED).integers(2, WORD_VOCABULARY, (1, WORDS))
    tokens, lengths = ids.astype(np.int32), np.array([WORDS], np.int32)
    variables = jax.jit(model.init)(jax.random.key(SEED), tokens, lengths=lengths)
    serving.export(model, variables, directory / "classifier", platforms=["cpu"])
    exported = serving.load(directory / "classifier")
    apply = jax.jit(lambda *args: model.apply(args[0], args[1], lengths=args[2]))

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(WORD_VOCABULARY, model.embed_features)
            self.encoder = torch.nn.LSTM(64, 64, batch_first=True, bidirectional=True)
            self.output = torch.nn.Linear(256, 1)

        def forward(self, ids):
            outputs, _ = self.encoder(self.embed(ids))
            pooled = torch.cat([outputs.amax(dim=1), outputs.mean(dim=1)], dim=1)
            return self.output(pooled)

    theirs = Classifier().eval()
    copy_weights(torch, model, variables["params"], theirs)
    given = torch.from_numpy(ids)
    compiled = torch.compile(theirs)

    def run(module: Any) -> float:
        with torch.inference_mode():
            return float(module(given))

    calls = {
        "jaxrnn": lambda: float(apply(variables, tokens, lengths)[0]),
        "jaxrnn, exported": lambda: float(exported.classify(tokens, lengths)[0]),
        "PyTorch": lambda: run(theirs),
        "torch.compile": lambda: run(compiled),
    }
    lowered = to_executorch(torch, theirs, (given,), directory / "classifier.pte")
    if lowered is not None:
        calls["ExecuTorch"] = lambda: float(lowered([given])[0])
    return calls


def character_calls(directory: Path) -> Calls:
    """Functions that return the logits after one more character, as numpy has them.

    The state of the character before goes in, and the one after it comes out.
    """
    torch = load("torch")
    settings = CharacterSettings()
    model = make_language_model(settings, len(CHARACTERS))
    tokens = np.array([7], np.int32)
    variables = jax.jit(model.init)(jax.random.key(SEED), tokens[None])
    serving.export(model, variables, directory / "characters", platforms=["cpu"])
    exported = serving.load(directory / "characters")
    writer = Writer(model, variables, Vocab(CHARACTERS))
    step, params = jax.jit(writer.step), writer.step_params
    state, exported_state = writer.initial_state(1), exported.initial_state(1)

    class LanguageModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(len(CHARACTERS), settings.embed)
            self.encoder = torch.nn.GRU(
                settings.embed, settings.hidden, batch_first=True
            )
            self.output = torch.nn.Linear(settings.hidden, len(CHARACTERS))

        def forward(self, ids, state):
            outputs, state = self.encoder(self.embed(ids), state)
            return self.output(outputs[:, -1]), state

    theirs = LanguageModel().eval()
    copy_weights(torch, model, variables["params"], theirs)
    compiled = torch.compile(theirs)
    given, hidden = torch.tensor([[7]]), torch.zeros(1, 1, settings.hidden)

    def run(module: Any) -> np.ndarray:
        with torch.inference_mode():
            return module(given, hidden)[0].numpy()[0]

    calls = {
        "jaxrnn": lambda: np.asarray(step(params, tokens, state)[0])[0],
        "jaxrnn, exported": lambda: np.asarray(
            exported.step(tokens, exported_state)[0]
        )[0],
        "PyTorch": lambda: run(theirs),
        "torch.compile": lambda: run(compiled),
    }
    inputs = (given, hidden)
    lowered = to_executorch(torch, theirs, inputs, directory / "characters.pte")
    if lowered is not None:
        calls["ExecuTorch"] = lambda: lowered([given, hidden])[0].numpy()[0]
    return calls


def to_executorch(
    torch: Any, module: Any, inputs: tuple[Any, ...], path: Path
) -> Callable[[list[Any]], Any] | None:
    """The module as a program of ExecuTorch with XNNPACK; None if that is missing."""
    try:
        exir = importlib.import_module("executorch.exir")
        xnnpack = importlib.import_module(
            "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        )
        runtime = importlib.import_module("executorch.runtime")
    except ModuleNotFoundError:
        return None
    print("exporting to ExecuTorch", file=sys.stderr, flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own modules
        program = exir.to_edge_transform_and_lower(
            torch.export.export(module, inputs),
            partitioner=[xnnpack.XnnpackPartitioner()],
        ).to_executorch()
    path.write_bytes(program.buffer)
    return runtime.Runtime.get().load_program(path).load_method("forward").execute


def copy_weights(torch: Any, model: Any, params: Any, module: Any) -> None:
    """Put the weights of a model of ours into its PyTorch counterpart."""
    cell = model.encoder
    arrays = {
        f"encoder.{name}": value
        for name, value in torch_weights.to_torch(
            {"params": params["encoder"]}, cell
        ).items()
    }
    arrays["embed.weight"] = np.asarray(params["embed"]["embedding"])
    arrays["output.weight"] = np.asarray(params["output"]["kernel"]).T
    arrays["output.bias"] = np.asarray(params["output"]["bias"])
    module.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()})


def latency(calls: Calls) -> dict[str, Timing]:
    """The timing of each, after a check that all return the same.

    >>> found = latency({"a": lambda: 1.0, "b": lambda: 1.0})
    >>> all(timing.median < 0.01 for timing in found.values())
    True
    """
    timings = measure(calls, ROUNDS, seconds=6)
    expected, *others = (call() for call in calls.values())
    for found in others:
        np.testing.assert_allclose(found, expected, atol=1e-4)
    return timings


async def ask(address: str, people: int, texts: int, length: int) -> float:
    """Characters per second that so many people get, streamed and read to the end."""
    host, port = address.rsplit("/", 1)[-1].split(":")
    began = time.perf_counter()

    async def read(person: int) -> int:
        found = 0
        for number in range(texts):
            body = {"length": length, "seed": 1000 * person + number, "stream": True}
            content = json.dumps(body).encode()
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(content), content)
            )
            answer = await reader.read()
            writer.close()
            assert f'{{"characters": {length}}}'.encode() in answer, answer[-300:]
            found += length
        return found

    total = sum(await asyncio.gather(*map(read, range(people))))
    return total / (time.perf_counter() - began)


def throughput() -> dict[int, list[float]]:
    """What `ask` returns for each number of people, three times, in turns."""
    from experiments.charlm.serve import Service
    from experiments.harness import server

    model = make_language_model(CharacterSettings(), len(CHARACTERS))
    variables = jax.jit(model.init)(jax.random.key(SEED), np.zeros((1, 1), np.int32))
    writer = Writer(model, variables, Vocab(CHARACTERS))
    service = Service(writer, "untrained")
    listening = server.listen(None)
    address = f"{server.ADDRESS}:{listening.getsockname()[1]}"
    running = server.Server(service.app, service.close)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    found: dict[int, list[float]] = {people: [] for people in PEOPLE}
    try:
        for _ in range(3):
            for people in PEOPLE:
                script = (
                    "import asyncio; from experiments.bench.serving import ask; "
                    f"print(asyncio.run(ask({address!r}, {people}, {TEXTS}, {LENGTH})))"
                )
                done = subprocess.run(
                    [sys.executable, "-c", script],
                    capture_output=True,
                    check=True,
                    text=True,
                )
                found[people].append(float(done.stdout))
    finally:
        running.should_exit = True
        thread.join()
    return found


@dataclass(frozen=True)
class Options:
    """There are none."""


def main(options: Options) -> None:
    """Print both tables."""
    jax_setup.configure()
    with tempfile.TemporaryDirectory() as name:
        for what, make in (
            (f"one text of {WORDS} words", classifier_calls),
            ("one more character", character_calls),
        ):
            print(f"{what}: milliseconds of the first call and of later ones")
            for contender, timing in latency(make(Path(name))).items():
                lower, upper = (1e3 * quartile for quartile in timing.quartiles)
                print(
                    f"  {contender:17}{1e3 * timing.first:8.0f}"
                    f"{1e3 * timing.median:9.3f} ({lower:.3f} to {upper:.3f})",
                    flush=True,
                )
    print("characters per second over HTTP")
    for people, rates in throughput().items():
        spelled = ", ".join(f"{rate:,.0f}" for rate in sorted(rates))
        print(f"  {people:2} people at once: {spelled}")
