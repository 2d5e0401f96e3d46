"""A trained character model: generating text, and the log-probabilities of a text.

Nothing here prints or depends on command lines.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.charlm.config import Settings, open_workdir
from experiments.charlm.model import make_model, make_optimizer, make_state
from jaxrnn import metrics, sampling, serving
from jaxrnn._validation import check_min
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import LanguageModel
from jaxrnn.text import Vocab, char_tokens
from jaxrnn.types import State

PIECE = 100  # characters generated at a time, so that they can be shown early
CHUNK = 1024  # characters of a text that are evaluated at a time


class Writer:
    """A language model with its parameters and its vocabulary of characters.

    Attributes:
        vocab: the characters.
        step: the model as `jaxrnn.sampling` takes it, with `step_params()`.
    """

    def __init__(self, model: LanguageModel, variables: Any, vocab: Vocab):
        """Take a model and what its `init` returned, or training made of it."""
        self.vocab = vocab
        self._model, self._variables = model, variables
        self._read = jax.jit(model.apply)

        def step(params: Any, tokens: jax.Array, state: State) -> Any:
            variables, table = params
            return model.apply(variables, tokens, state, table, method="step")

        self.step = step  # One function, so that all calls of `write` share its loop.

    @classmethod
    def load(cls, path: str | Path) -> "Writer":
        """Return the model of the run in `path`, with its best checkpoint.

        Raises:
            ValueError: there is none, or a file of the run is damaged.
        """
        workdir = open_workdir(path)
        workdir.require_trained("charlm")
        settings, vocab = workdir.settings_as(Settings), workdir.vocab
        model = make_model(settings, len(vocab))
        optimizer = make_optimizer(settings, steps=1)
        template = jax.eval_shape(lambda: make_state(model, optimizer, settings))
        state, _ = Checkpoints(workdir.checkpoints).restore(template, "best")
        return cls(model, state.train.params, vocab)

    @property
    def beginning(self) -> str:
        """The default prompt: a line feed, or else the most frequent character."""
        return "\n" if "\n" in self.vocab.tokens else self.vocab.tokens[0]

    def step_params(self) -> Any:
        """Return the first argument of `step`: variables and projected embedding."""
        table = self._model.apply(self._variables, method="input_projection_table")
        return self._variables, table

    def initial_state(self, rows: int) -> State:
        """Return the state of so many rows before anything was read."""
        return self._model.initial_state((rows,))

    def known(
        self,
        text: str,
        name: str,
        *,
        skip: bool,
        remedy: str = "leave them out, or use --unknown skip",
    ) -> str:
        """Return the text, with `skip` without characters outside the vocabulary.

        Raises:
            ValueError: it has such characters and `skip` is false, or no others; the
                message has `name` and, of the former, `remedy`.
        """
        if not text:
            raise ValueError(f"{name} is empty: give at least one character")
        unknown = set(text) - set(self.vocab.tokens)
        if unknown and not skip:
            spelled = ", ".join(map(repr, sorted(unknown)[:10]))
            raise ValueError(
                f"{name} has characters outside the model's vocabulary, {spelled}"
                f"{' and others' if len(unknown) > 10 else ''}: {remedy}"
            )
        kept = "".join(c for c in text if c not in unknown) if unknown else text
        if not kept:
            raise ValueError(
                f"{name} has no character of the model's vocabulary: give at least one"
            )
        return kept

    def write(
        self, prompt: str, length: int, texts: int, seed: int, **options: Any
    ) -> Iterator[list[str]]:
        """Generate `length` characters after the prompt, in several texts at once.

        Yields the next characters of each text, some at a time. A text depends on
        `seed` and its index only, not on the number of texts. The options are those of
        `jaxrnn.sampling.decode`.

        Raises:
            ValueError: `length` is below 0 or `texts` below 1, or as `decode` raises.
        """
        check_min(0, length=length)
        check_min(1, texts=texts)
        params = self.step_params()
        key = jax.random.key(seed)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(texts))
        prompts = np.tile(self.vocab.encode(char_tokens(prompt)), (texts, 1))
        state = self.initial_state(texts)
        begun = sampling.prefill(self.step, state, prompts, params=params)
        options |= {"params": params, "piece_length": PIECE}
        # There may be nothing to generate.
        pieces = sampling.stream(self.step, begun, length, keys, **options)
        for piece in pieces if length else ():
            rows = zip(np.asarray(piece.tokens), piece.lengths.tolist(), strict=True)
            # Behind the end of a text there is padding.
            yield ["".join(self.vocab.decode(row[:drawn])) for row, drawn in rows]

    def export(self, path: str | Path, *, by_byte: bool) -> None:
        """Write the model into a new directory, from which JAX alone runs it.

        `by_byte` says that its characters stand for bytes.

        Raises:
            OSError: there is something at `path`, or it cannot be written.
        """
        characters = {"kind": "characters", "normalization": "NFC"}
        tokenizer = {"kind": "bytes", "encoding": "latin-1"} if by_byte else characters
        serving.export(
            self._model,
            self._variables,
            path,
            vocabulary=self.vocab.tokens,
            tokenizer=tokenizer | {"beginning": self.beginning},
        )

    def trace(self, text: str) -> Iterator[tuple[State, np.ndarray]]:
        """Yield states and next-character log-probabilities, some characters at a time.

        The states are those after each character; the log-probabilities are [t v].
        """
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
        """Yield the cross-entropy of every character but the first, some at a time.

        That is its negative log-probability given all characters before it, in nats.
        """
        state = self._model.initial_state((1,))
        for start in range(0, len(text) - 1, CHUNK):
            part = self.vocab.encode(char_tokens(text[start : start + CHUNK + 1]))
            inputs = np.pad(part[:-1], (0, CHUNK + 1 - part.size))
            logits, state = self._read(self._variables, inputs[None], state=state)
            yield np.asarray(
                metrics.cross_entropy(logits[0, : part.size - 1], part[1:])
            )
