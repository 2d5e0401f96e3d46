"""Rows, ratios and tables, on numbers that are easy to check."""

import io
import json

import pytest
from rich.console import Console

from experiments.bench import report as bench_report
from experiments.bench.report import Row
from experiments.bench.suites import Case
from experiments.bench.timing import Timing, Work

CONTENDERS = ("jaxrnn", "torch padded", "Haiku")
TIMINGS = {
    "jaxrnn": Timing(3.0, (0.25, 0.5, 1.0)),
    "torch padded": Timing(1.0, (1.0, 2.0, 2.0)),
}


def score(
    timings=TIMINGS,
    units=(1, 1),
    contenders=CONTENDERS,
    skipped="not here",
    steps=1,
    **options,
):
    builders = dict.fromkeys(contenders, lambda: Work(lambda: None))
    case = Case("layers", "LSTM", "32 x 256", builders, **options)
    works = {
        name: Work(lambda: None, count, steps)
        for name, count in zip(timings, units, strict=True)
    }
    absent = {name: skipped for name in contenders if name not in timings}
    return bench_report.score(case, works, timings, absent)


def text(rows):
    console = Console(file=io.StringIO(), width=140)
    for table in bench_report.tables(rows):
        console.print(table)
    return console.file.getvalue()


def test_every_contender_has_a_row_with_its_numbers_or_the_reason():
    ours, torch, haiku = score()
    place = ("layers", "LSTM", "32 x 256")
    assert ours == Row(
        *place, "jaxrnn", median=0.5, lower=0.375, upper=0.75, first=3.0, rounds=3,
        units=1, baseline="torch padded", ratio=0.25, pictured=True,
    )  # fmt: skip
    assert (torch.contender, torch.median, torch.ratio) == ("torch padded", 2.0, 1.0)
    assert haiku == Row(*place, "Haiku", skipped="not here")


def test_ratios_are_of_the_time_for_a_unit_of_work():
    ours, torch, _ = score(units=(2, 16), unit="words")
    assert (ours.ratio, torch.ratio) == (0.25 / 0.125, 1.0)
    assert (ours.units, ours.unit) == (2, "words")


def test_times_and_units_are_of_one_step():
    ours, torch, _ = score(units=(40, 80), unit="words", steps=4)
    assert (ours.median, ours.lower, ours.upper) == (0.125, 0.09375, 0.1875)
    assert (ours.first, ours.units, torch.units) == (3.0, 10.0, 20.0)
    assert ours.ratio == (0.5 / 40) / (2.0 / 80)


def test_without_the_baseline_the_first_one_there_takes_its_place():
    ours, torch, haiku = score({"jaxrnn": TIMINGS["jaxrnn"]}, units=(1,))
    assert (ours.baseline, ours.ratio) == ("jaxrnn", 1.0)
    assert torch.skipped == haiku.skipped == "not here"


def test_with_nobody_there_are_only_reasons():
    assert [row.skipped for row in score({}, units=())] == ["not here"] * 3


def test_rows_survive_json():
    rows = score()
    found = json.loads(json.dumps(bench_report.as_json(rows)))
    assert [Row(**entry) for entry in found] == rows


def test_a_table_shows_milliseconds_quartiles_ratio_rate_and_first_call():
    lines = text(score(units=(20, 10), unit="words")).splitlines()
    assert lines[0].split() == ["layers:", "LSTM"]
    head = "case contender ms quartiles / torch padded words/s first, s"
    assert head.split() == next(line for line in lines if "case" in line).split()
    [ours] = [line for line in lines if "jaxrnn" in line]
    spelled = "32 x 256 jaxrnn 500 375 - 750 0.12 40 3.0"
    assert ours.split() == spelled.split()
    [torch] = [line for line in lines if "1.00" in line]
    spelled = "torch padded 2,000 1,500 - 2,000 1.00 5 1.0"
    assert torch.split() == spelled.split()
    assert not any("Haiku" in line for line in lines)


def test_a_table_of_bytes_has_no_milliseconds():
    timings = {"jaxrnn": Timing(0.0, (3e6,)), "Flax": Timing(0.0, (6e6,))}
    rows = score(
        timings, (256, 256), ("jaxrnn", "Flax"), baseline="Flax", unit="step",
        quantity="bytes",
    )  # fmt: skip
    lines = text(rows).splitlines()
    [head] = [line for line in lines if "case" in line]
    assert head.split() == ["case", "contender", "MB", "/", "Flax", "bytes/step"]
    [ours] = [line for line in lines if "jaxrnn" in line]
    assert ours.split() == ["32", "x", "256", "jaxrnn", "3.0", "0.50", "11,719"]


def test_there_is_a_table_for_each_section():
    rows = [Row("layers", s, c, "jaxrnn") for s in ("LSTM", "GRU") for c in "ab"]
    rows.append(Row("growth", "LSTM", "a", "jaxrnn"))
    titles = [table.title for table in bench_report.tables(rows)]
    assert titles == ["layers: LSTM", "layers: GRU", "growth: LSTM"]


def test_who_is_absent_is_named_once_for_each_reason():
    rows = [*score(), *score(), *score(skipped="no lengths")]
    assert bench_report.absences(rows) == [
        "skipped Haiku in 2 cases: not here",
        "skipped Haiku in 1 case: no lengths",
    ]


@pytest.mark.parametrize("pictured", [True, False])
def test_panels_have_the_ratios_of_pictured_cases(pictured):
    bars = {"jaxrnn": 0.25, "torch padded": 1.0}
    expected = {"LSTM, time relative to torch padded": {"32 x 256": bars}}
    found = bench_report.panels(score(pictured=pictured))
    assert found == (expected if pictured else {})


def test_panels_have_this_library_as_it_is_used_alone():
    timings = dict.fromkeys(
        ["jaxrnn", "jaxrnn, one device", "jaxrnn, scan", "torch padded"],
        Timing(0.0, (1.0,)),
    )
    rows = score(timings, (1, 1, 1, 1), tuple(timings))
    [[(_, bars)]] = [panel.items() for panel in bench_report.panels(rows).values()]
    assert bars == {"jaxrnn": 1.0, "torch padded": 1.0}
    assert len(rows) == 4
