"""Results of a suite of `experiments.bench` on disk, merged with earlier ones.

    results.json      versions, machine and settings, and all rows
    ratios.png        a bar chart of the ratios, if a case has any to draw

Only results of the same versions, machine and settings are merged.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench import report
from experiments.bench.report import Row
from experiments.harness.files import describe_differences, read_json, write_json
from experiments.harness.plots import plot_bars

About = dict[str, dict[str, Any]]  # versions, machine, settings


def write(path: Path, about: About, rows: Sequence[Row]) -> None:
    """Writes the rows, replacing those of the same case and contender.

    Raises:
        ValueError: as `read`, or they cannot be written.
    """
    path.mkdir(exist_ok=True)
    merged = {
        (row.section, row.case, row.contender): row
        for row in (*read(path, about), *rows)
    }
    record = {**about, "rows": report.as_json(merged.values())}
    write_json(path / "results.json", record, "--out")
    panels, picture = report.panels(merged.values()), path / "ratios.png"
    if panels:
        title = f"{path.name}, on {about['machine']['cores']} CPU cores"
        plot_bars(picture, title, panels)
    else:
        picture.unlink(missing_ok=True)


def read(path: Path, about: About) -> list[Row]:
    """The rows on disk; none if there is no file.

    Raises:
        ValueError: the file is damaged, or of other versions, machine or settings.
    """
    file = path / "results.json"
    found = read_json(file)
    if found is None:
        return []
    try:
        rows = [Row(**row) for row in found["rows"]]
        before = _flat({name: found[name] for name in about})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): remove it") from error
    if before != _flat(about):
        raise ValueError(
            f"{file} was measured with other versions or settings "
            f"({describe_differences(before, _flat(about))}): give another --out, or "
            "remove it"
        )
    return rows


def _flat(about: About) -> dict[str, Any]:
    return {name: value for part in about.values() for name, value in part.items()}
