"""Files that a program reads and writes: UTF-8 text, and JSON written atomically."""

import errno
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def decode_utf8(content: bytes, name: str, remedy: str) -> str:
    """Return UTF-8 bytes as text, without a byte order mark.

    Raises:
        ValueError: they are not UTF-8; the message has the position and the `remedy`.
    """
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}, line {line}: not UTF-8: byte 0x{content[error.start]:02x} "
            f"at offset {error.start}: {remedy}"
        ) from error


def read_json(path: Path, remedy: str = "remove it") -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no such file.

    Raises:
        ValueError: it is damaged; the message has the `remedy`.
    """
    if not path.exists():
        return None
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


def write_json(path: Path, content: Any, option: str) -> None:
    """Write a JSON file, atomically.

    Raises:
        ValueError: it cannot be written; the message has the `option` that names it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "record.json"
    >>> write_json(path, {"seed": 0}, "--out")
    >>> read_json(path)
    {'seed': 0}
    """
    text = format_json(content)
    replace_file(
        path, lambda partial: partial.write_text(text, encoding="utf-8"), option
    )


def format_json(content: Any) -> str:
    """Return JSON as it is written to files, indented.

    >>> print(format_json({"seed": 0}), end="")
    {
      "seed": 0
    }
    """
    return json.dumps(content, indent=2) + "\n"


def replace_file(path: Path, make: Callable[[Path], Any], option: str) -> None:
    """Replace a file atomically by what `make` writes to the path it is given.

    A link stays one, and what is no file, such as a pipe, is written to as it is.

    Raises:
        ValueError: it cannot be written; the message has the `option` that names it.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            make(target)
            return
        partial = target.with_name(f"{target.name}.partial")
        try:
            make(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(unwritable_message(path, error, option)) from error


def unwritable_message(path: Path, error: OSError, option: str) -> str:
    """Return the message for a path that cannot be written to.

    >>> unwritable_message(Path("runs"), OSError(28, "full"), "--out")
    'cannot write to runs (full): make room there, or give another --out'
    """
    room = "make room there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"cannot write to {path} ({error.strerror}): {room}give another {option}"


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: the text is not JSON, or not an object.

    >>> parse_object('{"seed": 0}')
    {'seed': 0}
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def describe_differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return the differences between two objects, as a message.

    >>> describe_differences({"seed": 0, "layers": 1}, {"seed": 2, "layers": 1})
    'seed 0, not 2'
    """
    names = sorted(
        name for name in found.keys() | wanted if found.get(name) != wanted.get(name)
    )
    return ", ".join(
        f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in names
    )


def matches_type(value: Any, hint: Any) -> bool:
    """Return whether a value from JSON has the type of a dataclass field.

    >>> matches_type([1, 2], tuple[int, ...]), matches_type(True, int)
    (True, False)
    """
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return value in arguments
    if get_origin(hint) is tuple:  # of any length
        is_list = isinstance(value, list)
        return is_list and all(matches_type(item, arguments[0]) for item in value)
    if get_origin(hint) is types.UnionType:
        return any(matches_type(value, argument) for argument in arguments)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
