"""Files that a program writes and reads again: each appears whole or not at all."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import fields


def read(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        return fields.read_object(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it") from error


def write(path: Path, content: Any, option: str) -> None:
    """The file becomes JSON; `option` is what says where it is.

    Raises:
        ValueError: it cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "record.json"
    >>> write(path, {"seed": 0}, "--out")
    >>> read(path)
    {'seed': 0}
    """
    text = spell(content)
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"), option)


def spell(content: Any) -> str:
    """JSON as it stands in a file, for people too.

    >>> print(spell({"seed": 0}), end="")
    {
      "seed": 0
    }
    """
    return json.dumps(content, indent=2) + "\n"


def replace(path: Path, make: Callable[[Path], Any], option: str) -> None:
    """The file becomes what `make` writes to the path it is given.

    Raises:
        ValueError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        make(partial)
        partial.replace(path)
    except OSError as error:
        raise ValueError(unwritable(path, error, option)) from error


def unwritable(path: Path, error: OSError, option: str) -> str:
    """What to say of a path that cannot be written to.

    >>> unwritable(Path("runs"), OSError(28, "full"), "--out")
    'cannot write to runs (full): make room there, or give another --out'
    """
    room = "make room there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"cannot write to {path} ({error.strerror}): {room}give another {option}"
