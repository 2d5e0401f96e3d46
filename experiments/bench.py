"""Speed of the recurrent layers and of the programs' steps against other libraries.

    python -m experiments.bench --quick
    python -m experiments.bench --out runs/bench

Everything runs on the CPU in one process, the contenders of a case in turns; a number
is the median over the turns, with the quartiles beside it. Compiling is in the first
call, which is apart. The layers give outputs and, in training, the gradients of their
parameters and inputs; arrays have the batch before time, and are in place beforehand.

This library runs as its programs do, each CPU device on its rows of the batch, and on
one device too. The others run as their users run them, on one device. PyTorch, Keras
and Haiku are optional (`pip install "jaxrnn[bench]"`). Settings of the process are the
same for all: `experiments.runtime` has glibc keep freed memory, and where there are
several devices gives `--xla_cpu_multi_thread_eigen=false`. That flag does not take the
cores from those on one device: in jax 0.10.2 it made no difference, given to the
process or to one function (`compiler_options`), to how many threads shared a large
product or a loop of smaller ones. `--devices 1` runs everything without it.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments import contenders, program, runtime, standings, suites
from experiments.contenders import UnavailableError
from experiments.fit import progress_bar
from experiments.interrupt import Interrupt
from experiments.plots import plot_bars
from experiments.scales import FULL, QUICK, SMOKE, Scale, SuiteName
from experiments.standings import Row
from experiments.suites import DEVICES, Case
from experiments.timing import Timing, measure
from experiments.work import Work
from experiments.workdir import WorkDir, environment

PEERS = ("torch", "keras", "dm-haiku")
DEVICES_VARIABLE = "JAX_NUM_CPU_DEVICES"
MOST_DEVICES = str(max(DEVICES))
WIDTH = 120  # columns, where the output is no terminal


@dataclass(frozen=True)
class Options:
    """Everything the command line says."""

    suite: tuple[SuiteName, ...] = ()
    """What to measure, default everything; with --quick layers and programs."""
    quick: bool = False
    """Fewer and smaller cases: two minutes on two cores."""
    smoke: bool = False
    """Try every suite with tiny cases; the numbers mean nothing."""
    rounds: int = 15
    """Turns of each contender in a case."""
    seconds: float | None = None
    """Stop a case's turns after this long, but not before the third; default 20, or 4
    with --quick."""
    devices: int | None = None
    """Devices to use, default all; a CPU counts as one device per core."""
    out: Path | None = None
    """Directory to write results.json and a picture of each suite to."""


def main(options: Options) -> None:
    check(options)
    runtime.configure(options.devices)
    if jax.default_backend() != "cpu":
        raise ValueError(
            f"the comparison is of CPUs, and JAX runs on {jax.default_backend()}: "
            "set JAX_PLATFORMS=cpu"
        )
    # What is compiled here has to be compiled here.
    jax.config.update("jax_enable_compilation_cache", False)
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    scale = FULL
    if options.quick or options.smoke:
        scale = SMOKE if options.smoke else QUICK
    if options.seconds is not None:
        scale = dataclasses.replace(scale, seconds=options.seconds)
    about = describe(options.rounds, scale.seconds)
    for name, values in about.items():
        spelled = ", ".join(f"{key} {value}" for key, value in values.items())
        console.print(f"{name}: {spelled}", highlight=False)

    wanted = options.suite or scale.suites
    with Interrupt() as interrupt:
        rows = run(wanted, scale, options, interrupt)
    for table in standings.tables(rows):
        console.print(table)
    for line in standings.absences(rows):
        console.print(line, highlight=False)
    if options.out:
        save(options.out, about, rows)
    if interrupt.requested:
        raise KeyboardInterrupt("stopped: the cases after that are missing")


def check(options: Options) -> None:
    """Whether the options make sense, and the directory can be written to.

    Raises:
        ValueError: an option does not.
        OSError: the directory cannot be made.
    """
    if options.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {options.rounds}")
    if options.seconds is not None and not options.seconds >= 0:
        raise ValueError(f"--seconds must be 0 or above, got {options.seconds}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)


def describe(rounds: int, seconds: float) -> dict[str, Any]:
    """What the numbers depend on besides the code: versions, machine, settings."""
    about = environment()
    for name in PEERS:
        try:
            about["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            about["versions"][name] = "not installed"
    about["settings"] = {
        "jax_devices": jax.device_count(),
        "torch_threads": contenders.torch_threads(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").strip(),
        **runtime.memory_settings(),
        "rounds": rounds,
        "seconds": seconds,
    }
    return about


def run(
    wanted: Sequence[SuiteName], scale: Scale, options: Options, interrupt: Interrupt
) -> list[Row]:
    """The rows of the wanted suites, or of the cases done when it is interrupted."""
    cases = [case for suite in wanted for case in suites.cases(suite, scale)]
    rows: list[Row] = []
    with progress_bar("measuring", len(cases)) as advance:
        for done, case in enumerate(cases):
            advance(done, f"{case.suite}: {case.section}, {case.name}")
            rows += run_case(case, options.rounds, scale.seconds)
            jax.clear_caches()
            if interrupt.requested:
                return rows
        advance(len(cases), "measured")
        if "devices" in wanted and os.environ.get(DEVICES_VARIABLE) != MOST_DEVICES:
            rows += run_virtual(options)
    return rows


def run_case(case: Case, rounds: int, seconds: float) -> list[Row]:
    """What each contender of the case did, or why it did not."""
    works: dict[str, Work] = {}
    skipped: dict[str, str] = {}
    for name, build in case.contenders.items():
        try:
            works[name] = build()
        except UnavailableError as error:
            skipped[name] = str(error)
    if case.quantity == "bytes":
        timings = {
            name: Timing(0.0, (float(work.run()),)) for name, work in works.items()
        }
    else:
        thunks = {name: work.run for name, work in works.items()}
        timings = measure(thunks, rounds, seconds=seconds)
    return standings.score(case, works, timings, skipped)


def run_virtual(options: Options) -> list[Row]:
    """The suite "devices" in a process of its own, with more devices than cores: their
    number is fixed when JAX starts."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "experiments.bench", "--suite", "devices"]
        command += ["--rounds", str(options.rounds), "--out", scratch]
        command += ["--quick"] * options.quick + ["--smoke"] * options.smoke
        if options.seconds is not None:
            command += ["--seconds", str(options.seconds)]
        subprocess.run(
            command,
            env={**os.environ, DEVICES_VARIABLE: MOST_DEVICES},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        results = WorkDir(Path(scratch)).results
    return [Row(**row) for row in results["rows"]] if results else []


def save(path: Path, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """Writes results.json, and a picture for each suite of which there is one."""
    WorkDir(path).finish({**about, "rows": standings.as_json(rows)})
    for suite, panels in standings.panels(rows).items():
        title = f"{suite}, on {about['machine']['cores']} CPU cores"
        plot_bars(path / f"{suite}.png", title, panels)
    print(f"results and pictures are in {path}")


if __name__ == "__main__":
    sys.exit(program.run(main, Options, "bench", __doc__))
