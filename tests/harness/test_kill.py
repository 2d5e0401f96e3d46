"""Programs killed at random moments: each start works, and the end is the same.

Some kills in CI; many with

    python -m pytest -s tests/harness/test_kill.py --kills 100
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxrnn.checkpoints import Checkpoints
from tests.harness.test_training_loop import leaves

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TIMES = {
    "seconds",
    "spent",
    "words_per_second",
    "characters_per_second",
}


class Driver:
    """`tests.harness.kill_driver` for one program, with a compilation cache."""

    def __init__(self, name, path):
        self.log = path / "log"
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(path / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.kill_driver", name],
            cwd=ROOT,
            env=os.environ | cache | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir, **fatal):
        """Exit code, count of operations, and seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"workdir": str(workdir), "log": str(self.log), **fatal}
        began = time.monotonic()
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return answer["status"], answer["operations"], time.monotonic() - began

    def close(self):
        self._process.communicate()


def outcome(path, mode):
    """All that a finished run leaves, times aside."""
    found = {}
    for name in ("results.json", "settings.json"):
        found[name] = without_times(json.loads((path / name).read_text()))
    lines = (path / "metrics.jsonl").read_text().splitlines()
    found["metrics.jsonl"] = [without_times(json.loads(line)) for line in lines]
    found["vocab.txt"] = (path / "vocab.txt").read_bytes()
    checkpoints = Checkpoints(path / "checkpoints", mode)
    # A kill between a save and what follows it leaves an older one besides.
    before, last = checkpoints.steps()[-2:]
    for which in (before, last, "best"):
        state, info = checkpoints.restore(template(path, last), which)
        found[f"info {which}"] = without_times(info)
        found[f"state {which}"] = [leaf.tobytes() for leaf in leaves(state)]
    return found


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def template(path, step):
    """The leaves of a checkpoint as its record has them."""
    record = (path / "checkpoints" / f"step_{step}" / "record.json").read_text()
    types = json.loads(record.splitlines()[0])["leaves"]
    return {name: leaf_type(spelled) for name, spelled in types.items()}


def leaf_type(spelled):
    dtype, _, shape = spelled.rstrip("]").partition("[")
    if dtype.startswith("key"):
        dtype = jax.random.key(0).dtype
    shape = tuple(map(int, shape.split(","))) if shape else ()
    return jax.ShapeDtypeStruct(shape, dtype)


def in_a_write(path):
    """Whether there is half a checkpoint."""
    steps = (path / "checkpoints").glob("step_*")
    return any(not (step / "record.json").exists() for step in steps)


@pytest.mark.parametrize(("name", "mode"), [("imdb", "max"), ("charlm", "min")])
def test_a_run_killed_anywhere_ends_as_one_never_killed(tmp_path, name, mode, request):
    wanted = request.config.getoption("--kills") // 2
    straight, path = tmp_path / "straight", tmp_path / "run"
    kills = writes = runs = 0
    rng = random.Random(1)
    with contextlib.closing(Driver(name, tmp_path)) as driver:
        status, operations, seconds = driver.run(straight)
        assert status == 0, driver.log.read_text()[-3000:]
        expected = outcome(straight, mode)
        assert len(expected) > 5

        def fatal():
            """Two in three are at a file operation, most of which are of a write: one
            at least."""
            if kills >= wanted and writes:
                return {}
            assert kills < 10 * wanted
            if kills % 3 < 2:
                return {"operation": rng.randint(1, operations)}
            return {"seconds": rng.uniform(0, seconds)}

        while kills < wanted or not writes or path.exists():
            status, _, took = driver.run(path, **fatal())
            if status == -signal.SIGKILL:
                kills += 1
                writes += in_a_write(path)
                continue
            assert status == 0, driver.log.read_text()[-3000:]
            assert outcome(path, mode) == expected
            shutil.rmtree(path)
            seconds = took  # with all compiled
            runs += 1
    print(f"{name}: {kills} kills, {writes} in the write of a checkpoint; {runs} runs")
