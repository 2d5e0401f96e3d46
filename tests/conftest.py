"""What every test runs under: two CPU devices and JAX's strictest promotion rules."""

import sys

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


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
    from experiments import imdb, program  # After the settings above.

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["imdb", *map(str, arguments)])
        code = program.run(imdb.main, imdb.Options, "imdb", imdb.__doc__)
        return code, *capsys.readouterr()

    return run
