"""What `experiments.bench` measures: suites of cases.

A case is one piece of work that several contenders do. It builds them only when it is
run, so that the arrays of one case are gone before those of the next are made.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments import character_work, contenders, review_work
from experiments.contenders import Task
from experiments.scales import Scale, SuiteName
from experiments.work import Work

Quantity = Literal["seconds", "bytes"]

OURS = "jaxrnn"
VARIANTS = (f"{OURS}, one device", f"{OURS}, scan")
BASELINE = "torch padded"
# Counts of CPU devices; those above the number of cores share them.
DEVICES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Case:
    """One piece of work, in a section of a suite, and what builds its contenders.

    Where the quantity is bytes, the works return it instead of being timed.
    """

    suite: SuiteName
    section: str
    name: str
    contenders: Mapping[str, Callable[[], Work]]
    baseline: str = BASELINE
    unit: str = ""
    """What the works count: "words"; nothing if empty."""
    quantity: Quantity = "seconds"
    pictured: bool = True


def cases(suite: SuiteName, scale: Scale) -> list[Case]:
    """The cases of a suite, those of a section in a row.

    >>> from experiments.scales import FULL
    >>> [case.name for case in cases("compile", FULL)]
    ['64 words', '2,048 words']
    """
    return list(_SUITES[suite](scale))


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


def _growth(scale: Scale) -> Iterator[Case]:
    over_time = [(scale.steps // time, time, 64, 128) for time in scale.times]
    over_features = [(32, 128, hidden, hidden) for hidden in scale.hiddens]
    for what, shapes in (("time", over_time), ("features", over_features)):
        for shape in shapes:
            task = Task("lstm", *shape)
            everyone = _everyone(task)
            some = {name: everyone[name] for name in (OURS, BASELINE, "Flax")}
            case = _layer_case("growth", task, some)
            yield replace(case, section=f"{case.section}, growing {what}")


def _devices(scale: Scale) -> Iterator[Case]:
    there = jax.device_count()
    for shape in scale.some_shapes:
        task = Task("lstm", *shape)
        some = {BASELINE: _builder(contenders.torch_padded, task)}
        for count in DEVICES:
            if count <= there:
                name = f"{OURS}, {count} device{'s' if count > 1 else ''}"
                some[name] = _builder(contenders.ours, task, devices=count)
        case = _layer_case("devices", task, some)
        yield replace(case, section=f"{case.section}, of {there} devices")


def _memory(scale: Scale) -> Iterator[Case]:
    for time in scale.times:
        for _, _, inputs, hidden in scale.some_shapes:
            task = Task("lstm", 32, time, inputs, hidden)
            chunk = math.isqrt(time)
            some = {
                OURS: _bytes_of(contenders.ours, task, devices=1),
                f"{OURS}, in chunks": _bytes_of(
                    contenders.ours, task, devices=1, remat_chunk=chunk
                ),
                f"{OURS}, scan": _bytes_of(
                    contenders.ours, task, devices=1, backend="scan"
                ),
                "Flax": _bytes_of(contenders.flax, task),
            }
            case = _layer_case("memory", task, some)
            yield replace(
                case, baseline="Flax", unit="step", quantity="bytes", pictured=False
            )


def _bytes_of(make: Callable, task: Task, **options: Any) -> Callable[[], Work]:
    return lambda: Work(make(task, **options).temporary_bytes, task.time)


def _everyone(task: Task) -> dict[str, Callable[[], Work]]:
    everyone = {
        OURS: _builder(contenders.ours, task),
        VARIANTS[0]: _builder(contenders.ours, task, devices=1),
        VARIANTS[1]: _builder(contenders.ours, task, backend="scan"),
        f"{OURS}, bfloat16": _builder(contenders.ours, task, dtype=jnp.bfloat16),
        BASELINE: _builder(contenders.torch_padded, task),
        "torch packed": _builder(contenders.torch_packed, task),
        "Flax": _builder(contenders.flax, task),
        "Keras": _builder(contenders.keras, task),
        "Haiku": _builder(contenders.haiku, task),
    }
    if task.ragged:
        full = replace(task, ragged=False)
        everyone[f"{OURS}, full rows"] = _builder(contenders.ours, full)
    return everyone


def _builder(make: Callable, task: Task, **options: Any) -> Callable[[], Work]:
    return lambda: Work(make(task, **options))


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


def _programs(scale: Scale) -> Iterator[Case]:
    layouts = ("buckets", "packed rows", "plain padding")
    reviews = {
        f"{OURS}, {layout}": functools.partial(review_work.train, scale.reviews, layout)
        for layout in layouts
    }
    reviews |= {
        BASELINE: lambda: review_work.train_torch(scale.torch_reviews, packs=False),
        "torch packed": lambda: review_work.train_torch(
            scale.torch_reviews, packs=True
        ),
    }
    name = f"steps of {scale.reviews.settings.batch} reviews"
    yield Case("programs", "training on IMDB", name, reviews, unit="words")
    if scale.epoch:
        whole = replace(scale.reviews, sample=None)
        yield Case(
            "programs",
            "training on IMDB, a whole epoch",
            f"{whole.number:,} reviews",
            {OURS: lambda: review_work.train(whole, "buckets")},
            baseline=OURS,
            unit="words",
            pictured=False,
        )

    settings = scale.characters
    chapter = {
        OURS: lambda: character_work.train(settings),
        f"{OURS}, bfloat16": lambda: character_work.train(settings, jnp.bfloat16),
        "torch in one": lambda: character_work.train_torch(settings, one_by_one=False),
        "torch one by one": lambda: character_work.train_torch(
            settings, one_by_one=True
        ),
    }
    name = f"step of {settings.batch} x {settings.time}, hidden {settings.hidden}"
    characters = functools.partial(Case, "programs", unit="characters")
    yield characters("training on characters", name, chapter, baseline="torch in one")
    for texts in scale.texts:
        sizes = (settings, scale.length, texts)
        drawing = {
            OURS: functools.partial(character_work.draw, *sizes),
            "torch one by one": functools.partial(character_work.draw_torch, *sizes),
        }
        name = f"{texts} x {scale.length}, hidden {settings.hidden}"
        yield characters("drawing text", name, drawing, baseline="torch one by one")


def _compile(scale: Scale) -> Iterator[Case]:
    for time in scale.deep_times:
        some = {
            OURS: functools.partial(review_work.compile_deep, time),
            f"{OURS}, scan": functools.partial(review_work.compile_deep, time, "scan"),
        }
        section = "train step of 3 bidirectional layers, compiled and taken once"
        yield Case(
            "compile", section, f"{time:,} words", some, baseline=OURS, pictured=False
        )


_SUITES: dict[SuiteName, Callable[[Scale], Iterator[Case]]] = {
    "layers": _layers,
    "bidirectional": _bidirectional,
    "programs": _programs,
    "growth": _growth,
    "devices": _devices,
    "memory": _memory,
    "compile": _compile,
}
