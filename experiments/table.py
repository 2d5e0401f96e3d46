"""The epochs of a run as a table for people, printed line by line as they end."""

NARROWEST = 7  # characters of a column


def header(line: dict[str, float]) -> str:
    """The two lines above the rows of lines like this one.

    >>> line = {"epoch": 1, "train_loss": 0.71234, "words_per_second": 123456.7}
    >>> print(header(line) + "\\n" + row(line))
               train       words
      epoch     loss  per second
          1   0.7123     123,457
    """
    tops, bottoms = zip(*map(_title, _shown(line)), strict=True)
    return f"{_align(line, tops)}\n{_align(line, bottoms)}"


def row(line: dict[str, float]) -> str:
    """The values of a line."""
    return _align(line, [_spell(name, line[name]) for name in _shown(line)])


def _shown(line: dict[str, float]) -> list[str]:
    return [name for name in line if _spell(name, line[name])]


def _spell(name: str, value: float) -> str:
    if name in ("epoch", "seconds") or name.endswith("per_second"):
        return f"{value:,.0f}"
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    if name.endswith("loss") or "nats" in name:
        return f"{value:.4f}"
    return ""  # there is more than one can read in metrics.jsonl


def _title(name: str) -> tuple[str, str]:
    top, _, bottom = name.partition("_")
    return (top, bottom.replace("_", " ")) if bottom else ("", top)


def _align(line: dict[str, float], cells) -> str:
    widths = [max(NARROWEST, *map(len, _title(name))) for name in _shown(line)]
    aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join(aligned)
