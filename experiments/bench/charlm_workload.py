"""Train steps and sampling of `experiments.charlm` to be timed, also in PyTorch.

The text is random characters. Units are characters.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.bench.frameworks import SEED, load
from experiments.bench.timing import Work, stepping, torch_stepping
from experiments.charlm.batches import Streams
from experiments.charlm.config import Settings
from experiments.charlm.generator import Writer
from experiments.charlm.model import (
    make_model,
    make_optimizer,
    make_state,
    make_train_step,
)
from jaxrnn import placement
from jaxrnn.text import Vocab
from jaxrnn.training import Batch

CHARACTERS = tuple(map(chr, range(32, 112)))  # 80, as many as the chapter's text has


def train(settings: Settings) -> Work:
    """A train step of the program.

    >>> work = train(Settings(embed=4, hidden=4, batch=2, seq_len=40))
    >>> int(work.run().step), work.units
    (1, 80)
    """
    model = make_model(settings, len(CHARACTERS))
    optimizer = make_optimizer(settings, steps=1_000_000)
    state = make_state(model, optimizer, settings)
    mesh = placement.data_mesh(batch_size=settings.batch)
    step = make_train_step(model, optimizer, mesh, settings.weight_drop)
    streams = _streams(settings)
    return Work(stepping(step, state, streams.epoch(0)), streams.tokens)


def _streams(settings: Settings) -> Streams:
    """Batches of a text that is long enough for one step."""
    size = settings.batch * settings.seq_len + 1
    rng = np.random.default_rng(SEED)
    return Streams(rng.integers(len(CHARACTERS), size=size, dtype=np.int32), settings)


def train_torch(settings: Settings, *, one_by_one: bool) -> Work:
    """The same step in PyTorch.

    With `one_by_one` the model is called for each character, as in many textbooks, else
    once for the whole sequence.
    """
    torch = load("torch")
    embed, lstm, output = modules = _torch_model(torch, settings)
    length = 1 if one_by_one else settings.seq_len

    def loss_of(batch: Batch) -> Any:
        inputs, targets = (
            torch.from_numpy(batch[name].astype(np.int64)).split(length, dim=1)
            for name in ("inputs", "targets")
        )
        state, losses = None, []
        for some, wanted in zip(inputs, targets, strict=True):
            outputs, state = lstm(embed(some), state)
            logits = output(outputs).flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(logits, wanted.flatten()))
        return sum(losses) / len(losses)

    streams = _streams(settings)
    run = torch_stepping(torch, modules, loss_of, streams.epoch(0))
    return Work(run, streams.tokens)


def _torch_model(torch: Any, settings: Settings) -> tuple[Any, Any, Any]:
    return (
        torch.nn.Embedding(len(CHARACTERS), settings.embed),
        torch.nn.LSTM(settings.embed, settings.hidden, batch_first=True),
        torch.nn.Linear(settings.hidden, len(CHARACTERS)),
    )


def draw(settings: Settings, length: int, texts: int) -> Work:
    """A batch of generated texts, as `experiments.charlm --sample` makes them.

    >>> work = draw(Settings(embed=4, hidden=4), length=3, texts=2)
    >>> [len(text) for text in work.run()], work.units
    ([3, 3], 6)
    """
    model = make_model(settings, len(CHARACTERS))
    variables = jax.jit(model.init)(jax.random.key(SEED), np.zeros((1, 1), np.int32))
    writer = Writer(model, variables, Vocab(CHARACTERS))

    def run() -> list[str]:
        pieces = writer.write("a", length, texts, SEED)
        return ["".join(text) for text in zip(*pieces, strict=True)]

    return Work(run, length * texts)


def draw_torch(settings: Settings, length: int, texts: int) -> Work:
    """The same in PyTorch, with a Python loop over characters."""
    torch = load("torch")
    embed, lstm, output = _torch_model(torch, settings)

    def pieces() -> Iterator[Any]:
        state, ids = None, torch.zeros((texts, 1), dtype=torch.int64)
        for _ in range(length):
            outputs, state = lstm(embed(ids), state)
            shares = output(outputs[:, 0]).softmax(dim=-1)
            ids = torch.multinomial(shares, num_samples=1)
            yield ids

    def run() -> list[str]:
        with torch.no_grad():
            rows = torch.cat([*pieces()], dim=1).numpy()
        return ["".join(CHARACTERS[k] for k in row) for row in rows]

    return Work(run, length * texts)
