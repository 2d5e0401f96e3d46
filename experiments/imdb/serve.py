"""What `experiments.imdb --serve` answers: classes of a text, and why.

The guide on serving (docs/guides/serving.md) describes the interface.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from experiments.harness import server
from experiments.harness.html_report import render
from experiments.harness.server import Gate, read_json, refuse
from experiments.harness.workdir import About, WorkDir
from experiments.harness.worker import EndingError, Worker
from experiments.imdb import attribution
from experiments.imdb.attribution import (
    LONGEST_CHARACTERS,
    LONGEST_TEXT,
    Explanation,
)
from experiments.imdb.predictor import Reader
from jaxrnn.batching import pad
from jaxrnn.text import UNK

TEMPLATE = Path(__file__).parent / "templates" / "serve"
ROWS = 16  # texts that are classified at once
LENGTHS = (64, 256, LONGEST_TEXT)  # words that texts are padded to
REQUESTS = 256  # at a time


@dataclass(frozen=True)
class TextBody:
    """The body of a request to /classify and /explain."""

    text: str

    def check(self) -> None:
        """Check the length.

        Raises:
            ValueError: there are too many characters.
        """
        if len(self.text) > LONGEST_CHARACTERS:
            raise ValueError(
                f"text must have at most {LONGEST_CHARACTERS:,} characters, got "
                f"{len(self.text):,}"
            )


class Classifier:
    """The network in few shapes, all compiled at the beginning.

    A text is padded to one of `LENGTHS` words, and classified together with others of
    its length only: its probabilities depend on no other text.
    """

    def __init__(self, reader: Reader):
        """Compiles the network for each of the lengths."""
        self._reader = reader

        @jax.jit
        def compute(variables: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
            logits: Any = reader.model.apply(variables, tokens, lengths=lengths)
            return logits.reshape(logits.shape[0], -1)

        self._compute = compute
        for length in LENGTHS:
            self._logits([np.ones(1, np.int32)], length)

    def __call__(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The probability of each class of texts as word ids, of `ROWS` at most."""
        found: list[Any] = [None] * len(texts)
        lengths = [min(n for n in LENGTHS if n >= ids.size) for ids in texts]
        for length in {*lengths}:
            places = [k for k, other in enumerate(lengths) if other == length]
            ids = [texts[k] for k in places]
            probabilities = self._reader.from_logits(self._logits(ids, length), ids)
            for k, row in zip(places, probabilities, strict=True):
                found[k] = row
        return found

    def _logits(self, ids: Sequence[np.ndarray], length: int) -> np.ndarray:
        rows = [*ids, *[np.zeros(0, np.int32)] * (ROWS - len(ids))]
        tokens, lengths = pad(rows, length)
        logits = self._compute(self._reader.variables, tokens, lengths)
        return np.asarray(logits)[: len(ids)]


class Service:
    """A trained model as an app, and what it needs to end.

    Attributes:
        app: serves the page at /, and /classify, /explain, /model and /health.
    """

    def __init__(self, reader: Reader, model: str):
        """Compiles the network; `model` says on the page what classifies."""
        self._reader = reader
        self._explain_one = attribution.make_explainer(
            reader.model,
            reader.variables,
            reader.linear,
            multi_label=reader.multi_label,
        )
        [self._unknown] = reader.vocab.encode([UNK])
        self._explain_one(np.ones(1, np.int32), 1)
        classifier = Classifier(reader)
        self._verdicts = Worker(classifier, together=ROWS)
        self._explanations: Worker[tuple[np.ndarray, int], Explanation] = Worker(
            lambda jobs: [self._explain_one(ids, target) for ids, target in jobs]
        )
        self._gate = Gate(REQUESTS)
        about = {
            "model": model,
            "classes": [*reader.classes],
            "multi_label": reader.multi_label,
            "vocabulary": len(reader.vocab),
            "limits": {
                "characters": LONGEST_CHARACTERS,
                "words": LONGEST_TEXT,
                "requests": REQUESTS,
            },
        }
        routes = [
            Route("/classify", self._classify, methods=["POST"]),
            Route("/explain", self._explain, methods=["POST"]),
            Route("/health", self._health),
        ]
        page = render(TEMPLATE, "Classify a text", about, served=True)
        self.app: Starlette = server.make_app(page, about, routes)

    def close(self) -> None:
        """End the work."""
        self._verdicts.close()
        self._explanations.close()

    async def _health(self, request: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "classifying": self._verdicts.waiting,
                "explaining": self._explanations.waiting,
            }
        )

    async def _classify(self, request: Request) -> Response:
        ids = self._encode(await self._text(request))
        return await self._answer(request, lambda: self._verdict(ids))

    async def _explain(self, request: Request) -> Response:
        text = await self._text(request)
        ids = self._encode(text)
        return await self._answer(request, lambda: self._explanation(text, ids))

    async def _answer(
        self, request: Request, work: Callable[[], Awaitable[dict[str, Any]]]
    ) -> Response:
        """The result of `work`, if there is a place for one more request."""
        with self._gate.passed():
            try:
                found = await server.unless_disconnected(request, work())
            except EndingError as error:
                refuse(str(error), 503)
            return JSONResponse(found)

    async def _text(self, request: Request) -> str:
        return (await read_json(request, TextBody)).text

    def _encode(self, text: str) -> np.ndarray:
        [ids] = self._reader.encode([text]).ids
        if not ids.size:
            refuse("text has no words")
        if ids.size > LONGEST_TEXT:
            refuse(f"text must have at most {LONGEST_TEXT:,} words, got {ids.size:,}")
        return ids

    async def _verdict(self, ids: np.ndarray) -> dict[str, Any]:
        probabilities = await self._verdicts(ids)
        best = int(probabilities.argmax())
        shares = probabilities.tolist()
        several = {}
        if self._reader.multi_label:
            several = {"labels": self._reader.labels(probabilities)}
        return {
            "label": self._reader.classes[best],
            "probability": shares[best],
            **several,
            "probabilities": dict(zip(self._reader.classes, shares, strict=True)),
            "words": int(ids.size),
            "unknown": int((ids == self._unknown).sum()),
        }

    async def _explanation(self, text: str, ids: np.ndarray) -> dict[str, Any]:
        """The verdict, and the attribution of each word to the score of a class."""
        verdict, classes = await self._verdict(ids), self._reader.classes
        target = self._reader.target(classes.index(verdict["label"]))
        found = await self._explanations((ids, target))
        return {
            **verdict,
            **attribution.cut(text),
            "target": classes[target],
            "against": self._reader.against(target),
            "attributions": found.attributions.round(6).tolist(),
            "unknown_words": (ids == self._unknown).tolist(),
            "baseline": found.baseline,
            "logit": found.score,
            "residual": found.residual,
        }


def serve(path: Path, devices: int | None, port: int | None) -> None:
    """Serves the model in a work directory until Ctrl-C.

    Raises:
        ValueError: there is no model, or the port cannot be listened on.
    """
    reader, workdir = Reader.load(path, devices), WorkDir(path)
    workdir.tell_unfinished("serving")
    listening = server.listen(port)
    about = f"Model in {path}, trained on {workdir.settings_as(About).dataset}"
    service = Service(reader, about)
    server.run(service.app, listening, about, service.close)
