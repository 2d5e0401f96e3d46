"""Process settings before JAX starts: one CPU device per core, memory not returned.

Importing this file imports no JAX. The settings are for CPUs; accelerators ignore them,
so nothing here depends on the backend that JAX will choose.
"""

import ctypes
import os
import platform
from collections.abc import Callable

# Parameters of glibc's mallopt (malloc.h), by the environment variable that sets the
# same one, and the value given to each. XLA allocates the temporaries of a step anew
# at each call, and glibc by default hands large ones back to the kernel: every step
# then pays for its pages again. The thresholds alone are not enough, since a thread's
# own arena has room for 64 MB only and maps what is larger: hence the one arena.
_MALLOPT = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**30),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_ARENA_MAX": (-8, 1),
}


def configure(
    devices: int | None = None, join: Callable[[], None] = lambda: None
) -> None:
    """Set up JAX for this process; with `devices` also start it, to count them.

    In between `join` is called, to connect to other processes.

    On a CPU there is one device per core, or `devices` of them; with more than one,
    each computes on its own core (`--xla_cpu_multi_thread_eigen=false`). glibc keeps
    freed memory for the next step. Whatever the environment already sets
    (`JAX_NUM_CPU_DEVICES`, the same flag in `XLA_FLAGS`, `MALLOC_…`) stays as it is.

    Raises:
        ValueError: `devices` is below 1 or above the number there are: cores, unless
            the environment sets another number of CPU devices, or accelerators.

    >>> import jax
    >>> configure(devices=1)
    >>> len(jax.devices()) >= 1
    True
    """
    if devices is not None and devices < 1:
        raise ValueError(f"--devices must be at least 1, got {devices}")
    _keep_freed_memory()

    import jax

    xla_flags = os.environ.get("XLA_FLAGS", "")
    count = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if count < 0 and "--xla_force_host_platform_device_count" not in xla_flags:  # unset
        count = min(devices or cores(), cores())
        jax.config.update("jax_num_cpu_devices", count)
    if count > 1 and "--xla_cpu_multi_thread_eigen" not in xla_flags:
        # XLA reads the variable when the backend starts, not when JAX is imported.
        os.environ["XLA_FLAGS"] = f"{xla_flags} --xla_cpu_multi_thread_eigen=false"

    join()
    if devices is not None and devices > jax.local_device_count():
        raise ValueError(
            f"--devices {devices}: there are only {jax.local_device_count()} "
            f"({jax.default_backend()}): give a smaller number"
        )


def memory_settings() -> dict[str, str]:
    """Return what `configure` sets of glibc's allocator, by environment variable.

    With another C library there is nothing.

    >>> all(name.startswith("MALLOC_") for name in memory_settings())
    True
    """
    if platform.libc_ver()[0] != "glibc":
        return {}
    return {
        variable: os.environ.get(variable, str(value))
        for variable, (_, value) in _MALLOPT.items()
    }


def _keep_freed_memory() -> None:
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for variable, (parameter, value) in _MALLOPT.items():
        if variable not in os.environ:
            libc.mallopt(parameter, value)


def cores() -> int:
    """Return the number of cores that this process may use.

    >>> cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
