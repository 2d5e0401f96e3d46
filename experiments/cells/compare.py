"""Every cell in the character model, with equally many parameters and characters.

    python -m experiments.cells
    python -m experiments.cells --cells lstm gru min-gru --seeds 0
    python -m experiments.cells --speed

Each cell takes the place of the GRU in the quick preset of `experiments.charlm`, with
the hidden size that gives as many parameters, within 5%. Its learning rate is the best
of 0.003, 0.01 and 0.03 after the first tenth of a training. Then all cells are trained
with the first seed, and the best ones with the others. The table of what is finished is
printed and written to table.md in the work directory.

The same command started again continues, and what is finished is not trained again.
Started several times at once, as with `taskset -c 0` and `taskset -c 1` on two cores,
the programs share the work. That makes the speed of trainings meaningless: --speed
measures training steps of all cells in turns, on a machine that does nothing else.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, get_args

import jax

from experiments.cells import runs, speed, table
from experiments.cells.runs import Comparison
from experiments.charlm import datasets
from experiments.charlm.config import PRESETS, SMOKE, Settings
from experiments.charlm.datasets import Text
from experiments.harness import jax_setup
from experiments.harness.arguments import default_is, several
from experiments.harness.cells import CellName
from experiments.harness.files import replace_file
from experiments.harness.options import PlaceOptions, scratch_if_smoke
from experiments.harness.validation import COUNT, POSITIVE, SEED
from experiments.harness.workdir import HeldError

# Those that are in use, and one of each family, first; then as the catalogue has them.
_FIRST: tuple[CellName, ...] = (
    "lstm", "gru", "rnn", "min-gru", "lru", "rg-lru", "mgu", "janet", "coupled-lstm",
    "layer-norm-lstm", "mogrifier-lstm", "peephole-lstm", "multiplicative-lstm", "qrnn",
    "sru", "ind-rnn", "rhn", "lem",
)  # fmt: skip
ORDER = (*_FIRST, *(name for name in get_args(CellName) if name not in _FIRST))
# Wide enough that one hidden size comes within 5% of the number of parameters.
_SMOKE = replace(SMOKE, hidden=128, epochs=1)
_SMOKE_CELLS: tuple[CellName, ...] = ("lstm", "min-gru")
WAIT = 5.0  # seconds between looks at what another program is at work in


@dataclass(frozen=True)
class Options(PlaceOptions):
    """The options of the command line."""

    workdir: Path = Path("runs/cells")
    """Directory of the runs. The same command started again continues."""
    devices: Annotated[int | None, default_is("the most that divide the batch")] = None
    """Number of devices; a CPU counts as one device per core."""
    smoke: bool = False
    """Try everything in a minute: tiny models on generated data."""
    cells: tuple[CellName, ...] = ()
    """Cells to train, in this order. Default: all; with --smoke: lstm and min-gru."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: the first for every cell, the others for the best ones."""
    best: int = 7
    """How many cells are trained with all seeds."""
    text: Annotated[
        tuple[Path, ...] | None,
        several(Path, "PATH"),
        default_is("tiny shakespeare"),
    ] = None
    """Your own text: UTF-8 files, or folders of them, concatenated."""
    speed: bool = False
    """Measure training steps instead of training; the LSTM is always measured too."""
    seconds: float = 30.0
    """Time limit for the measurement of --speed, without compiling."""

    def check(self) -> None:
        """Check the range of the options.

        Raises:
            ValueError: one is out of range; it is named.
        """
        COUNT.check(self, "best")
        POSITIVE.check(self, "seconds")
        if not self.seeds:
            raise ValueError("--seeds needs at least one seed")
        for seed in self.seeds:
            if not SEED.holds(seed):
                raise ValueError(f"--seeds must be {SEED.words}, got {seed}")
        for name in ("cells", "seeds"):
            values = getattr(self, name)
            twice = next((v for v in values if values.count(v) > 1), None)
            if twice is not None:
                raise ValueError(f"--{name} has {twice} twice: name each once")
        if self.text == ():
            raise ValueError("--text needs at least one file or folder")
        if self.smoke and self.text:
            raise ValueError("give either --smoke or --text, not both")

    @property
    def names(self) -> tuple[CellName, ...]:
        """The cells to train."""
        return self.cells or (_SMOKE_CELLS if self.smoke else ORDER)

    @property
    def base(self) -> Settings:
        """The settings of which all cells get the number of parameters."""
        preset = _SMOKE if self.smoke else PRESETS["quick"]
        # All see equally many characters.
        return replace(preset, patience=None)


def main(options: Options) -> None:
    """Do what the options ask for."""
    options.check()
    jax_setup.configure(options.devices)
    with scratch_if_smoke(options) as options:
        text = load(options)
        comparison = Comparison(text, options.base, options.workdir, options.devices)
        try:
            if options.speed:
                speed.measure(comparison, options.names, options.seconds)
            else:
                train(comparison, options)
        finally:
            show(options)


def load(options: Options) -> Text:
    """Return the text that the options ask for."""
    if options.smoke:
        return datasets.generate()
    if options.text:
        return datasets.read_files(options.text)
    return datasets.load_shakespeare(options.data_dir, options.download_dir)


def train(comparison: Comparison, options: Options) -> None:
    """Train all cells with the first seed, then the best with the others."""
    first, *others = options.seeds

    def finish(cell: CellName, seed: int) -> None:
        rate = runs.choose_rate(comparison, cell, first)
        runs.train(comparison, cell, seed, rate)

    do_all([(cell, first) for cell in options.names], finish)
    ranked = runs.ranked(options.workdir, options.names, first)
    best = ranked[: options.best]
    if others:
        print(f"the best with seed {first}: {', '.join(best)}")
    do_all([(cell, seed) for seed in others for cell in best], finish)


def do_all(
    tasks: Sequence[tuple[CellName, int]], finish: Callable[[CellName, int], None]
) -> None:
    """Finish the trainings, last those that another program is at work in."""
    left = list(tasks)
    while left:
        held = []
        for cell, seed in left:
            done = len(tasks) - len(left) + left.index((cell, seed)) - len(held)
            print(f"{cell}, seed {seed} ({done} of {len(tasks)} are done)", flush=True)
            try:
                finish(cell, seed)
            except HeldError:
                held.append((cell, seed))
            jax.clear_caches()  # else all that was compiled stays in memory
        if len(held) == len(left):
            names = ", ".join(f"{cell}, seed {seed}" for cell, seed in held)
            print(f"waiting for another program to finish {names}", flush=True)
            time.sleep(WAIT)
        left = held


def show(options: Options) -> None:
    """Print the table of what is finished, and write it to the work directory.

    Cells that were trained there before are in it, too.
    """
    names, seeds = options.names, options.seeds
    before = [
        cell
        for cell in ORDER
        if any(runs.results(options.workdir, cell, seed) for seed in seeds)
    ]
    shown = [*names, *(cell for cell in before if cell not in names)]
    text = table.make(options.workdir, shown, seeds)
    if options.workdir.is_dir():
        path = options.workdir / "table.md"
        replace_file(path, lambda partial: partial.write_text(text), "--workdir")
    print(text, end="")
