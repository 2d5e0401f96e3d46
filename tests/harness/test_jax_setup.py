"""The settings a program makes before JAX starts, each in a process of its own."""

import os
import subprocess
import sys

import pytest

from experiments.harness import jax_setup

SETTINGS = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "MALLOC_ARENA_MAX")
EIGEN = "--xla_cpu_multi_thread_eigen"


def run(code: str, **environment: str) -> str:
    """What `code` prints in a process that starts with `environment`'s settings."""
    inherited = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from experiments.harness import jax_setup as runtime\n{code}",
        ],
        env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_module_imports_no_jax():
    assert run("import sys; print('jax' in sys.modules)") == "False"


def test_two_devices_each_on_one_core():
    printed = run(
        "runtime.cores = lambda: 4; runtime.configure(2); import jax, os;"
        "print(len(jax.devices()), os.environ['XLA_FLAGS'].strip())"
    )
    assert printed == f"2 {EIGEN}=false"


def test_by_default_one_device_per_core():
    printed = run(
        "runtime.cores = lambda: 3; runtime.configure(); import jax;"
        "print(len(jax.devices()))"
    )
    assert printed == "3"


def test_a_single_device_keeps_its_threads():
    printed = run(
        "runtime.configure(1); import jax, os;"
        "print(len(jax.devices()), 'XLA_FLAGS' in os.environ)"
    )
    assert printed == "1 False"


def test_flags_of_the_user_survive():
    flags = f"--xla_cpu_enable_fast_math=false {EIGEN}=true"
    printed = run(
        "runtime.cores = lambda: 2; runtime.configure(); import jax, os;"
        "print(len(jax.devices()), os.environ['XLA_FLAGS'])",
        XLA_FLAGS=flags,
    )
    assert printed == f"2 {flags}"


def test_other_flags_are_kept_beside_ours():
    printed = run(
        "runtime.cores = lambda: 2; runtime.configure(); import os;"
        "print(os.environ['XLA_FLAGS'])",
        XLA_FLAGS="--xla_cpu_enable_fast_math=false",
    )
    assert printed == f"--xla_cpu_enable_fast_math=false {EIGEN}=false"


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_NUM_CPU_DEVICES": "5"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"},
    ],
)
def test_a_device_count_of_the_user_survives(environment):
    printed = run(
        "runtime.cores = lambda: 2; runtime.configure(5); import jax;"
        "print(len(jax.devices()))",
        **environment,
    )
    assert printed == "5"


def test_more_devices_than_there_are():
    printed = run(
        "runtime.cores = lambda: 2\n"
        "try: runtime.configure(3)\n"
        "except ValueError as error: print(error)"
    )
    assert printed == "--devices 3: there are only 2 (cpu): give a smaller number"


@pytest.mark.parametrize("devices", [0, -1])
def test_fewer_than_one_device(devices):
    with pytest.raises(ValueError, match=f"^--devices must be .* 1, got {devices}"):
        jax_setup.configure(devices)


class FakeLibc:
    def __init__(self):
        self.calls = {}

    def mallopt(self, parameter, value):
        self.calls[parameter] = value


@pytest.mark.parametrize(
    ("libc", "environment", "parameters"),
    [
        ("glibc", {}, {-3, -1, -8}),
        ("glibc", {"MALLOC_ARENA_MAX": "4"}, {-3, -1}),
        ("", {}, set()),
    ],
)
def test_memory_is_kept_on_glibc_alone_unless_the_user_says_otherwise(
    monkeypatch, libc, environment, parameters
):
    fake = FakeLibc()
    for variable in jax_setup._MALLOPT:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(jax_setup.platform, "libc_ver", lambda: (libc, "2.36"))
    monkeypatch.setattr(jax_setup.ctypes, "CDLL", lambda name: fake)
    jax_setup._keep_freed_memory()
    assert set(fake.calls) == parameters


def test_memory_settings_are_those_that_are_made(monkeypatch):
    for variable in jax_setup._MALLOPT:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    monkeypatch.setattr(jax_setup.platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert jax_setup.memory_settings() == {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "MALLOC_ARENA_MAX": "4",
    }
    monkeypatch.setattr(jax_setup.platform, "libc_ver", lambda: ("", ""))
    assert jax_setup.memory_settings() == {}
