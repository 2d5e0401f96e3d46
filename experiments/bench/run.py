"""Speed of the recurrent layers and of the programs' steps beside other libraries.

    python -m experiments.bench --quick
    python -m experiments.bench
    python -m experiments.bench --suites layers growth --cells lstm

Suites: "layers" has LSTM, GRU and RNN, forward and with gradients, rows of one length
and of many; "bidirectional" the LSTM in both directions; "imdb" and "charlm" the train
steps of these programs, with few words and many, a whole epoch, and drawing text;
"growth" time against length, batch and features; "devices" the batch split over 1 to 8
CPU devices; "memory" the bytes of a train step; "compile" a deep train step made from
nothing.

Everything runs on the CPU in one process ("devices" in one of its own), the contenders
of a case in turns. A number is the median over the turns, the quartiles are beside it,
and ratios are to the contender that the column names: below 1 is faster. The first
call, which compiles, is apart. Layers give outputs and, backward, the gradients of
their parameters and inputs; arrays are in place beforehand, the batch before time.

This library runs as its programs do, each CPU device on its rows of the batch, and on
one device too. The others run as their users run them, on one device with all cores.
PyTorch, Keras and Haiku are optional (`pip install ".[bench]"`): who is missing is
named and skipped. The settings of the process are printed and the same for all:
`experiments.harness.jax_setup` has glibc keep freed memory, and with several devices
sets `--xla_cpu_multi_thread_eigen=false`, with which jax 0.10.2 still gives the work of
one device to all cores; `--devices 1` runs everything without it.

Every suite is printed and written when it is done or stopped. In --out it replaces what
it measured again, case by case and contender by contender, and leaves the rest: Ctrl-C
loses nothing, and a long run can be taken apart. An --out with numbers of other
versions, settings or cores is refused; after a change of the code give another.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.bench import frameworks, report, results, suites
from experiments.bench.frameworks import UnavailableError
from experiments.bench.presets import FULL, QUICK, SMOKE, Scale, SuiteName
from experiments.bench.report import Row
from experiments.bench.suites import DEVICES, Case
from experiments.bench.timing import Timing, Work, measure
from experiments.harness import jax_setup
from experiments.harness.cells import CommonCellName
from experiments.harness.preemption import Interrupt
from experiments.harness.progress import progress_bar
from experiments.harness.provenance import environment
from experiments.harness.validation import AMOUNT, COUNT

OUT = Path("runs/bench")
PEERS = ("torch", "keras", "dm-haiku")
DEVICES_VARIABLE = "JAX_NUM_CPU_DEVICES"
MOST_DEVICES = str(max(DEVICES))
WIDTH = 120  # columns, where the output is no terminal


@dataclass(frozen=True)
class Options:
    """Everything the command line says."""

    suites: tuple[SuiteName, ...] = ()
    """What to measure, default everything; with --quick layers, imdb and charlm."""
    cells: tuple[CommonCellName, ...] = ()
    """Cells of the suite "layers", default all; with --quick the LSTM."""
    quick: bool = False
    """Fewer and smaller cases: two minutes on two cores."""
    smoke: bool = False
    """Try every suite with tiny cases; the numbers mean nothing."""
    rounds: int = 15
    """Turns of each contender in a case."""
    seconds: float | None = None
    """Stop a case's turns after this long, but not before the third.
    Default 10, with --quick 2."""
    devices: int | None = None
    """Devices to use, default all; a CPU counts as one device per core."""
    out: Path | None = None
    """Directory for the numbers and a picture of each suite.
    Default runs/bench, with --quick runs/bench-quick, with --smoke nowhere."""

    @property
    def scale(self) -> Scale:
        """What is measured, and for how long."""
        scale = {"smoke": SMOKE, "quick": QUICK, "full": FULL}[self.size]
        return dataclasses.replace(
            scale,
            suites=self.suites or scale.suites,
            cells=self.cells or scale.cells,
            seconds=scale.seconds if self.seconds is None else self.seconds,
        )

    @property
    def size(self) -> str:
        """Which of the scales it is: one case may have the same name in two."""
        return "smoke" if self.smoke else "quick" if self.quick else "full"

    @property
    def path(self) -> Path | None:
        """Where to write to."""
        if self.out is None and not self.smoke:
            return OUT.with_name("bench-quick") if self.quick else OUT
        return self.out

    def check(self) -> None:
        """Whether they make sense.

        Raises:
            ValueError: one does not.
        """
        COUNT.check(self, "rounds")
        AMOUNT.check(self, "seconds")


def main(options: Options) -> None:
    options.check()
    if options.path:
        options.path.mkdir(parents=True, exist_ok=True)
    jax_setup.configure(options.devices)
    if jax.default_backend() != "cpu":
        raise ValueError(
            f"the comparison is of CPUs, and JAX runs on {jax.default_backend()}: "
            "set JAX_PLATFORMS=cpu"
        )
    # What is compiled here has to be compiled here.
    jax.config.update("jax_enable_compilation_cache", False)
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    scale = options.scale
    about = describe(options)
    apart = "devices" if os.environ.get(DEVICES_VARIABLE) != MOST_DEVICES else None
    for suite in scale.suites:
        if options.path and suite != apart:
            results.read(options.path / suite, about)
    for name, values in about.items():
        spelled = ", ".join(f"{key} {value}" for key, value in values.items())
        console.print(f"{name}: {spelled}")

    with Interrupt() as interrupt:
        for suite in scale.suites:
            if suite == apart:
                run_devices(options, interrupt)
            else:
                rows = run(suite, scale, options.rounds, interrupt)
                show(console, rows)
                if options.path:
                    results.write(options.path / suite, about, rows)
            if interrupt.requested:
                raise KeyboardInterrupt("stopped: the cases after that are missing")
    if options.path:
        console.print(f"numbers and pictures are in {options.path}")


def describe(options: Options) -> dict[str, Any]:
    """What the numbers depend on besides the code: versions, machine, settings."""
    about = environment()
    for name in PEERS:
        try:
            about["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            about["versions"][name] = "not installed"
    about["settings"] = {
        "jax_devices": jax.device_count(),
        "torch_threads": frameworks.torch_threads(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").strip(),
        **jax_setup.memory_settings(),
        "rounds": options.rounds,
        "seconds": options.scale.seconds,
        "scale": options.size,
    }
    return about


def run_devices(options: Options, interrupt: Interrupt) -> None:
    """The suite "devices" in a process of its own, with more devices than cores: their
    number is fixed when JAX starts."""
    command = [sys.executable, "-m", "experiments.bench", "--suites", "devices"]
    command += ["--rounds", str(options.rounds)]
    command += ["--seconds", str(options.scale.seconds)]
    command += ["--quick"] * options.quick + ["--smoke"] * options.smoke
    if options.path:
        command += ["--out", str(options.path)]
    environment = {**os.environ, DEVICES_VARIABLE: MOST_DEVICES}
    sys.stdout.flush()
    done = subprocess.run(command, env=environment)
    # Ctrl-C reaches it too: it shows what it has, and ends with an error.
    if done.returncode and not interrupt.requested:
        raise ValueError(f'the suite "devices" ended with code {done.returncode}')


def run(suite: SuiteName, scale: Scale, rounds: int, interrupt: Interrupt) -> list[Row]:
    """The rows of a suite, or of the cases done when it is interrupted."""
    cases = suites.cases(suite, scale)
    rows: list[Row] = []
    with progress_bar(suite, len(cases)) as advance:
        for done, case in enumerate(cases):
            advance(done, f"{suite}: {case.section}, {case.name}")
            rows += run_case(case, rounds, scale.seconds)
            jax.clear_caches()
            if interrupt.requested:
                break
        else:
            advance(len(cases), suite)
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
    return report.score(case, works, timings, skipped)


def show(console: Console, rows: Sequence[Row]) -> None:
    """Prints a table for each section, and who is missing."""
    for table in report.tables(rows):
        console.print(table)
    for line in report.absences(rows):
        console.print(line)
