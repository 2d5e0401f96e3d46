"""The recurrences in C++ for CPUs, through XLA's foreign function interface.

`library` finds and loads what was compiled, if it was: the extension is optional.
`ffi_calls` hands arrays to it. `primitives` makes JAX primitives of both passes, which
are pure functions first (those of `jaxrnn.fused`) and have the C++ kernels as their
lowering for CPUs. The kernels are in `kernels.h`, what runs them in `recurrence.cpp`,
and what XLA calls in `ffi.cpp`.
"""
