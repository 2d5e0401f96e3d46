"""Speed and memory of a training step with every cell.

    speed/CELL.json     of the last measurement, with that of the LSTM in it

The cells are measured in turns. A measurement in parts has the LSTM in each, so that
ratios to it are of one sitting.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.bench import timing
from experiments.bench.frameworks import Compiled
from experiments.cells.runs import Comparison
from experiments.charlm.batches import Streams
from experiments.charlm.model import (
    make_optimizer,
    make_state,
    make_train_step,
    shard_state,
)
from experiments.harness.cells import CellName
from experiments.harness.files import read_json, write_json
from experiments.harness.provenance import environment

REFERENCE: CellName = "lstm"
ROUNDS = 15


def measure(comparison: Comparison, cells: Sequence[CellName], seconds: float) -> None:
    """Measure training steps of the cells and of the LSTM, and write the results."""
    names: list[CellName] = [REFERENCE, *(cell for cell in cells if cell != REFERENCE)]
    works, memory = {}, {}
    for name in names:
        print(f"{name}: compiling", flush=True)
        works[name], memory[name] = _make(comparison, name)
    timings = timing.measure(works, ROUNDS, seconds=seconds)
    characters = comparison.base.batch * comparison.base.seq_len
    reference = timings[REFERENCE].median
    folder = comparison.path / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    for name, timed in timings.items():
        lower, upper = timed.quartiles
        record = environment() | {
            "cell": name,
            "devices": jax.device_count(),
            "characters_per_second": characters / timed.median,
            "quartiles": [characters / upper, characters / lower],
            "relative_to_lstm": reference / timed.median,
            "rounds": len(timed.rounds),
            "step_bytes": memory[name],
        }
        write_json(folder / f"{name}.json", record, "--workdir")


def read(path: Path, cell: CellName) -> dict[str, Any] | None:
    """Return what was measured of a cell, None if nothing was."""
    return read_json(path / "speed" / f"{cell}.json")


def _make(comparison: Comparison, cell: CellName) -> tuple[timing.Thunk, int]:
    """Return a training step to be timed, and the bytes that it needs on a device.

    Those are what XLA allocates beside parameters, state, batch and results.
    """
    run = comparison.prepare("speed", comparison.settings(cell))
    settings = run.settings
    streams = Streams(run.units.encode(run.text.split()[0], run.vocab), settings)
    batches = streams.epoch(0)
    optimizer = make_optimizer(settings, settings.epochs * len(batches))
    state = shard_state(make_state(run.model, optimizer, settings), run.mesh)
    step = make_train_step(run.model, optimizer, run.mesh, settings.weight_drop)
    needed = Compiled(jax.jit(step), (state, batches[0]())).temporary_bytes()
    return timing.stepping(step, state, batches[:1]), needed
