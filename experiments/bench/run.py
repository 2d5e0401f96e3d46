"""Speed of the recurrent layers and of the programs' steps beside other libraries.

    python -m experiments.bench --quick
    python -m experiments.bench
    python -m experiments.bench --suites layers growth --cells lstm

Suites:

- layers: LSTM, GRU and RNN, forward and forward with backward, full and ragged batches
- bidirectional: the LSTM in both directions
- cells: every cell, forward with backward, beside the LSTM
- recurrences: MinGRU, LRU and RG-LRU beside the LSTM over 256 to 16,384 steps; and
  their recurrence alone, beside recurrentgemma's
- imdb, charlm: train steps of these programs, two vocabulary sizes, a whole epoch,
  generating text
- growth: time against sequence length, batch size and features
- devices: a batch sharded over 1 to 8 CPU devices
- memory: bytes of temporary memory in a train step
- compile: compiling the train step of a deep model

Everything runs on the CPU in one process ("devices" in its own), and the contenders of
a case take turns. Reported are the median over the turns, the quartiles, the ratio to
the contender in the column's title (below 1 is faster), and the first call, which
compiles. Layers compute outputs and, backward, the gradients of parameters and inputs;
inputs are on the device already, batch-major.

This library runs as in the programs, with the batch sharded over the CPU devices, and
also on one of them, where the C++ kernels have one thread; with `--devices 1` there is
one device, and it has all cores, as the other libraries have. Pictures show neither
that nor the backends that are not the default. PyTorch, Keras and Haiku are optional
(`pip install ".[bench]"`): those not installed are skipped and listed. So are
recurrentgemma and memorax; the first contradicts this command line's requirements, and
docs/benchmarks.md says how to measure it all the same.

All run in the same process settings, which are printed: glibc keeps freed memory and,
with several devices, XLA_FLAGS has --xla_cpu_multi_thread_eigen=false, with which jax
0.10.2 still uses all cores for the work of one device. `--devices 1` runs without that
flag.

Results are printed and written after each suite, and when it is stopped with Ctrl-C.
In --out they replace those of the same cases and contenders, so that a long comparison
can be run in parts. An --out with results of other versions, settings or cores is
refused; after a change of the code give another.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

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
from jaxrnn.native import library

Peer = Literal["torch", "flax", "keras", "haiku", "recurrentgemma", "memorax"]
OUT = Path("runs/bench")
PEERS = ("torch", "keras", "dm-haiku", "recurrentgemma", "memorax")
DEVICES_VARIABLE = "JAX_NUM_CPU_DEVICES"
MOST_DEVICES = str(max(DEVICES))
POLLING = 0.2  # seconds between looks at whether to stop
WIDTH = 120  # columns, where the output is no terminal


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    suites: tuple[SuiteName, ...] = ()
    """Suites to run. Default: all; with --quick: layers, imdb and charlm."""
    cells: tuple[CommonCellName, ...] = ()
    """Cells of the suite layers. Default: all; with --quick: lstm."""
    peers: tuple[Peer, ...] = ()
    """Other libraries to compare with; what ratios are relative to is always there.
    Default: all that are installed."""
    quick: bool = False
    """Run fewer and smaller cases: two minutes on two cores."""
    smoke: bool = False
    """Try every suite with tiny cases, whose timings mean nothing."""
    rounds: int = 15
    """Rounds of each case: turns of each contender."""
    seconds: float | None = None
    """Time limit for the rounds of a case; at least three are run.
    Default: 10; with --quick: 2."""
    devices: int | None = None
    """Number of devices; a CPU counts as one device per core. Default: all."""
    out: Path | None = None
    """Directory for the results and a picture of each suite.
    Default: runs/bench; with --quick: runs/bench-quick; with --smoke: none."""

    @property
    def scale(self) -> Scale:
        """The preset with the options applied."""
        scale = {"smoke": SMOKE, "quick": QUICK, "full": FULL}[self.size]
        return dataclasses.replace(
            scale,
            suites=self.suites or scale.suites,
            cells=self.cells or scale.cells,
            seconds=scale.seconds if self.seconds is None else self.seconds,
        )

    @property
    def size(self) -> str:
        """The name of the preset; cases of two presets may have the same name."""
        return "smoke" if self.smoke else "quick" if self.quick else "full"

    @property
    def path(self) -> Path | None:
        """The directory to write to."""
        if self.out is None and not self.smoke:
            return OUT.with_name("bench-quick") if self.quick else OUT
        return self.out

    def check(self) -> None:
        """Check the range of the options.

        Raises:
            ValueError: one is out of range; it is named.
        """
        COUNT.check(self, "rounds")
        AMOUNT.check(self, "seconds")


def main(options: Options) -> None:
    """Runs the suites, printing and writing the results of each."""
    options.check()
    if options.path:
        options.path.mkdir(parents=True, exist_ok=True)
    jax_setup.configure(options.devices)
    if jax.default_backend() != "cpu":
        raise ValueError(
            f"the benchmark is for CPUs, and JAX runs on {jax.default_backend()}: "
            "set JAX_PLATFORMS=cpu"
        )
    # Compile times are measured, so nothing may come from the cache.
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
                rows = run(suite, scale, options, interrupt)
                show(console, rows)
                if options.path:
                    results.write(options.path / suite, about, rows)
            if interrupt.requested:
                raise KeyboardInterrupt("stopped: the remaining cases were not run")
    if options.path:
        console.print(f"wrote results and pictures to {options.path}")


def describe(options: Options) -> dict[str, Any]:
    """Versions, machine and settings, which the results depend on."""
    about = environment()
    for name in PEERS:
        try:
            about["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            about["versions"][name] = "not installed"
    about["settings"] = {
        "jax_devices": jax.device_count(),
        "kernels": library.instruction_set() or "none",
        "torch_threads": frameworks.torch_threads(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").strip(),
        **jax_setup.memory_settings(),
        "rounds": options.rounds,
        "seconds": options.scale.seconds,
        "scale": options.size,
    }
    return about


def run_devices(options: Options, interrupt: Interrupt) -> None:
    """Runs the suite "devices" in a child process with more devices than cores.

    JAX fixes their number when it starts.
    """
    command = [sys.executable, "-m", "experiments.bench", "--suites", "devices"]
    command += ["--rounds", str(options.rounds)]
    command += ["--seconds", str(options.scale.seconds)]
    command += ["--peers", *options.peers] if options.peers else []
    command += ["--quick"] * options.quick + ["--smoke"] * options.smoke
    if options.path:
        command += ["--out", str(options.path)]
    environment = {**os.environ, DEVICES_VARIABLE: MOST_DEVICES}
    sys.stdout.flush()
    child = subprocess.Popen(command, env=environment)
    while child.poll() is None and not interrupt.requested:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLLING)
    if interrupt.requested:
        # Ctrl-C reaches the child, too, but SIGTERM is for this process alone.
        child.terminate()
    child.wait()  # it shows its results, and returns an error if it was stopped
    if child.returncode and not interrupt.requested:
        raise ValueError(f'the suite "devices" ended with code {child.returncode}')


def run(
    suite: SuiteName, scale: Scale, options: Options, interrupt: Interrupt
) -> list[Row]:
    """Runs a suite and returns its rows; fewer if it is interrupted."""
    cases = [suites.among(case, options.peers) for case in suites.cases(suite, scale)]
    rows: list[Row] = []
    with progress_bar(suite, len(cases)) as advance:
        for done, case in enumerate(cases):
            advance(done, f"{suite}: {case.section}, {case.name}")
            rows += run_case(case, options.rounds, scale.seconds)
            jax.clear_caches()
            if interrupt.requested:
                break
        else:
            advance(len(cases), suite)
    return rows


def run_case(case: Case, rounds: int, seconds: float) -> list[Row]:
    """Runs a case and returns a row for each contender, skipped ones too."""
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
    """Prints a table for each section, and the contenders skipped."""
    for table in report.tables(rows):
        console.print(table)
    for line in report.absences(rows):
        console.print(line)
