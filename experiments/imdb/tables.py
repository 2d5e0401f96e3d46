"""Tables of texts: CSV files read and written, columns found by name."""

import codecs
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.harness.files import decode_utf8, read_bytes, replace_file

DELIMITERS = (",", ";", "\t")
# What the columns are called where no option names them.
COLUMNS = {
    "text": ("text", "review", "sentence", "comment", "content"),
    "label": ("label", "sentiment", "class", "category", "target"),
}


@dataclass(frozen=True)
class Table:
    """The header and the rows of a CSV file, each row with the line it begins on."""

    path: Path
    delimiter: str
    header: list[str]
    rows: list[tuple[int, list[str]]]

    def find(self, role: str, name: str | None) -> int:
        """The index of a column: called `name`, or as `COLUMNS[role]` if that is None.

        Case and surrounding spaces do not matter.

        Raises:
            ValueError: there is none, or more than one.
        """
        wanted = COLUMNS[role] if name is None else (name,)
        found = _matching(self.header, wanted)
        if len(found) == 1:
            return found[0]
        header = ",".join(self.header)
        if name is not None:
            raise ValueError(
                f"{self.path}, line 1: --{role}-column {name!r:.40} is "
                f"{'in no' if not found else 'in more than one'} column, the header is "
                f"{header[:80]!r}"
            )
        names, count = wanted, "no"
        if found:
            names, count = tuple(self.header[k] for k in found), "more than one"
        raise ValueError(
            f"{self.path}, line 1: {count} {role} column ({', '.join(names)}), the "
            f"header is {header[:80]!r}: name the column with --{role}-column"
        )


def read_table(path: str | Path) -> Table:
    """The table in a CSV file: UTF-8, with a header, blank lines left out.

    The delimiter is the one of `DELIMITERS` by which the header has columns for text
    and label, or else the most columns. Quotes are those of the csv module.

    Raises:
        ValueError: with file, line and value: the file cannot be read, is not UTF-8, a
            row has another number of columns than the header, or a field is longer than
            the csv module allows (131,072 characters).
    """
    path = Path(path)
    content = read_bytes(path)
    decoded = decode_utf8(content, str(path), save_as_utf8(content))
    delimiter = _sniff(decoded)
    reader = csv.reader(
        io.StringIO(decoded, newline=""), delimiter=delimiter, strict=True
    )
    line, rows = 1, []
    try:
        header = [name.strip() for name in _first_row(reader)]
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}, line {line}: {len(row)} columns, not {len(header)}: "
                    f"{delimiter.join(row)[:40]!r}: quote texts with {delimiter!r}"
                )
            if row:  # not a blank line
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}: is a quote there not closed?"
        ) from error
    return Table(path, delimiter, header, rows)


def write_table(
    path: Path, table: Table, names: Sequence[str], columns: Sequence[Sequence[str]]
) -> None:
    """Writes the table with columns of these names added on the right.

    Raises:
        ValueError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=table.delimiter, lineterminator="\n")
    writer.writerow([*table.header, *names])
    for (_, row), *values in zip(table.rows, *columns, strict=True):
        writer.writerow([*row, *values])
    content = text.getvalue().encode()
    replace_file(path, lambda partial: partial.write_bytes(content), "--out")


def save_as_utf8(content: bytes) -> str:
    """What to do with a file that is not UTF-8, with the encoding that it may have.

    >>> save_as_utf8("café".encode("cp1252"))
    'save the file as UTF-8 (it may be Windows-1252)'
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "save the file as UTF-8 (it begins as UTF-16 does)"
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        return "save the file as UTF-8"
    return "save the file as UTF-8 (it may be Windows-1252)"


def _sniff(decoded: str) -> str:
    def suitability(delimiter: str) -> tuple[int, int]:
        lines = io.StringIO(decoded, newline="")
        try:
            header = _first_row(csv.reader(lines, delimiter=delimiter))
        except csv.Error:
            return 0, 0
        known = sum(bool(_matching(header, names)) for names in COLUMNS.values())
        return known, len(header)

    return max(DELIMITERS, key=suitability)  # the first, where they are as good


def _first_row(rows: Iterable[list[str]]) -> list[str]:
    """The first that is not a blank line."""
    return next((row for row in rows if row), [])


def _matching(header: Sequence[str], names: Sequence[str]) -> list[int]:
    wanted = {name.strip().casefold() for name in names}
    return [k for k, name in enumerate(header) if name.strip().casefold() in wanted]
