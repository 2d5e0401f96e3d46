"""The suites of cases that `experiments.bench` measures.

A case is one piece of work in several implementations, the contenders. They are built
only when the case is run, so that the arrays of one case are freed before those of the
next are allocated.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax.numpy as jnp

from experiments.bench import (
    charlm_workload,
    frameworks,
    imdb_workload,
    recurrences,
)
from experiments.bench.frameworks import Task
from experiments.bench.imdb_workload import Layout
from experiments.bench.presets import Scale, SuiteName
from experiments.bench.timing import Work
from experiments.harness.cells import CellName

Quantity = Literal["seconds", "bytes"]

OURS = "jaxrnn"
VARIANTS = (f"{OURS}, one device", f"{OURS}, fused", f"{OURS}, scan")
BASELINE = "torch padded"
PEERS = {"torch", "flax", "keras", "haiku", "recurrentgemma", "memorax"}
# How many CPU devices a batch is sharded over; the process has as many as the last.
DEVICES = (1, 2, 4, 8)
# Of the cells that are linear in their state, those of the suite "recurrences".
LINEAR: tuple[CellName, ...] = ("min-gru", "lru", "rg-lru")
VOCABULARIES = (1_000, 20_000)


@dataclass(frozen=True)
class Case:
    """One piece of work, in a section of a suite, and the builders of its contenders.

    Where the quantity is bytes, the works return them instead of being timed. Ratios
    are relative to the baseline.
    """

    suite: SuiteName
    section: str
    name: str
    contenders: Mapping[str, Callable[[], Work]]
    baseline: str = BASELINE
    unit: str = ""
    """Unit of the throughput, such as "words"; none if empty."""
    quantity: Quantity = "seconds"
    pictured: bool = True


def cases(suite: SuiteName, scale: Scale) -> list[Case]:
    """The cases of a suite, those of a section in a row.

    >>> from experiments.bench.presets import FULL
    >>> [case.name for case in cases("compile", FULL)]
    ['64 words', '2,048 words']
    """
    return list(_SUITES[suite](scale))


def among(case: Case, peers: Sequence[str]) -> Case:
    """The case with this library, the baseline and those of `peers`; with all if empty.

    >>> from experiments.bench.presets import FULL
    >>> case = cases("bidirectional", FULL)[0]
    >>> [name for name in among(case, ["flax"]).contenders if OURS not in name]
    ['torch padded', 'Flax']
    """
    if not peers:
        return case
    others = PEERS - {*peers}
    kept = {
        name: build
        for name, build in case.contenders.items()
        if name == case.baseline or name.split()[0].strip(",").lower() not in others
    }
    return replace(case, contenders=kept)


def _layers(scale: Scale) -> Iterator[Case]:
    for cell in scale.cells:
        for training in scale.training:
            for ragged in scale.ragged:
                for shape in scale.shapes:
                    task = Task(cell, *shape, training=training, ragged=ragged)
                    some = _everyone(task)
                    if not scale.variants:
                        for variant in VARIANTS:
                            del some[variant]
                    yield _layer_case("layers", task, some)


def _bidirectional(scale: Scale) -> Iterator[Case]:
    for ragged in scale.ragged:
        for shape in scale.some_shapes:
            task = Task("lstm", *shape, ragged=ragged, bidirectional=True)
            yield _layer_case("bidirectional", task, _everyone(task))


def _cells(scale: Scale) -> Iterator[Case]:
    for shape in scale.cell_shapes:
        some = {
            name: _builder(frameworks.ours, Task(name, *shape))
            for name in scale.every_cell
        }
        case = _layer_case("cells", Task("lstm", *shape), some)
        section = "every cell, forward and backward"
        yield replace(case, section=section, baseline="lstm", pictured=False)


def _recurrences(scale: Scale) -> Iterator[Case]:
    """What is linear in the state: layers of it, and the recurrence alone.

    The layers compute all steps at once, and one after the other.
    """
    for time in scale.long_times:
        shape = (max(scale.steps // time, 1), time, 64, 128)
        some = {"lstm": _builder(frameworks.ours, Task("lstm", *shape))}
        for name in LINEAR:
            task = Task(name, *shape)
            some[name] = _builder(frameworks.ours, task)
            some[f"{name}, scan"] = _builder(frameworks.ours, task, backend="scan")
        task = Task("min-gru", *shape)
        some["memorax, min-gru"] = _builder(recurrences.memorax_min_gru, task)
        case = _layer_case("recurrences", Task("lstm", *shape), some)
        section = "linear in the state, forward and backward"
        yield replace(
            case, section=section, baseline="lstm", unit="tokens", pictured=False
        )

    for time in scale.long_times:
        task = Task("min-gru", max(scale.steps // time, 1), time, 64, 128)
        some = {
            OURS: _builder(recurrences.ours, task),
            VARIANTS[0]: _builder(recurrences.ours, task, devices=1),
            "associative_scan": _builder(recurrences.associative_scan, task),
            "recurrentgemma": _builder(recurrences.recurrentgemma, task),
            "recurrentgemma, associative": _builder(
                recurrences.recurrentgemma, task, scan_type="ASSOCIATIVE_NATIVE"
            ),
        }
        yield Case(
            "recurrences",
            "h = a h + b alone, forward and backward",
            f"{task.batch} x {task.time} x {task.hidden}",
            some,
            baseline=OURS,
            unit="tokens",
            pictured=False,
        )


def _growth(scale: Scale) -> Iterator[Case]:
    growing = {
        f"time, {scale.steps:,} tokens": [
            (scale.steps // time, time, 64, 128) for time in scale.times
        ],
        "batch": [(batch, 128, 64, 128) for batch in scale.batches],
        "features": [(32, 128, hidden, hidden) for hidden in scale.hiddens],
    }
    for what, shapes in growing.items():
        for shape in shapes:
            task = Task("lstm", *shape)
            everyone = _everyone(task)
            some = {name: everyone[name] for name in (OURS, BASELINE, "Flax")}
            case = _layer_case("growth", task, some)
            section = f"{case.section}, growing {what}"
            yield replace(case, section=section, unit="tokens")


def _devices(scale: Scale) -> Iterator[Case]:
    for shape in scale.some_shapes:
        task = Task("lstm", *shape)
        some = {
            f"{OURS}, {count} device{'s' if count > 1 else ''}": _builder(
                frameworks.ours, task, devices=count
            )
            for count in DEVICES
        }
        some[BASELINE] = _builder(frameworks.torch_padded, task)
        yield _layer_case("devices", task, some)


def _memory(scale: Scale) -> Iterator[Case]:
    for time in scale.times:
        for _, _, inputs, hidden in scale.some_shapes:
            task = Task("lstm", 32, time, inputs, hidden)
            chunk = math.isqrt(time)
            some = {
                OURS: _bytes_of(frameworks.ours, task, devices=1),
                f"{OURS}, in chunks": _bytes_of(
                    frameworks.ours, task, devices=1, remat_chunk=chunk
                ),
                f"{OURS}, scan": _bytes_of(
                    frameworks.ours, task, devices=1, backend="scan"
                ),
                "Flax": _bytes_of(frameworks.flax, task),
            }
            case = _layer_case("memory", task, some)
            yield replace(
                case, baseline="Flax", unit="step", quantity="bytes", pictured=False
            )


def _bytes_of(make: Callable, task: Task, **options: Any) -> Callable[[], Work]:
    return lambda: Work(make(task, **options).temporary_bytes, task.time)


def _everyone(task: Task) -> dict[str, Callable[[], Work]]:
    everyone = {
        OURS: _builder(frameworks.ours, task),
        VARIANTS[0]: _builder(frameworks.ours, task, devices=1),
        VARIANTS[1]: _builder(frameworks.ours, task, backend="fused"),
        VARIANTS[2]: _builder(frameworks.ours, task, backend="scan"),
        f"{OURS}, bfloat16": _builder(frameworks.ours, task, dtype=jnp.bfloat16),
        BASELINE: _builder(frameworks.torch_padded, task),
        "torch packed": _builder(frameworks.torch_packed, task),
        "Flax": _builder(frameworks.flax, task),
        "Keras": _builder(frameworks.keras, task),
        "Haiku": _builder(frameworks.haiku, task),
    }
    if task.ragged:
        full = replace(task, ragged=False)
        everyone[f"{OURS}, full rows"] = _builder(frameworks.ours, full)
    return everyone


def _builder(make: Callable, task: Task, **options: Any) -> Callable[[], Work]:
    return lambda: Work(make(task, **options), task.batch * task.time)


def _layer_case(
    suite: SuiteName, task: Task, some: Mapping[str, Callable[[], Work]]
) -> Case:
    section = task.cell.upper()
    if task.bidirectional:
        section = f"bidirectional {section}"
    section += ", forward and backward" if task.training else ", forward"
    if task.ragged:
        section += ", ragged"
    name = f"{task.batch} x {task.time}, {task.inputs} to {task.hidden}"
    return Case(suite, section, name, some, pictured=task.training and not task.ragged)


def _imdb(scale: Scale) -> Iterator[Case]:
    reviews, settings = scale.reviews, scale.reviews.settings
    some = {
        f"{OURS}, {layout}": functools.partial(imdb_workload.train, reviews, layout)
        for layout in get_args(Layout)
    }
    some |= {
        BASELINE: lambda: imdb_workload.train_torch(scale.torch_reviews, packs=False),
        "torch packed": lambda: imdb_workload.train_torch(
            scale.torch_reviews, packs=True
        ),
    }
    case = functools.partial(Case, "imdb", unit="words")
    name = f"{settings.batch} reviews, hidden {settings.hidden}"
    yield case("train step, reviews as long as IMDB's", name, some)
    if not scale.epoch:
        return
    grown = {
        f"{OURS}, {words:,} words": functools.partial(
            imdb_workload.train,
            replace(reviews, settings=replace(settings, vocab=words)),
            "buckets",
        )
        for words in VOCABULARIES
    }
    section = "train step, size of the vocabulary"
    yield case(section, name, grown, baseline=next(iter(grown)), pictured=False)
    some = {OURS: functools.partial(imdb_workload.train_epoch, reviews)}
    name = f"{reviews.number:,} reviews"
    section = "epoch, reviews as long as IMDB's"
    yield case(section, name, some, baseline=OURS, pictured=False)


def _charlm(scale: Scale) -> Iterator[Case]:
    settings = scale.characters
    some = {
        OURS: lambda: charlm_workload.train(settings),
        f"{OURS}, bfloat16": lambda: charlm_workload.train(
            replace(settings, dtype="bfloat16")
        ),
        "torch in one": lambda: charlm_workload.train_torch(settings, one_by_one=False),
        "torch one by one": lambda: charlm_workload.train_torch(
            settings, one_by_one=True
        ),
    }
    name = f"{settings.batch} x {settings.seq_len}, hidden {settings.hidden}"
    case = functools.partial(Case, "charlm", unit="characters")
    yield case("train step", name, some, baseline="torch in one")
    for texts in scale.texts:
        sizes = (settings, scale.length, texts)
        drawing = {
            OURS: functools.partial(charlm_workload.draw, *sizes),
            "torch one by one": functools.partial(charlm_workload.draw_torch, *sizes),
        }
        name = f"{texts} x {scale.length}, hidden {settings.hidden}"
        yield case("drawing text", name, drawing, baseline="torch one by one")


def _compile(scale: Scale) -> Iterator[Case]:
    for time in scale.deep_times:
        some = {
            OURS: functools.partial(imdb_workload.compile_deep, time),
            f"{OURS}, scan": functools.partial(
                imdb_workload.compile_deep, time, "scan"
            ),
        }
        section = "train step of 3 bidirectional layers, compiled and run once"
        yield Case(
            "compile", section, f"{time:,} words", some, baseline=OURS, pictured=False
        )


_SUITES: dict[SuiteName, Callable[[Scale], Iterator[Case]]] = {
    "layers": _layers,
    "bidirectional": _bidirectional,
    "cells": _cells,
    "recurrences": _recurrences,
    "imdb": _imdb,
    "charlm": _charlm,
    "growth": _growth,
    "devices": _devices,
    "memory": _memory,
    "compile": _compile,
}
