"""The shape of the project: who imports whom, and what is public."""

import ast
import graphlib
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
import jaxrnn

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "jaxrnn").rglob("*.py"))
PYTHON = sorted(
    path
    for folder in ("jaxrnn", "experiments", "tests")
    for path in (ROOT / folder).rglob("*.py")
)

# A file may import those to the left of it.
ORDER = [
    ["types", "_validation", "_jax_compat"],
    ["segments", "products", "calls"],
    ["dropout"],
    ["equations", "linear_recurrence"],
    ["cells"],
    ["scan"],
    ["fused", "remat"],
    ["native"],
    ["functional"],
    ["recurrent"],
    ["combinators"],
    ["layers"],
    ["models"],
    ["_nnx_options"],
    ["nnx"],
]
NO_JAX = {"_validation", "text", "batching", "torch_weights", "weights"}
NO_MODELS = {
    "_jax_compat",
    "_validation",
    "logits",
    "sampling",
    "types",
}
HEAVY = {"torch", "tensorflow", "tensorflow_datasets", "keras", "haiku", "h5py"}
# What runs code that stands in a file.
UNSAFE = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
UNSAFE |= {"eval", "exec", "allow_pickle"}


def imports(path):
    """The modules that a file imports when it is imported, not for types alone."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module(path):
    """The file of the library, or the package below it, that a file belongs to."""
    return path.relative_to(ROOT / "jaxrnn").parts[0].removesuffix(".py")


def modules_of_the_library(path):
    """The files and packages of the library that a file imports, but for its own."""
    names = {module(path) for path in LIBRARY} - {module(path)}
    parts = [name.split(".") for name in imports(path)]
    return {part[1] for part in parts if part[0] == "jaxrnn" and part[1] in names}


@pytest.mark.parametrize(
    "path", LIBRARY, ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_imports_go_one_way(path):
    top_level = {name.split(".")[0] for name in imports(path)}
    assert not top_level & (HEAVY | {"experiments", "tests"})
    if module(path) in NO_JAX:
        assert not top_level & {"jax", "jaxlib", "flax", "optax", "orbax"}
        assert modules_of_the_library(path) <= NO_JAX
    if path.stem in NO_MODELS:
        assert modules_of_the_library(path) <= NO_MODELS
    rank = {name: k for k, names in enumerate(ORDER) for name in names}
    if module(path) in rank:
        for other in modules_of_the_library(path):
            assert rank[other] < rank[module(path)], f"{path} imports {other}"


def test_import_is_light():
    script = "import sys, jaxrnn; print(*{m.split('.')[0] for m in sys.modules})"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    loaded = set(output.split())
    assert "jax" in loaded
    assert not loaded & (HEAVY | {"matplotlib", "orbax", "tyro"})


# The packages of experiments/: a file may import from its own and from those named.
PROGRAMS = {
    "harness": set(),
    "imdb": {"harness"},
    "charlm": {"harness"},
    "bench": {"harness", "imdb", "charlm"},
    "cells": {"harness", "charlm", "bench"},
    "plot": {"harness"},
}
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


def modules_of_the_programs(path):
    """The modules of experiments/ that a file imports anywhere in it, as paths."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "experiments":
                module = ROOT.joinpath(*parts).with_suffix(".py")
                parent = ROOT.joinpath(*parts[:-1]).with_suffix(".py")
                yield module if module.exists() else parent


def test_every_package_of_the_programs_is_seen():
    packages = {path.relative_to(ROOT / "experiments").parts[0] for path in EXPERIMENTS}
    assert packages == {*PROGRAMS, "__init__.py"}


@pytest.mark.parametrize(
    "path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT / "experiments"))
)
def test_the_programs_import_downwards(path):
    package = path.relative_to(ROOT / "experiments").with_suffix("").parts[0]
    for module in modules_of_the_programs(path):
        assert module.exists(), module
        other = module.relative_to(ROOT / "experiments").with_suffix("").parts[0]
        assert other == package or other in PROGRAMS[package], f"{path} -> {module}"


def test_no_files_of_the_programs_import_each_other_in_a_circle():
    graph = {path: set(modules_of_the_programs(path)) for path in EXPERIMENTS}
    assert sum(map(len, graph.values())) > 50
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_map_of_the_programs_names_every_package():
    named = set(re.findall(r"experiments\.(\w+)", experiments.__doc__ or ""))
    assert named == set(PROGRAMS)


def test_the_help_breaks_its_lines_where_a_sentence_ends():
    """tyro keeps the line breaks in the docstring of an option, at any width."""
    for path in EXPERIMENTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for field, doc in itertools.pairwise(node.body):
                    if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                        lines = ast.literal_eval(doc.value).splitlines()
                        assert all(line.endswith(".") for line in lines), lines


def test_public_names_exist_and_are_documented():
    assert sorted(jaxrnn.__all__) == sorted(set(jaxrnn.__all__))
    for name in jaxrnn.__all__:
        assert getattr(jaxrnn, name).__doc__, name


def public_objects():
    """Every function and class that a user is meant to find, and its name."""
    for name in jaxrnn.__all__:
        thing = getattr(jaxrnn, name)
        if not inspect.ismodule(thing):
            yield name, thing
            continue
        own = [k for k, v in vars(thing).items() if is_own(v, thing.__name__)]
        for key in getattr(thing, "__all__", own):
            yield f"{name}.{key}", getattr(thing, key)


def is_own(value, module):
    """Whether a public function or class was defined there; errors need no example."""
    return (
        (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module
        and not value.__name__.startswith("_")
        and not (inspect.isclass(value) and issubclass(value, Exception))
    )


def public_methods():
    """Of every public class the methods and properties, those it inherits from us too.

    Not `setup`, which is Flax's and not to be called.
    """
    classes = (thing for _, thing in public_objects() if inspect.isclass(thing))
    for kind in dict.fromkeys(base for thing in classes for base in thing.__mro__):
        for name, value in vars(kind).items():
            found = getattr(value, "__func__", getattr(value, "fget", value))
            is_public = not name.startswith("_") or name == "__call__"
            is_code = inspect.isfunction(found) and name != "setup"
            if is_public and is_code and found.__module__.startswith("jaxrnn"):
                yield f"{kind.__name__}.{name}", found


PUBLIC = [*public_objects(), *public_methods()]


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_what_is_public_has_a_runnable_example(name, value):
    documentation = value.__doc__ or ""
    # What another one's docstring describes has the example there.
    if ">>> " not in documentation:
        pattern = r"(?:[Aa]s|[Aa]s for|[Ll]ike) `(?:jaxrnn\.)?([\w.]+)`"
        described_elsewhere = re.search(pattern, documentation)
        assert described_elsewhere, name
        own_kind = name.rpartition(".")[0]
        named = described_elsewhere[1]
        there = dict(PUBLIC)[named if "." in named else f"{own_kind}.{named}"]
        assert ">>> " in there.__doc__


def words(code):
    """All that is imported or named anywhere in a code, functions and options too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.keyword):
            yield node.arg


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import os, joblib.externals as j",
        "from marshal import loads",
        "def read():\n    from dill import load",
        "if True:\n    import cloudpickle as safe",
        "run = [lambda text: eval(text)]",
        "list(map(exec, texts))",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_runs_code_of_a_file_is_seen(code):
    assert UNSAFE.intersection(words(code))


def test_nothing_is_unpickled():
    """Tests run what stands in the documentation, so there it may."""
    for path in PYTHON:
        is_test = (ROOT / "tests") in path.parents
        unsafe = UNSAFE - {"eval", "exec"} if is_test else UNSAFE
        assert not unsafe.intersection(words(path.read_text())), path
