"""The cases of the suites: complete, named apart, of the sizes that are promised."""

import itertools
from dataclasses import replace

import pytest

from experiments.bench import imdb_workload
from experiments.bench.presets import FULL, QUICK, SMOKE
from experiments.bench.suites import LINEAR, VARIANTS, among, cases
from tests.bench.test_run import LAYERS

COUNTS = ["1 device", "2 devices", "4 devices", "8 devices"]


def test_a_ragged_batch_meets_the_same_batch_full():
    full, ragged = cases("layers", SMOKE)
    assert set(full.contenders) == {*LAYERS, *VARIANTS}
    assert set(ragged.contenders) == {*full.contenders, "jaxrnn, full rows"}
    assert (full.pictured, ragged.pictured) == (True, False)


@pytest.mark.parametrize(
    ("suite", "contenders"),
    [
        ("bidirectional", [*LAYERS, *VARIANTS]),
        (
            "imdb",
            [
                "jaxrnn, buckets",
                "jaxrnn, packed rows",
                "jaxrnn, plain padding",
                "torch padded",
                "torch packed",
            ],
        ),
        ("charlm", ["jaxrnn", "jaxrnn, bfloat16", "torch in one", "torch one by one"]),
        ("cells", ["lstm", "min-gru"]),
        (
            "recurrences",
            [
                "lstm",
                "memorax, min-gru",
                *(name + way for name in LINEAR for way in ("", ", scan")),
            ],
        ),
        ("growth", ["jaxrnn", "torch padded", "Flax"]),
        ("devices", [*(f"jaxrnn, {n}" for n in COUNTS), "torch padded"]),
        ("memory", ["jaxrnn", "jaxrnn, in chunks", "jaxrnn, scan", "Flax"]),
        ("compile", ["jaxrnn", "jaxrnn, scan"]),
    ],
)
def test_who_takes_part(suite, contenders):
    first = cases(suite, SMOKE)[0]
    assert sorted(first.contenders) == sorted(contenders)
    assert first.baseline in contenders


def test_recurrences_end_with_the_recurrence_alone():
    *_, layers, first, _, _, last = cases("recurrences", FULL)
    assert layers.section == "linear in the state, forward and backward"
    assert (first.name, last.name) == ("64 x 256 x 128", "1 x 16384 x 128")
    peers = ["associative_scan", "recurrentgemma", "recurrentgemma, associative"]
    assert [*last.contenders] == ["jaxrnn", "jaxrnn, one device", *peers]
    assert last.baseline == "jaxrnn"
    assert "memorax, min-gru" not in among(layers, ["recurrentgemma"]).contenders
    alone = among(last, ["memorax"]).contenders
    assert [*alone] == ["jaxrnn", "jaxrnn, one device", "associative_scan"]


def test_imdb_ends_with_an_epoch_and_charlm_with_texts():
    *_, epoch = cases("imdb", FULL)
    assert (epoch.name, [*epoch.contenders]) == ("22,500 reviews", ["jaxrnn"])
    _, *drawing = cases("charlm", FULL)
    assert [case.name for case in drawing] == [
        "1 x 300, hidden 512",
        "64 x 300, hidden 512",
    ]
    assert [*drawing[0].contenders] == ["jaxrnn", "torch one by one"]


def test_vocabularies_differ_and_the_lengths_of_reviews_do_not():
    _, case, _ = cases("imdb", replace(SMOKE, epoch=True))
    assert case.section == "train step, size of the vocabulary"
    assert [*case.contenders] == ["jaxrnn, 1,000 words", "jaxrnn, 20,000 words"]
    assert case.baseline == "jaxrnn, 1,000 words"
    lengths, tables = [], []
    for build in case.contenders.values():
        reviews, layout = build.args
        assert (build.func, layout) == (imdb_workload.train, "buckets")
        tables.append(reviews.settings.vocab)
        lengths.append([ids.size for ids in reviews.examples().ids])
    assert tables == [1_000, 20_000]
    assert lengths[0] == lengths[1]


def test_the_sizes_are_those_of_the_design():
    names = [case.name for case in cases("layers", FULL)]
    assert len(names) == 3 * 2 * 2 * 5
    assert names[:5] == [
        "32 x 256, 20 to 64",
        "32 x 256, 64 to 128",
        "64 x 40, 256 to 512",
        "32 x 256, 256 to 512",
        "64 x 128, 512 to 1024",
    ]
    growth = [case.name for case in cases("growth", FULL)]
    assert [growth[0], growth[5]] == ["128 x 128, 64 to 128", "4 x 4096, 64 to 128"]
    assert [growth[6], growth[11]] == ["8 x 128, 64 to 128", "256 x 128, 64 to 128"]
    assert growth[-1] == "32 x 128, 1024 to 1024"


@pytest.mark.parametrize("scale", [FULL, QUICK, SMOKE], ids=["full", "quick", "smoke"])
def test_cases_of_a_section_stand_together_and_have_names_of_their_own(scale):
    for suite in FULL.suites:
        listed = [(case.section, case.name) for case in cases(suite, scale)]
        assert len(set(listed)) == len(listed) > 0
        sections = [section for section, _ in itertools.groupby(listed, lambda c: c[0])]
        assert len(set(sections)) == len(sections)
