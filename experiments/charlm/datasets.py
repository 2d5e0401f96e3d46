"""Texts to model: tiny shakespeare, a person's own files, what Python carries.

A text is a string. Taken as bytes, each of its characters stands for one byte, the one
with the same number (Latin-1). Nothing here knows ids, batches or JAX.

Reference: Karpathy (2015), "The Unreasonable Effectiveness of Recurrent Neural
Networks", whose excerpt of Shakespeare's plays this is.
"""

import hashlib
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.harness import tfds_without_tf
from experiments.harness.files import decode_utf8, read_bytes
from jaxrnn.text import nfc

OWN = ("text: ", "bytes: ")  # how the name of a person's own begins
SHORTEST = 20  # characters: a tenth of them are one to read and one to predict


@dataclass(frozen=True)
class Text:
    """A text under the name that every result obtained on it must carry.

    Raises:
        ValueError: there is nothing to learn: it is too short, or all one character.
    """

    name: str
    content: str

    def __post_init__(self):
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
        """The first nine tenths to train on and the last tenth to validate.

        >>> Text("digits", "0123456789" * 2).split()
        ('012345678901234567', '89')
        """
        border = int(0.9 * len(self.content))
        return self.content[:border], self.content[border:]

    @property
    def fingerprint(self) -> str:
        """What tells one text from another in a line."""
        digest = hashlib.sha256(self.content.encode()).hexdigest()
        return f"{len(self.content)} characters, {digest[:12]}"


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
    """Python's language reference, as `help()` prints it."""
    from pydoc_data.topics import topics  # half a megabyte, seldom needed

    content = "\n".join(topics[name] for name in sorted(topics))
    if by_byte:
        content = content.encode().decode("latin-1")
    return Text(f"pydoc_data.topics of Python {platform.python_version()}", content)


def read_files(paths: Sequence[str | Path], *, by_byte: bool = False) -> Text:
    """The files one after the other; of a folder every file below it in the order of
    their paths, hidden ones aside.

    They are UTF-8; a byte order mark is left out, and line ends become a line feed, as
    everywhere in Python. By byte they are anything, and nothing is changed.

    Raises:
        ValueError: with the path: there is no text in it, or a file cannot be read or
            is not UTF-8.
    """
    contents = [read(Path(path), by_byte) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if not content:
            raise ValueError(f"{path}: there is no text in it")
    kind = OWN[by_byte]
    return Text(f"{kind}{', '.join(map(str, paths))}", "".join(contents))


def is_own(name: str) -> bool:
    """Whether a text of this name is one of `read_files`.

    >>> is_own("text: mine"), is_own("generated")
    (True, False)
    """
    return name.startswith(OWN)


def read(path: Path, by_byte: bool) -> str:
    """What is in a file, or in all files below a folder, as `read_files` has it.

    Raises:
        ValueError: a file cannot be read or is not UTF-8.
    """
    if path.is_dir():
        inside = [file for file in path.iterdir() if not file.name.startswith(".")]
        return "".join(read(file, by_byte) for file in sorted(inside))
    return decode(read_bytes(path), str(path), by_byte)


def decode(content: bytes, name: str, by_byte: bool) -> str:
    """The text that bytes are, in Unicode's form NFC, lines ending in a line feed; or
    a character for each byte.

    Raises:
        ValueError: they are not UTF-8; `name` says what they are of.
    """
    if by_byte:
        return content.decode("latin-1")
    text = decode_utf8(content, name, "save it as UTF-8, or train with --bytes")
    return nfc(text).replace("\r\n", "\n").replace("\r", "\n")


def pieces(text: str, size: int = 2**20) -> Iterator[str]:
    """The text in parts of at most so many characters: a list of all of them would take
    many times the memory of the text.

    >>> list(pieces("abcde", size=2))
    ['ab', 'cd', 'e']
    """
    return (text[start : start + size] for start in range(0, len(text), size))


def generate(count: int = 4000, *, seed: int = 0) -> Text:
    """Sums of two digits, which a small model learns in seconds.

    >>> generate(count=20).content
    '8+6=14. 5+2=7. 3+0=3. '
    """
    rng = np.random.default_rng(seed)
    sums = []
    while sum(map(len, sums)) < count:
        a, b = rng.integers(10, size=2)
        sums.append(f"{a}+{b}={a + b}. ")
    return Text("generated", "".join(sums))
