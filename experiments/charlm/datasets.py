"""Texts to model: tiny shakespeare, a user's own files, Python's documentation.

A text is a string. Read as bytes, each of its characters stands for one byte, the one
with the same number (Latin-1). Nothing here depends on ids, batches or JAX.

Reference: Karpathy (2015), "The Unreasonable Effectiveness of Recurrent Neural
Networks", for the excerpt of Shakespeare's plays.
"""

import hashlib
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import tfds_without_tf
from experiments.harness.files import decode_utf8, read_bytes
from jaxrnn.text import nfc

OWN = ("text: ", "bytes: ")  # how the name of a user's own text begins
SHORTEST_PART = 2  # characters: one input and one target
SHORTEST = 10 * SHORTEST_PART  # of a text whose tenth validates


@dataclass(frozen=True)
class Text:
    """A text and the name under which results on it are reported.

    Attributes:
        name: of `content`.
        content: what to train on. Without `validation` its end validates, and with
            `test_share` the end of that is the test part.
        validation: another text to validate on, where there is a published split.
        test: another text to test on.
        test_share: of `content`, to test on; as much before it validates.

    Raises:
        ValueError: it is too short, or all one character.
    """

    name: str
    content: str
    validation: str | None = None
    test: str | None = None
    test_share: float = 0.0

    def __post_init__(self):
        """Refuse a text with nothing to predict."""
        if len(self.content) < SHORTEST:
            raise ValueError(
                f"{self.name}: {len(self.content)} characters are too few: at least "
                f"{SHORTEST} are needed to train and validate"
            )
        if len(set(self.content)) < 2:
            raise ValueError(
                f"{self.name}: all {len(self.content):,} characters are "
                f"{self.content[0]!r}: there is nothing to predict"
            )

    def split(self) -> tuple[str, str]:
        """Return the part to train on and the part to validate.

        Where nothing else is said they are the first nine tenths, and the last.

        >>> Text("digits", "0123456789" * 2).split()
        ('012345678901234567', '89')
        >>> Text("digits", "0123456789" * 2, test_share=0.2).split()
        ('012345678901', '2345')
        """
        if self.validation is not None:
            return self.content, self.validation
        if self.test_share:
            train, validation, _ = self._borders
            return self.content[:train], self.content[train:validation]
        border = int(0.9 * len(self.content))
        return self.content[:border], self.content[border:]

    @property
    def held_out(self) -> str:
        """The part to test on, "" if there is none.

        >>> Text("digits", "0123456789" * 2, test_share=0.2).held_out
        '6789'
        """
        if self.test is not None:
            return self.test
        return self.content[self._borders[1] :] if self.test_share else ""

    @property
    def _borders(self) -> tuple[int, int, int]:
        """Where the three parts of a text with a `test_share` end."""
        size = len(self.content)
        share = max(round(self.test_share * size), SHORTEST_PART)
        return size - 2 * share, size - share, size

    @property
    def identity(self) -> dict[str, Any]:
        """What settings.json has of the text and how it is split."""
        return {
            "text": fingerprint(self.content),
            "validation": self.validation and fingerprint(self.validation),
            "test": self.test and fingerprint(self.test),
            "test_share": self.test_share,
        }


def fingerprint(content: str) -> str:
    """Return the length of a text and the beginning of its hash.

    >>> fingerprint("to be")
    '5 characters, 0af1207eeabd'
    """
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"{len(content)} characters, {digest[:12]}"


def load_shakespeare(
    data_dir: str | Path | None = None,
    download_dir: str | Path | None = None,
    *,
    by_byte: bool = False,
) -> Text:
    """Return tiny shakespeare, 1,115,394 characters: all its splits in their order.

    tensorflow-datasets prepares it in `data_dir` (default: ~/tensorflow_datasets),
    once, from a file that is in `download_dir` (as manual/input.txt) or else is
    downloaded to there. Where it can be neither prepared nor downloaded, and no
    directory was named, a line on standard error says why, and the language reference
    that comes with Python takes its place under its own name.

    Raises:
        ValueError: a named directory has no such data, or it cannot be used.
    """
    splits = ("train", "validation", "test")
    try:
        name, examples = tfds_without_tf.load(
            "tiny_shakespeare", splits, data_dir, download_dir
        )
    except (ImportError, ConnectionError) as error:
        text = _python_topics(by_byte)
        print(
            f"tiny_shakespeare is not available ({error}): using {text.name}; "
            "--text takes files of your own",
            file=sys.stderr,
        )
        return text
    content = b"".join(example["text"] for [example] in examples)
    return Text(name, content.decode("latin-1" if by_byte else "utf-8"))


def _python_topics(by_byte: bool) -> Text:
    """Return Python's language reference, as `help()` prints it."""
    from pydoc_data.topics import topics  # half a megabyte, seldom needed

    content = "\n".join(topics[name] for name in sorted(topics))
    if by_byte:
        content = content.encode().decode("latin-1")
    return Text(f"pydoc_data.topics of Python {platform.python_version()}", content)


def read_files(paths: Sequence[str | Path], *, by_byte: bool = False) -> Text:
    """Return the concatenated files; of a folder all files below it, sorted by path.

    Hidden files of a folder are left out. Files are UTF-8; a byte order mark is left
    out, and line ends become a line feed, as everywhere in Python. With `by_byte` they
    may be anything, and nothing is changed.

    Raises:
        ValueError: a file is empty, cannot be read or is not UTF-8; it is named.
    """
    contents = [read(Path(path), by_byte) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if not content:
            raise ValueError(f"{path}: there is no text in it")
    kind = OWN[by_byte]
    return Text(f"{kind}{', '.join(map(str, paths))}", "".join(contents))


def read_part(path: Path, option: str, *, by_byte: bool = False) -> str:
    """Return the content of a file or folder that validates or tests.

    Raises:
        ValueError: it cannot be read, is not UTF-8 or too short; the message has the
            `option` that names it.
    """
    try:
        content = read(path, by_byte)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from error
    if len(content) < SHORTEST_PART:
        raise ValueError(
            f"{option} {path}: {len(content)} characters are too few: at least "
            f"{SHORTEST_PART} are needed"
        )
    return content


def is_own(name: str) -> bool:
    """Return whether a text of this name is from `read_files`.

    >>> is_own("text: mine"), is_own("generated")
    (True, False)
    """
    return name.startswith(OWN)


def read(path: Path, by_byte: bool) -> str:
    """Return the content of a file or folder, as `read_files` does.

    Raises:
        ValueError: a file cannot be read or is not UTF-8.
    """
    if path.is_dir():
        # Nothing that is no file, such as a pipe, and no link that leads back.
        inside = [
            file
            for file in path.iterdir()
            if not file.name.startswith(".")
            and (file.is_file() or (file.is_dir() and not file.is_symlink()))
        ]
        return "".join(read(file, by_byte) for file in sorted(inside))
    return decode(read_bytes(path), str(path), by_byte)


def decode(content: bytes, name: str, by_byte: bool) -> str:
    """Return bytes as text in Unicode's form NFC with line feeds, or byte by byte.

    With `by_byte` there is a character for each byte.

    Raises:
        ValueError: they are not UTF-8; the message has `name`.
    """
    if by_byte:
        return content.decode("latin-1")
    text = decode_utf8(content, name, "save it as UTF-8, or train with --bytes")
    return nfc(text).replace("\r\n", "\n").replace("\r", "\n")


def pieces(text: str, size: int = 2**20) -> Iterator[str]:
    """Yield the text in parts of at most `size` characters.

    A list of its characters would take many times the memory of the text.

    >>> list(pieces("abcde", size=2))
    ['ab', 'cd', 'e']
    """
    return (text[start : start + size] for start in range(0, len(text), size))


def generate(count: int = 4000, *, seed: int = 0, spaced: bool = False) -> Text:
    r"""Return a text of sums of two digits, which a small model learns in seconds.

    `spaced` ones are lines of words.

    >>> generate(count=20).content
    '8+6=14. 5+2=7. 3+0=3. '
    >>> generate(count=20, spaced=True).content
    '8 + 6 = 14 .\n5 + 2 = 7 .\n'
    """
    form = "{} + {} = {} .\n" if spaced else "{}+{}={}. "
    rng = np.random.default_rng(seed)
    sums = []
    while sum(map(len, sums)) < count:
        a, b = rng.integers(10, size=2)
        sums.append(form.format(a, b, a + b))
    return Text("generated", "".join(sums))
