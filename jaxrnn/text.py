"""From text to token ids and back: three tokenizers and the vocabulary.

Python strings and NumPy arrays only, no JAX.
"""

import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np

from jaxrnn._validation import as_int32, check_min, check_within

PAD = "<pad>"
UNK = "<unk>"
EOS = "<eos>"

_BREAK = re.compile(r"<br\s*/?>")


def word_tokens(text: str) -> list[str]:
    """The lower-cased words and numbers of a text, in order and in Unicode's form NFC.

    A word is a run of letters and digits with their combining marks: vowel signs,
    accents, vowel points. An apostrophe between two of them belongs to it ("don't"),
    and a typographic one becomes a plain one; so does a zero-width joiner. A point,
    comma or slash between digits belongs to the number ("8/10", "1,000"). HTML line
    breaks and everything else, hyphens and punctuation included, only separate.

    Where a script has no blanks between words, as Chinese, Japanese and Thai, a token
    is what stands between two separators: a phrase, or a whole sentence. Let a word
    segmenter put blanks in first, or take `char_tokens`.

    Raises:
        TypeError: the text is not a string.

    >>> word_tokens("Don't miss it!<br /><br />A well-made film: 8/10.")
    ["don't", 'miss', 'it', 'a', 'well', 'made', 'film', '8/10']
    >>> word_tokens("हिन्दी फ़िल्म, 面白い映画です。")
    ['हिन्दी', 'फ़िल्म', '面白い映画です']
    """
    return _word().findall(_lowered(text))


@functools.cache
def _word() -> re.Pattern[str]:
    """The pattern of a word or number."""
    # A number with inner separators is one token, as ratings ("8/10") tell much about a
    # review; `[^\W_]` is a letter or digit of any script. `re` knows no Unicode
    # categories; there are no marks outside of these planes.
    planes = [*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)]
    marks = "".join(
        character
        for character in map(chr, planes)
        if unicodedata.category(character).startswith("M")
    )
    letters = rf"[^\W_]+(?:[{marks}]+[^\W_]*)*"
    joiners = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
    return re.compile(rf"\d+(?:[.,/]\d+)+|{letters}(?:['{joiners}]{letters})*")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each of the `word_tokens` begins and ends in the text itself.

    Raises:
        TypeError: the text is not a string.

    >>> ["A well-made film."[i:j] for i, j in word_spans("A well-made film.")]
    ['A', 'well', 'made', 'film']
    """
    lowered = _lowered(text)
    # Of each character of `lowered`, the part of the text that it comes from: a dotted
    # capital I becomes two of them, a letter and its accents one.
    places = [
        part for part in _normalized_parts(text) for _ in _lower(text[slice(*part)])
    ]
    return [
        (places[match.start()][0], places[match.end() - 1][1])
        for match in _word().finditer(lowered)
    ]


def _normalized_parts(text: str) -> Iterator[tuple[int, int]]:
    """Where a text can be cut with no effect on its form NFC."""
    start = 0
    for stop in range(1, len(text) + 1):
        if stop == len(text) or _is_separate(text[start:stop], text[stop]):
            yield start, stop
            start = stop


def _is_separate(before: str, character: str) -> bool:
    if character < "\N{COMBINING GRAVE ACCENT}":  # The first that combines.
        return True
    if unicodedata.combining(character):
        return False
    return nfc(before + character) == nfc(before) + nfc(character)


def _lowered(text: str) -> str:
    """Lower-cased, with blanks for line breaks and plain apostrophes."""
    text = _lower(_require_text(text))
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return _BREAK.sub(lambda found: " " * len(found.group()), text)


def _lower(text: str) -> str:
    # A capital of several characters may be one in lower case.
    return nfc(nfc(text).lower())


def char_tokens(text: str) -> list[str]:
    """Every character of a text in Unicode's form NFC, none dropped.

    A letter and its accents are the same tokens whether they were typed as one
    character or as several.

    Raises:
        TypeError: the text is not a string.

    >>> char_tokens("Hi!")
    ['H', 'i', '!']
    >>> char_tokens("e\N{COMBINING ACUTE ACCENT}")
    ['é']
    """
    return list(nfc(text))


def whitespace_tokens(text: str) -> list[str]:
    r"""What stands between white space in a text, in Unicode's form NFC; lines end.

    Each line feed is a token, too: `EOS`. Nothing is dropped or lower-cased, and
    punctuation is part of a word unless there is a space before it, as in the files of
    Penn Treebank and WikiText, which are read just so.

    Raises:
        TypeError: the text is not a string.

    >>> whitespace_tokens("no it was n't <unk> \n mr. <unk> is N")
    ['no', 'it', 'was', "n't", '<unk>', '<eos>', 'mr.', '<unk>', 'is', 'N']
    """
    tokens = []
    for line in nfc(text).split("\n"):
        tokens += line.split()
        tokens.append(EOS)
    tokens.pop()  # Behind the last line feed there is no other one.
    return tokens


def nfc(text: str) -> str:
    """A text in Unicode's composed form NFC, in which equal texts are equal strings.

    Raises:
        TypeError: the text is not a string.

    >>> nfc("e\N{COMBINING ACUTE ACCENT}") == "é"
    True
    """
    return unicodedata.normalize("NFC", _require_text(text))


def _require_text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(
            f"text must be a str, got {type(text).__name__}: decode bytes first"
        )
    return text


@dataclass(frozen=True, repr=False)
class Vocab:
    """A vocabulary: token strings, whose ids are their positions in `tokens`.

    With the usual specials `PAD` has id 0 and `UNK` id 1.

    Attributes:
        tokens: all of them, in the order of their ids.

    Raises:
        TypeError: a token is not a string.
        ValueError: there are no tokens, or one occurs twice.

    >>> vocab = Vocab((PAD, UNK, "good", "film"))
    >>> vocab.encode(["good", "grief"]).tolist(), vocab.decode([3, 2])
    ([2, 1], ['film', 'good'])
    """

    tokens: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "tokens", tuple(_require_tokenized(self.tokens)))
        _require_strings(self.tokens)
        if not self.tokens:
            raise ValueError("a vocabulary needs at least one token, got none")
        if len(self._ids) < len(self.tokens):
            token = Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"token {token!r} occurs twice in the vocabulary")

    @classmethod
    def build(
        cls,
        sequences: Iterable[Sequence[str]],
        *,
        max_size: int | None = None,
        min_count: int = 1,
        specials: Sequence[str] = (PAD, UNK),
    ) -> "Vocab":
        """The specials, then the most frequent tokens of a tokenized corpus.

        Equal counts are in the order of the tokens themselves, so the result does
        not depend on the order of the corpus. A special found in the corpus keeps
        its place among the specials. `max_size` includes the specials.

        Raises:
            TypeError: a sequence is a string (not yet tokenized), so are the specials,
                or a token is not.
            ValueError: `min_count` is below 1, `max_size` leaves room for the
                specials only, or no token is left to take.

        >>> Vocab.build([["to", "be"], ["not", "to"]]).tokens
        ('<pad>', '<unk>', 'to', 'be', 'not')
        """
        min_count = check_min(1, min_count=min_count)
        if isinstance(specials, str) or not isinstance(specials, Iterable):
            raise TypeError(f"specials must be a sequence of tokens, got {specials!r}")
        specials = tuple(specials)
        if max_size is not None and check_min(1, max_size=max_size) <= len(specials):
            raise ValueError(
                f"max_size {max_size} leaves no room beside the {len(specials)} "
                f"specials: at least {len(specials) + 1} is needed"
            )
        counts = Counter()
        for tokens in sequences:
            counts.update(_require_tokenized(tokens))
        _require_strings(counts)
        for special in specials:
            del counts[special]
        if not counts:
            raise ValueError("the corpus is empty: it holds not one token")
        if min_count > max(counts.values()):
            raise ValueError(
                f"no token occurs min_count = {min_count} times, the most frequent "
                f"one {max(counts.values())} times: lower min_count"
            )
        frequent = [token for token, count in counts.items() if count >= min_count]
        frequent.sort(key=lambda token: (-counts[token], token))
        return cls((*specials, *frequent)[:max_size])

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Vocab":
        """The vocabulary that `save` wrote.

        Raises:
            ValueError: the file is empty or not UTF-8, or a line (it is named) is not
                one JSON string or repeats another.

        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/vocab.txt"
        >>> Vocab(("to", "be")).save(path)
        >>> Vocab.load(path) == Vocab(("to", "be"))
        True
        """
        data = Path(path).read_bytes()
        try:
            lines = data.decode().removesuffix("\n").split("\n") if data else []
        except UnicodeDecodeError as error:
            number = data.count(b"\n", 0, error.start) + 1
            raise ValueError(f"{path}, line {number}: not UTF-8") from error
        if not lines:
            raise ValueError(f"{path}: the vocabulary file is empty")
        line_of: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            token = _parse_string(line)
            if token is None:
                raise ValueError(
                    f"{path}, line {number}: not a JSON string: {line[:80]!r}"
                )
            if token in line_of:
                raise ValueError(
                    f"{path}, line {number}: token {token!r} is already on line "
                    f"{line_of[token]}"
                )
            line_of[token] = number
        return cls(tuple(line_of))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes one JSON string a line, in ASCII, so that any token survives.

        Raises:
            ValueError: a token has both halves of a surrogate pair, one after the
                other, which JSON takes for one character.
            OSError: the file cannot be written.

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "vocab.txt")
        >>> Vocab(("to", "be", "a b")).save(path)
        >>> path.read_text().splitlines()
        ['"to"', '"be"', '"a b"']
        """
        lines = [json.dumps(token) for token in self.tokens]
        for token, line in zip(self.tokens, lines, strict=True):
            if json.loads(line) != token:
                raise ValueError(f"token {token!r} has a surrogate pair: join it")
        text = "".join(f"{line}\n" for line in lines)
        Path(path).write_text(text, encoding="ascii", newline="\n")

    def encode(self, tokens: Sequence[str]) -> np.ndarray:
        """The int32 ids of tokens; an unknown token has the id of `UNK`.

        Raises:
            TypeError: `tokens` is a string (not yet tokenized).
            ValueError: a token is unknown and the vocabulary has no `UNK`.

        >>> Vocab.build([["to", "be"]]).encode(["to", "see"])
        array([3, 1], dtype=int32)
        """
        id_of, unknown = self._ids.get, self._ids.get(UNK)
        ids = [id_of(token, unknown) for token in _require_tokenized(tokens)]
        if unknown is None and None in ids:
            raise ValueError(
                f"token {tokens[ids.index(None)]!r} is not among the {len(self)} of "
                f"the vocabulary, which has no {UNK!r} to stand for it"
            )
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The tokens of ids, padding and unknown ones included.

        Raises:
            TypeError: the ids are not integers.
            ValueError: the ids are not one sequence, or one is outside the vocabulary.

        >>> Vocab.build([["to", "be"]]).decode([3, 2, 1])
        ['to', 'be', '<unk>']
        """
        array = as_int32(1, ids=np.asarray(ids))
        check_within(0, len(self) - 1, ids=array)
        return [self.tokens[i] for i in array.tolist()]

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<Vocab of {len(self)} tokens>"

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}


def _require_strings(tokens: Iterable[str]) -> None:
    for token in tokens:
        if not isinstance(token, str):
            raise TypeError(f"tokens must be strings, got {token!r}")


def _require_tokenized(tokens: Sequence[str]) -> Sequence[str]:
    if isinstance(tokens, str):  # would silently pass for a sequence of characters
        raise TypeError(
            f"expected a sequence of tokens, got the string {tokens[:40]!r}: split it "
            "with word_tokens or char_tokens first"
        )
    if not isinstance(tokens, Iterable):
        raise TypeError(f"expected a sequence of tokens, got {tokens!r}")
    return tokens


def _parse_string(line: str) -> str | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: "[[[[[[…"
        return None
    return value if isinstance(value, str) else None
