"""What every test runs under: two CPU devices and JAX's strictest promotion rules."""

import contextlib
import functools
import io
import math
import os
import shutil
import sys
import tempfile

# One compilation cache for the workers of pytest-xdist and the programs that tests
# start: without it the tests take half as long again. The process that makes the
# directory removes it; the others inherit the variables.
OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    OWN_CACHE = tempfile.mkdtemp(prefix="jaxrnn-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = OWN_CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Tests spend most of their time in XLA's compiler. Its older code generator of fusions,
# and one part per module, compile in less than half of the defaults' time; XLA_FLAGS=""
# in the environment selects the defaults.
XLA_FLAGS = os.environ.get("XLA_FLAGS")
if XLA_FLAGS is None:
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# What XLA's optimizations make of the code is seen in files with the mark `optimized`,
# where PyTorch compares, and in the programs that tests start.
jax.config.update("jax_disable_most_optimizations", True)
jax.devices()  # The flags are read when the backend starts: other programs have none.
if XLA_FLAGS is None:
    del os.environ["XLA_FLAGS"]


def pytest_unconfigure():
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=6, help="how often test_kill.py kills a program"
    )


@pytest.fixture(scope="module", autouse=True)
def optimizations(request):
    """XLA's optimizations, in files with the mark `optimized`."""
    marked = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not marked)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def rng():
    """A numpy generator, the same in every run."""
    return np.random.default_rng(20240607)


@pytest.fixture
def x64():
    """Runs the test with 64-bit JAX types, for algebra that must agree to 1e-10."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def program_run(monkeypatch, capsys):
    """Exit code, output and errors of the sentiment program with these arguments."""
    from experiments.imdb import train as imdb_train  # After the settings above.

    return functools.partial(_run, monkeypatch, capsys, imdb_train, imdb_train.defaults)


@pytest.fixture
def charlm_run(monkeypatch, capsys):
    """The same of the character model."""
    from experiments.charlm import train as charlm_train
    from experiments.charlm.options import defaults

    return functools.partial(_run, monkeypatch, capsys, charlm_train, defaults)


@pytest.fixture(scope="module")
def xla_flags_restored():
    """The environment as it was, after a program has set it up for JAX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        yield


@pytest.fixture(scope="module")
def module_run():
    """As `charlm_run`, for a run that the tests of a file share."""
    from experiments.charlm import train as charlm_train
    from experiments.charlm.options import defaults
    from experiments.harness import cli

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr("experiments.harness.progress.FIRST_LINE", math.inf)
            patch.setenv("XLA_FLAGS", "")
            patch.setattr(sys, "argv", ["charlm", *map(str, arguments)])
            name, about = "charlm", charlm_train.__doc__
            code = cli.run(
                charlm_train.main, charlm_train.Options, name, about, defaults
            )
        return code, out.getvalue(), err.getvalue()

    return run


@pytest.fixture(scope="session")
def charlm_smoke(tmp_path_factory):
    """A finished smoke run of the character model: its directory, what it printed, and
    how much each training step compiled."""
    from experiments.charlm import model as charlm_model
    from experiments.charlm import train as charlm_train
    from tests.harness.test_training_loop import compilations

    make_train_step = charlm_model.make_train_step
    path, stdout, compiled = tmp_path_factory.mktemp("smoke"), io.StringIO(), []

    def make_recording_step(*arguments):
        step = make_train_step(*arguments)

        def recording(state, batch):
            with compilations() as events:
                result = step(state, batch)
            compiled.append(len(events))
            return result

        return recording

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        patch.setattr(charlm_train, "make_train_step", make_recording_step)
        patch.setattr(sys, "stdout", stdout)
        charlm_train.main(charlm_train.Options(smoke=True, workdir=path))
    return path, stdout.getvalue(), compiled


def _run(monkeypatch, capsys, module, defaults, *arguments):
    from experiments.harness import cli, progress

    monkeypatch.setattr(progress, "FIRST_LINE", math.inf)  # none on slow machines
    monkeypatch.setenv("XLA_FLAGS", "")  # The program sets it up for JAX.
    name = module.__name__.split(".")[1]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    code = cli.run(module.main, module.Options, name, module.__doc__, defaults)
    return code, *capsys.readouterr()
