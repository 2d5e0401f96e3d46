"""A trained language model: generating text, and the log-probabilities of a text.

Nothing here prints or depends on command lines.
"""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.charlm.config import Settings, open_workdir
from experiments.charlm.dynamic import Rule, mean_nats, root_mean_squares
from experiments.charlm.model import make_model, make_optimizer, make_state
from experiments.charlm.nt_asgd import evaluated_params
from experiments.charlm.units import CHARACTERS, Units, units_of
from jaxrnn import metrics, sampling, serving
from jaxrnn._validation import check_min
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.models import LanguageModel
from jaxrnn.text import UNK, Vocab
from jaxrnn.types import State

PIECE = 100  # tokens generated at a time, so that they can be shown early
CHUNK = 1024  # tokens of a text that are evaluated at a time
ROWS = 16  # texts of a device, at least: with fewer several are not faster


class Writer:
    """A language model with its parameters and its vocabulary.

    Attributes:
        vocab: the characters, or other units.
        units: what the tokens are.
        step: the model as `jaxrnn.sampling` takes it, with `step_params`.
    """

    def __init__(
        self,
        model: LanguageModel,
        variables: Any,
        vocab: Vocab,
        units: Units = CHARACTERS,
    ):
        """Take a model and what its `init` returned, or training made of it."""
        self.vocab, self.units = vocab, units
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
        return cls(model, evaluated_params(state.train), vocab, units_of(workdir))

    @property
    def beginning(self) -> str:
        """The default prompt: a line feed, or else the most frequent token."""
        return self.units.beginning(self.vocab)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text."""
        return self.units.encode(text, self.vocab)

    @functools.cached_property
    def step_params(self) -> Any:
        """The first argument of `step`: variables and projected embedding."""
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
        """Return the text, with `skip` without tokens outside the vocabulary.

        Without `skip`, words that the vocabulary lacks are kept: they are read as its
        unknown word.

        Raises:
            ValueError: it has characters outside the vocabulary and `skip` is false, or
                no tokens in it; the message has `name` and, of the former, `remedy`.
        """
        one = "character" if self.units.by_byte else self.units.name
        if not text:
            raise ValueError(f"{name} is empty: give at least one {one}")
        vocabulary = set(self.vocab.tokens)
        unknown = set().union(*self.units.tokens(text)) - vocabulary
        if unknown and not skip and UNK not in vocabulary:
            spelled = ", ".join(map(repr, sorted(unknown)[:10]))
            raise ValueError(
                f"{name} has characters outside the model's vocabulary, {spelled}"
                f"{' and others' if len(unknown) > 10 else ''}: {remedy}"
            )
        if unknown and skip:
            tokens = itertools.chain.from_iterable(self.units.tokens(text))
            kept = (token for token in tokens if token not in unknown)
            text = "".join(self.units.written(kept))
        if not any(self.units.tokens(text)):
            raise ValueError(
                f"{name} has no {one} of the model's vocabulary: give at least one"
            )
        return text

    def write(
        self, prompt: str, length: int, texts: int, seed: int, **options: Any
    ) -> Iterator[list[str]]:
        """Generate `length` tokens after the prompt, in several texts at once.

        Yields what the next tokens add to each text, some at a time. A text depends on
        `seed` and its index only, not on the number of texts. The options are those of
        `jaxrnn.sampling.decode`.

        Raises:
            ValueError: `length` is below 0 or `texts` below 1, or as `decode` raises.
        """
        check_min(0, length=length)
        check_min(1, texts=texts)
        params = self.step_params
        key = jax.random.key(seed)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(texts))
        prompts = np.tile(self.encode(prompt), (texts, 1))
        before = self.vocab.decode(prompts[:, -1])
        state = self.initial_state(texts)
        begun = sampling.prefill(self.step, state, prompts, params=params)
        mesh = _mesh(texts)
        # With these the devices would wait for each other at every step.
        waits = any(options.get(name) is not None for name in ("stop", "top_k"))
        if mesh.size > 1 and not waits:
            params = jax.device_put(params, NamedSharding(mesh, P()))
            begun, keys = jax.device_put((begun, keys), NamedSharding(mesh, P("data")))
        options |= {"params": params, "piece_length": PIECE}
        # There may be nothing to generate.
        pieces = sampling.stream(self.step, begun, length, keys, **options)
        for piece in pieces if length else ():
            rows = zip(np.asarray(piece.tokens), piece.lengths.tolist(), strict=True)
            # Behind the end of a text there is padding.
            tokens = [self.vocab.decode(row[:drawn]) for row, drawn in rows]
            yield [
                "".join(self.units.written(drawn, last))
                for drawn, last in zip(tokens, before, strict=True)
            ]
            # A text that has ended draws nothing more.
            before = [
                drawn[-1] if drawn else last
                for drawn, last in zip(tokens, before, strict=True)
            ]

    def export(self, path: str | Path) -> None:
        """Write the model into a new directory, from which JAX alone runs it.

        Raises:
            OSError: there is something at `path`, or it cannot be written.
        """
        serving.export(
            self._model,
            self._variables,
            path,
            vocabulary=self.vocab.tokens,
            tokenizer=self.units.tokenizer(self.vocab),
        )

    def trace(self, ids: np.ndarray) -> Iterator[tuple[State, np.ndarray]]:
        """Yield states and log-probabilities of what is next, some tokens at a time.

        The states are those after each token; the log-probabilities are [t v].
        """
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

    def dynamic_nats(
        self, ids: np.ndarray, training_ids: np.ndarray, rule: Rule
    ) -> float:
        """Return the mean cross-entropy by dynamic evaluation, in nats."""
        model, params = self._model, self._variables
        rms = root_mean_squares(model, params, training_ids, rule.segment)
        return mean_nats(model, params, rms, ids, rule)

    def nats(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the cross-entropy of every token but the first, some at a time.

        That is its negative log-probability given all tokens before it, in nats.
        """
        state = self._model.initial_state((1,))
        for start in range(0, ids.size - 1, CHUNK):
            part = ids[start : start + CHUNK + 1]
            inputs = np.pad(part[:-1], (0, CHUNK + 1 - part.size))
            logits, state = self._read(self._variables, inputs[None], state=state)
            yield np.asarray(
                metrics.cross_entropy(logits[0, : part.size - 1], part[1:])
            )


def _mesh(texts: int) -> Mesh:
    """The devices of this process that share the texts, each the same number."""
    devices = jax.local_devices()
    numbers = range(2, min(len(devices), texts // ROWS) + 1)
    number = max((n for n in numbers if texts % n == 0), default=1)
    return Mesh(np.array(devices[:number]), ("data",))
