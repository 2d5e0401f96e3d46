"""A trained character model at work: going on with texts, and judging them.

Knows characters and the model; printing and command lines are others' business.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.charlm.config import Settings
from experiments.charlm.model import make_model, make_optimizer, make_state
from experiments.harness.workdir import WorkDir
from jaxrnn import metrics, sampling
from jaxrnn._validation import check_min
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import LanguageModel
from jaxrnn.text import Vocab, char_tokens
from jaxrnn.types import State

PIECE = 100  # characters drawn at a time, so that they can be shown as they come
CHUNK = 1024  # characters judged at a time


class Writer:
    """A model with its weights and the characters it knows."""

    def __init__(self, model: LanguageModel, variables: Any, vocab: Vocab):
        self.vocab = vocab
        self._model, self._variables = model, variables
        self._read = jax.jit(model.apply)

        def step(params: Any, tokens: jax.Array, state: State) -> Any:
            variables, table = params
            return model.apply(variables, tokens, state, table, method="step")

        self._step = step  # One function, so that all calls of `write` share its loop.

    @classmethod
    def load(cls, path: str | Path) -> "Writer":
        """The model of the run in `path` as its best checkpoint has it.

        Raises:
            ValueError: there is none, or a file of the run is damaged.
        """
        workdir = WorkDir(path)
        workdir.require_trained("charlm")
        settings, vocab = workdir.settings_as(Settings), workdir.vocab
        model = make_model(settings, len(vocab))
        optimizer = make_optimizer(settings, steps=1)
        template = jax.eval_shape(lambda: make_state(model, optimizer, settings))
        state, _ = Checkpoints(workdir.checkpoints).restore(template, "best")
        return cls(model, state.train.params, vocab)

    @property
    def beginning(self) -> str:
        """What to begin with where nothing is given: a line break, or the character
        that is the most frequent."""
        return "\n" if "\n" in self.vocab.tokens else self.vocab.tokens[0]

    def known(self, text: str, name: str, *, skip: bool) -> str:
        """The text without the characters that the model has never seen.

        Raises:
            ValueError: it has such characters and they are not to be skipped, or
                nothing is left; `name` says of what.
        """
        if not text:
            raise ValueError(f"{name} is empty: give at least one character")
        strange = set(text) - set(self.vocab.tokens)
        if strange and not skip:
            spelled = ", ".join(map(repr, sorted(strange)[:10]))
            raise ValueError(
                f"{name} has characters that the model has never seen, {spelled}"
                f"{' and others' if len(strange) > 10 else ''}: leave them out, or "
                "use --unknown skip"
            )
        kept = "".join(c for c in text if c not in strange) if strange else text
        if not kept:
            raise ValueError(
                f"{name} has no character that the model has ever seen: give at least "
                "one"
            )
        return kept

    def write(
        self, prompt: str, length: int, texts: int, seed: int, **options: Any
    ) -> Iterator[list[str]]:
        """Goes on with the prompt for `length` characters, in several texts at once:
        what comes next in each of them, some characters at a time.

        A text is a function of `seed` and its number, whatever stands beside it. The
        options are those of `jaxrnn.sampling.decode`.

        Raises:
            ValueError: `length` is below 0 or `texts` below 1, or as `decode` does.
        """
        check_min(0, length=length)
        check_min(1, texts=texts)
        table = self._model.apply(self._variables, method="input_projection_table")
        params = (self._variables, table)
        key = jax.random.key(seed)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(texts))
        prompts = np.tile(self.vocab.encode(char_tokens(prompt)), (texts, 1))
        state = self._model.initial_state((texts,))
        begun = sampling.prefill(self._step, state, prompts, params=params)
        options |= {"params": params, "piece_length": PIECE}
        # There may be nothing to draw.
        pieces = sampling.stream(self._step, begun, length, keys, **options)
        for piece in pieces if length else ():
            rows = zip(np.asarray(piece.tokens), piece.lengths.tolist(), strict=True)
            # Behind the end of a text there is padding.
            yield ["".join(self.vocab.decode(row[:drawn])) for row, drawn in rows]

    def trace(self, text: str) -> Iterator[tuple[State, np.ndarray]]:
        """The state after every character and the log-probabilities of what comes next
        [t v], some characters at a time."""
        ids = self.vocab.encode(char_tokens(text))
        state = self._model.initial_state(())

        @jax.jit
        def read(variables: Any, state: State, ids: jax.Array):
            def step(state: State, token: jax.Array):
                after: Any = self._model.apply(variables, token, state, method="step")
                logits, state = after
                return state, (state, jax.nn.log_softmax(logits))

            return jax.lax.scan(step, state, ids)

        for start in range(0, ids.size, CHUNK):
            part = ids[start : start + CHUNK]
            padded = np.pad(part, (0, CHUNK - part.size))
            state, found = read(self._variables, state, padded)
            yield jax.tree.map(lambda x, size=part.size: np.asarray(x)[:size], found)

    def nats(self, text: str) -> Iterator[np.ndarray]:
        """The nats of every character but the first, some at a time: how much of a
        surprise each is after all before it."""
        state = self._model.initial_state((1,))
        for start in range(0, len(text) - 1, CHUNK):
            part = self.vocab.encode(char_tokens(text[start : start + CHUNK + 1]))
            inputs = np.pad(part[:-1], (0, CHUNK + 1 - part.size))
            logits, state = self._read(self._variables, inputs[None], state=state)
            yield np.asarray(
                metrics.cross_entropy(logits[0, : part.size - 1], part[1:])
            )
