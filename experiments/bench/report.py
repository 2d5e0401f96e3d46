"""Results of `experiments.bench`: rows of a table, and their ratios for a picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from experiments.bench.suites import OURS, VARIANTS, Case
from experiments.bench.timing import Timing, Work

Panels = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Row:
    """The result of one contender in one case; all numbers are None if it was skipped.

    Seconds, or bytes where `quantity` says so: the median of a step, the quartiles, and
    the first call, which compiles. A step processes `units` units on average; `ratio`
    is the median per unit relative to that of `baseline`. This library on one of the
    devices or on another backend than the default is not pictured.
    """

    suite: str
    section: str
    case: str
    contender: str
    skipped: str | None = None
    quantity: str = "seconds"
    median: float | None = None
    lower: float | None = None
    upper: float | None = None
    first: float | None = None
    rounds: int | None = None
    units: float | None = None
    unit: str = ""
    baseline: str | None = None
    ratio: float | None = None
    pictured: bool = False


def score(
    case: Case,
    works: Mapping[str, Work],
    timings: Mapping[str, Timing],
    skipped: Mapping[str, str],
) -> list[Row]:
    """A row for each contender of the case, with a reason for those skipped.

    Ratios are to the case's baseline, or where that was skipped to the first contender
    that was not.
    """
    baseline = next((n for n in (case.baseline, *timings) if n in timings), None)
    cost = {name: timings[name].median / works[name].units for name in timings}
    rows = []
    for name in case.contenders:
        place = (case.suite, case.section, case.name, name)
        if name in skipped:
            rows.append(Row(*place, skipped=skipped[name], quantity=case.quantity))
            continue
        work, timing = works[name], timings[name]
        lower, upper = timing.quartiles
        rows.append(
            Row(
                *place,
                quantity=case.quantity,
                median=timing.median / work.steps,
                lower=lower / work.steps,
                upper=upper / work.steps,
                first=timing.first,
                rounds=len(timing.rounds),
                units=work.units / work.steps,
                unit=case.unit,
                baseline=baseline,
                ratio=cost[name] / cost[baseline] if baseline else None,
                pictured=case.pictured and name not in VARIANTS,
            )
        )
    return rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each section.

    >>> [table.title for table in tables([Row("layers", "LSTM", "64", "jaxrnn")])]
    ['layers: LSTM']
    """
    sections: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.skipped is None:
            sections.setdefault((row.suite, row.section), []).append(row)
    return [_table(": ".join(key), section) for key, section in sections.items()]


def _table(title: str, rows: Sequence[Row]) -> Table:
    in_bytes, unit = rows[0].quantity == "bytes", rows[0].unit
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("case", no_wrap=True)
    table.add_column("contender", no_wrap=True)
    numbers = ["MB"] if in_bytes else ["ms", "quartiles"]
    numbers.append(f"/ {rows[0].baseline}")
    if unit:
        numbers.append(f"bytes/{unit}" if in_bytes else f"{unit}/s")
    if not in_bytes:
        numbers.append("first, s")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if last is not None and row.case != last:
            table.add_section()
        table.add_row(row.case if row.case != last else "", *_cells(row))
        last = row.case
    return table


def _cells(row: Row) -> list[str]:
    median, units = row.median or 0.0, row.units or 1
    name = f"[bold]{row.contender}[/]" if row.contender == OURS else row.contender
    ratio = f"{row.ratio or 0:.2f}"
    if row.quantity == "bytes":
        return [name, f"{median / 1e6:,.1f}", ratio, f"{median / units:,.0f}"]
    quartiles = f"{_ms(row.lower)} - {_ms(row.upper)}"
    rate = [f"{units / median:,.0f}"] if row.unit and median else []
    return [name, _ms(median), quartiles, ratio, *rate, f"{row.first or 0:.1f}"]


def _ms(seconds: float | None) -> str:
    """Three digits.

    >>> _ms(0.0012345), _ms(0.12345), _ms(12.345)
    ('1.23', '123', '12,345')
    """
    ms = 1000 * (seconds or 0.0)
    digits = 2 if ms < 10 else 1 if ms < 100 else 0
    return f"{ms:,.{digits}f}"


def absences(rows: Iterable[Row]) -> list[str]:
    """A line for each contender and reason it was skipped for.

    >>> absences([Row("layers", "LSTM", f"{n}", "Haiku", "no lengths") for n in (1, 2)])
    ['skipped Haiku in 2 cases: no lengths']
    """
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.skipped is not None:
            key = (row.contender, row.skipped)
            counts[key] = counts.get(key, 0) + 1
    return [
        f"skipped {name} in {count} case{'s' if count > 1 else ''}: {reason}"
        for (name, reason), count in counts.items()
    ]


def panels(rows: Iterable[Row]) -> Panels:
    """The ratios to draw: by section, case and contender.

    >>> panels([Row("layers", "LSTM", "64", "Flax", ratio=2.0, pictured=True,
    ...             baseline="torch")])
    {'LSTM, time relative to torch': {'64': {'Flax': 2.0}}}
    """
    found: Panels = {}
    for row in rows:
        if row.pictured and row.ratio is not None:
            title = f"{row.section}, time relative to {row.baseline}"
            bars = found.setdefault(title, {}).setdefault(row.case, {})
            bars[row.contender] = row.ratio
    return found


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as JSON has them; `Row(**entry)` is the way back."""
    return [vars(row) for row in rows]
