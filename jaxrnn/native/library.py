"""Finds the compiled kernels, loads them and registers them with XLA.

The environment variable `JAXRNN_ISA` chooses among the instruction sets that the
processor has: `avx512`, `avx2` or `portable`; `none` leaves the kernels out.
"""

import ctypes
import functools
import os
import warnings
from pathlib import Path

import jax

# A program that XLA kept from another version must not find kernels that differ.
VERSION = 1
FORWARD = f"jaxrnn_forward_v{VERSION}"
BACKWARD = f"jaxrnn_backward_v{VERSION}"


@functools.cache
def instruction_set() -> str | None:
    """The kernels' instruction set: `"avx512"`, `"avx2"`, `"neon"` or `"portable"`.

    None if there are no kernels, because they were not compiled, `JAXRNN_ISA` is
    `none`, or this jaxlib cannot use them, which is warned of.

    >>> instruction_set() in ("avx512", "avx2", "neon", "portable", None)
    True
    """
    if os.environ.get("JAXRNN_ISA") == "none":
        return None
    paths = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not paths:
        return None
    try:
        library = ctypes.CDLL(str(paths[0]))
        targets = {FORWARD: library.jaxrnn_forward, BACKWARD: library.jaxrnn_backward}
        for name, target in targets.items():
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(target), platform="cpu")
    except Exception as error:  # of any kind: the library works without it
        warnings.warn(
            f"jaxrnn runs without its C++ kernels, {paths[0].name} does not fit this "
            f"jaxlib: {str(error).splitlines()[0]}. Install jaxrnn again to compile "
            "them anew",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    library.jaxrnn_instruction_set.restype = ctypes.c_char_p
    return library.jaxrnn_instruction_set().decode()
