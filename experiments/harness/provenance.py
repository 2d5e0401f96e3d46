"""The versions and the machine that a result was obtained with."""

import importlib.metadata
import platform
from typing import Any

import jax

import jaxrnn
from experiments.harness import jax_setup

PACKAGES = ("flax", "jax", "numpy", "optax")


def environment() -> dict[str, Any]:
    """Return versions and machine of this process, as JSON.

    >>> sorted(environment())
    ['machine', 'versions']
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {
            "jaxrnn": jaxrnn.__version__,
            "python": platform.python_version(),
            **versions,
        },
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": jax_setup.cores(),
            "processes": jax.process_count(),
        },
    }
