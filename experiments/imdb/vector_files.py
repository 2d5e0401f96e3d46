"""Word vectors from files of GloVe and fastText, as text.

A line has a word and the numbers of its vector, separated by single spaces; fastText's
files begin with a line of two numbers, how many words there are and how many numbers
each has. Pennington, Socher and Manning (2014), "GloVe: Global Vectors for Word
Representation"; Bojanowski, Grave, Joulin and Mikolov (2017), "Enriching Word Vectors
with Subword Information".
"""

import codecs
import gzip
import hashlib
import math
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.imdb.word_vectors import SPECIALS
from jaxrnn.text import Vocab


@dataclass(frozen=True)
class VectorFile:
    """The vectors of a vocabulary that a file has.

    Attributes:
        path: of the file.
        table: the vectors, float32 [v, d].
        found: how many words of the vocabulary are in the file.
    """

    path: Path
    table: np.ndarray
    found: int

    def describe(self) -> str:
        """How many words have a vector, as a line of text."""
        words, width = self.table.shape
        return (
            f"{self.path}: vectors of {width:,} numbers for {self.found:,} of the "
            f"{words - SPECIALS:,} words"
        )

    @property
    def fingerprint(self) -> str:
        """Shape and hash of the table."""
        digest = hashlib.sha256(self.table.tobytes()).hexdigest()
        return f"{' x '.join(map(str, self.table.shape))}, {digest[:12]}"


def read_vectors(
    path: Path, vocab: Vocab, *, scale: float = 0.5, seed: int = 0
) -> VectorFile:
    r"""Vectors for the words of a vocabulary, from a file that may be compressed (.gz).

    Other words of the file are ignored. A word that is not in it as it is has the
    vector of the first one that differs in case only. The vectors are scaled to a root
    mean square of `scale`; words without a vector have random ones of that size, and
    padding and unknown words zeros.

    Raises:
        ValueError: with file and line: it cannot be read, a line has not as many
            numbers as the first, or one that is not finite; or it has no word of the
            vocabulary.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "vectors.txt"
    >>> _ = path.write_text("the 1.5 0.5 -0.5\nFilm 0.5 2.0 1.0\n")
    >>> loaded = read_vectors(path, Vocab.build([["the", "film", "bores"]]))
    >>> loaded.table.shape, loaded.found
    ((5, 3), 2)
    """
    wanted = {token: k for k, token in enumerate(vocab.tokens[SPECIALS:])}
    exact: dict[int, np.ndarray] = {}
    in_another_case: dict[int, np.ndarray] = {}
    width = 0
    for word, vector in _matching(path, wanted):
        width, row = vector.size, wanted.get(word)
        if row is not None:
            exact.setdefault(row, vector)
        else:
            in_another_case.setdefault(wanted[word.lower()], vector)
    known = in_another_case | exact
    if not known:
        raise ValueError(
            f"{path}: none of its words is among the {len(wanted):,} of the "
            "vocabulary: give vectors of the language of your texts"
        )
    rows = np.stack(list(known.values()))
    size = np.sqrt(np.mean(rows**2))
    if not size > 0:
        raise ValueError(f"{path}: the vectors are zeros")
    rng = np.random.default_rng(seed)
    table = np.zeros((len(vocab), width))
    table[SPECIALS:] = scale * rng.normal(size=(len(wanted), width))
    table[np.array(list(known)) + SPECIALS] = rows * (scale / size)
    return VectorFile(path, table.astype(np.float32), len(known))


def _matching(path: Path, wanted: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Words that are wanted, whatever their case, and their vectors, float64 [d]."""
    width = None
    for number, line in _lines(path):
        fields = line.split(b" ") if width is None else line.split(b" ", 1)
        if number == 1 and len(fields) == 2 and all(f.isdigit() for f in fields):
            width = int(fields[1])
            continue
        if width is None:
            width = len(fields) - 1
        if width < 1:
            raise ValueError(
                f"{path}, line {number}: {_shown(line)} is no word with numbers"
            )
        if line.count(b" ") != width:
            line = _with_a_longer_word(path, number, line, width)
        word, *numbers = line.rsplit(b" ", width)
        token = unicodedata.normalize("NFC", word.decode(errors="replace"))
        if token in wanted or token.lower() in wanted:
            yield token, _numbers(path, number, numbers)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                line = line.rstrip(b" \r\n")  # word2vec ends lines with a space
                if line:
                    yield number, line
    except (EOFError, OSError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read: {reason}") from error


def _with_a_longer_word(path: Path, number: int, line: bytes, width: int) -> bytes:
    """The line, if its additional fields belong to the word: some of GloVe have spaces.

    Raises:
        ValueError: they do not.
    """
    fields = line.split(b" ")
    surplus, count = fields[1 : len(fields) - width], len(fields) - 1
    if count < width or all(map(_is_number, surplus)):
        raise ValueError(
            f"{path}, line {number}: {count:,} {'number' if count == 1 else 'numbers'},"
            f" not {width:,}: {_shown(line)}"
        )
    return line


def _numbers(path: Path, number: int, fields: list[bytes]) -> np.ndarray:
    for field in fields:
        if not _is_number(field):
            raise ValueError(f"{path}, line {number}: {_shown(field)} is not a number")
    return np.array(fields, float)


def _is_number(field: bytes) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def _shown(content: bytes) -> str:
    return f"{content[:40].decode(errors='replace')!r}"
