"""Files that a person gives, and what to say where they cannot be read."""

from pathlib import Path


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def decode_utf8(content: bytes, name: str, remedy: str) -> str:
    """The text that bytes are, without a byte order mark.

    Raises:
        ValueError: they are not UTF-8: where, and the `remedy`.
    """
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}, line {line}: not UTF-8: byte 0x{content[error.start]:02x} "
            f"at offset {error.start}: {remedy}"
        ) from error
