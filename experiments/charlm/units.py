"""What a model predicts one after the other: characters, bytes or words of a text.

Words are what stands between white space, and a line's end is a word, too: `EOS`. So
Penn Treebank and WikiText are read, whose files have spaces between all words. In a
text that has none before its punctuation, "word," and "word" are two words.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.charlm.datasets import SHORTEST_PART, Text, pieces
from experiments.harness.workdir import WorkDir
from jaxrnn.text import EOS, UNK, Vocab, char_tokens, whitespace_tokens


class Units:
    """Characters, and what bytes and words have in common with them.

    Attributes:
        name: of one.
        by_byte: whether each character of a text stands for a byte.
        encoding: of a text that is written.
    """

    name, by_byte, encoding = "character", False, "utf-8"

    @property
    def plural(self) -> str:
        """The name of several."""
        return f"{self.name}s"

    def tokens(self, text: str) -> Iterator[list[str]]:
        r"""Yield the tokens of a text, some at a time.

        >>> list(WORDS.tokens("to be\nor not"))
        [['to', 'be', '<eos>', 'or', 'not']]
        """
        return map(char_tokens, pieces(text))

    def encode(self, text: str, vocab: Vocab) -> np.ndarray:
        """Return the ids of the tokens of a text.

        >>> CHARACTERS.encode("abba", Vocab(("a", "b")))
        array([0, 1, 1, 0], dtype=int32)
        """
        return np.concatenate([vocab.encode(tokens) for tokens in self.tokens(text)])

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(text)

    def written(self, tokens: Iterable[str], before: str | None = None) -> list[str]:
        r"""Return what each token adds to a text whose last token is `before`.

        Words of a line have a space between them.

        >>> WORDS.written(["be", "<eos>", "or", "not"], before="to")
        [' be', '\n', 'or', ' not']
        """
        return [*tokens]

    def spell(self, token: str) -> str:
        """Return a token as a report has it."""
        return repr(token)

    def beginning(self, vocab: Vocab) -> str:
        """Return the default prompt: a line feed, or else the most frequent token."""
        return "\n" if "\n" in vocab.tokens else vocab.tokens[0]

    def make_vocab(self, text: Text, size: int | None = None) -> Vocab:
        """Return the vocabulary of a text: of characters, all that are in any part.

        Raises:
            ValueError: there are too few words.
        """
        parts = filter(None, (text.content, text.validation, text.test))
        return Vocab.build(
            (tokens for part in parts for tokens in self.tokens(part)), specials=()
        )

    def tokenizer(self, vocab: Vocab) -> dict[str, Any]:
        """Return what an exported model says of its tokens."""
        return {
            "kind": "characters",
            "normalization": "NFC",
            "beginning": self.beginning(vocab),
        }


class _Bytes(Units):
    name, by_byte, encoding = "byte", True, "latin-1"

    def spell(self, token: str) -> str:
        return ascii(token)

    def make_vocab(self, text: Text, size: int | None = None) -> Vocab:
        return Vocab(tuple(map(chr, range(256))))

    def tokenizer(self, vocab: Vocab) -> dict[str, Any]:
        beginning = self.beginning(vocab)
        return {"kind": "bytes", "encoding": self.encoding, "beginning": beginning}


class _Words(Units):
    name = "word"

    def tokens(self, text: str) -> Iterator[list[str]]:
        return map(whitespace_tokens, _pieces_of_words(text))

    def count(self, text: str) -> int:
        return sum(map(len, self.tokens(text)))

    def written(self, tokens: Iterable[str], before: str | None = None) -> list[str]:
        found = []
        for token in tokens:
            first = before is None or before == EOS
            found.append("\n" if token == EOS else token if first else f" {token}")
            before = token
        return found

    def beginning(self, vocab: Vocab) -> str:
        return "\n" if EOS in vocab.tokens else vocab.tokens[1]

    def make_vocab(self, text: Text, size: int | None = None) -> Vocab:
        """Return the most frequent words of the part to train on, `size` in all.

        A word that occurs once is unknown, so that there are unknown words to learn
        from, unless the text has such words already.
        """
        train, _ = text.split()
        # As a published corpus of a limited vocabulary has it.
        is_limited = re.search(rf"(?<!\S){UNK}(?!\S)", train) is not None
        try:
            return Vocab.build(
                self.tokens(train),
                max_size=size,
                min_count=1 if is_limited else 2,
                specials=(UNK, EOS) if "\n" in train else (UNK,),
            )
        except ValueError as error:
            raise ValueError(
                "--words: no word occurs twice in the part to train on, so there is "
                "nothing to predict"
            ) from error

    def tokenizer(self, vocab: Vocab) -> dict[str, Any]:
        end = EOS if EOS in vocab.tokens else None
        return {
            "kind": "whitespace",
            "normalization": "NFC",
            "end_of_line": end,
            "unknown": UNK,
            "beginning": end or self.beginning(vocab),
        }


CHARACTERS, BYTES, WORDS = Units(), _Bytes(), _Words()


@dataclass(frozen=True)
class _Saved:
    """What the settings of a run say of its units."""

    bytes: bool
    words: bool


def units_of(workdir: WorkDir) -> Units:
    """Return the units of the run in a work directory.

    Raises:
        ValueError: there is no run.
    """
    saved = workdir.settings_as(_Saved)
    return WORDS if saved.words else BYTES if saved.bytes else CHARACTERS


def count_tokens(units: Units, text: Text) -> dict[str, int]:
    """Return how many tokens the parts of a text have, by what they are there for.

    Raises:
        ValueError: a part has no input and target; it is named.

    >>> count_tokens(WORDS, Text("text", "to be " * 9, "to be, or", "or not"))
    {'train on': 18, 'validate': 3, 'test': 2}
    >>> count_tokens(WORDS, Text("text", "to be " * 9, "to"))
    Traceback (most recent call last):
    ValueError: the part to validate has 1 words: at least 2 are needed
    """
    train, validation = map(units.count, text.split())
    counts = {"train on": train, "validate": validation}
    if text.held_out:
        counts["test"] = units.count(text.held_out)
    for name, count in counts.items():
        if count < SHORTEST_PART:
            raise ValueError(
                f"the part to {name} has {count} {units.plural}: at least "
                f"{SHORTEST_PART} are needed"
            )
    return counts


def _pieces_of_words(text: str, size: int = 2**20) -> Iterator[str]:
    """Yield the text in parts of about `size` characters, cut before white space.

    >>> list(_pieces_of_words("to be or not", size=4))
    ['to be', ' or not']
    """
    start = 0
    while start < len(text):
        found = _SPACE.search(text, start + size)
        stop = found.start() if found else len(text)
        yield text[start:stop]
        start = stop


_SPACE = re.compile(r"\s")
