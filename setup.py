"""The C++ kernels, an optional extension: without a compiler all is pure JAX."""

import importlib.util

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildKernels(build_ext):
    """A shared library for ctypes, which is the same for every Python."""

    def get_ext_filename(self, fullname):
        """Without the version of Python."""
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext):
        """None that Python would call."""
        return []


class Wheel(bdist_wheel):
    """A wheel for one machine and any Python."""

    def get_tag(self):
        """Of Python, of its ABI, and of the machine."""
        return "py3", "none", super().get_tag()[2]


def kernels():
    """The extension, if the headers of XLA's FFI are here: they come with jaxlib."""
    jaxlib = importlib.util.find_spec("jaxlib")
    if jaxlib is None or not jaxlib.submodule_search_locations:
        return []
    folder = "jaxrnn/native"
    return [
        Extension(
            "jaxrnn.native._kernels",
            sources=[f"{folder}/recurrence.cpp", f"{folder}/ffi.cpp"],
            depends=[f"{folder}/recurrence.h", f"{folder}/kernels.h"],
            # Nothing here reads errno or floating point exceptions; vectors are passed
            # between functions of one file alone.
            extra_compile_args=[
                f"-isystem{jaxlib.submodule_search_locations[0]}/include",
                "-std=c++17",
                "-O3",
                "-g0",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-Wno-psabi",
            ],
            language="c++",
            optional=True,
        )
    ]


setup(ext_modules=kernels(), cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel})
