"""The README and the documentation: every Python block runs, and what they name exists.

The blocks of a page run in order, in one namespace, as in a session of a user: in an
empty directory, under JAX's default promotion rules.
"""

import ast
import dataclasses
import inspect
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import jax
import pytest

import jaxrnn

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]
RECIPES = sorted(DOCS.glob("recipes/[!i]*.md"))
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S)
# Blocks of other languages; those in braces are directives of MyST.
NOT_RUN = re.compile(r"bash|text|csv|json|\{(?!code)[\w:.-]+\}")


def name_of(page):
    return str(page.relative_to(ROOT))


def python_blocks(page):
    """The code of each block, behind as many line breaks as there are lines before it:
    tracebacks name the lines of the page."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        if found[1] == "python":
            yield "\n" * text[: found.start(2)].count("\n") + found[2]


def imported(blocks):
    """The top-level packages that the blocks import."""
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield (node.module or "").split(".")[0]


def needs_trained_models(block):
    """Such blocks run in the tests of the programs, which have trained ones."""
    return "runs/" in block


def runnable_pages():
    blocks = {page: [*python_blocks(page)] for page in PAGES}
    return {
        page: kept
        for page, found in blocks.items()
        if (kept := [block for block in found if not needs_trained_models(block)])
    }


RUNNABLE = runnable_pages()


# Keras reads its own variables in a way that numpy will stop to allow.
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def slow_but_for_the_first_pages():
    first = {ROOT / "README.md", ROOT / "docs" / "quickstart.md"}
    for page in RUNNABLE:
        marks = [] if page in first else [pytest.mark.slow]
        yield pytest.param(page, id=name_of(page), marks=marks)


# Of Keras, whose variables have an older __array__ than numpy 2 wants.
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
@pytest.mark.parametrize("page", [*slow_but_for_the_first_pages()])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for package in sorted({*imported(RUNNABLE[page])} & {"torch", "keras", "haiku"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Haiku has some.
            pytest.importorskip(package)
    module = ModuleType("page")  # Where the classes of a page find themselves.
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in RUNNABLE[page]:
            exec(compile(block, page, "exec"), vars(module))


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_the_code_of_a_page_asserts_what_it_shows(page):
    nodes = [node for block in RUNNABLE[page] for node in ast.walk(ast.parse(block))]
    called = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    assert any(isinstance(node, ast.Assert) for node in nodes) or any(
        name.startswith("assert_")
        for name in called  # numpy.testing's
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_escapes(page):
    """What is not marked as Python, or is indented, would not run."""
    text = page.read_text()
    languages = [found[1] for found in FENCE.finditer(text)]
    assert len(re.findall(r"^ *```", text, re.M)) == 2 * len(languages)
    for language in languages:
        assert language == "python" or NOT_RUN.fullmatch(language), language


@pytest.mark.parametrize("page", RECIPES, ids=name_of)
def test_a_recipe_is_short(page):
    lines = "".join(python_blocks(page)).splitlines()
    assert 0 < len([line for line in lines if line.strip()]) <= 60


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_links_to_exists(page):
    text = FENCE.sub("", page.read_text())  # In code, `](` is a call.
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        # conf.py copies the notebooks, as Sphinx reads nothing outside its folder.
        there = re.sub("^notebooks/", "../experiments/notebooks/", link)
        assert link.startswith("https://") or (page.parent / there).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    folders = r"(?<![\w/])(?:docs|experiments|jaxrnn|tests)"
    for named in re.findall(rf"{folders}/[\w/*.-]+\.\w+", page.read_text()):
        assert [*ROOT.glob(named)], named


def test_the_readme_fits_on_three_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_api_pages_have_all_that_is_public():
    pages = "".join(page.read_text() for page in DOCS.glob("api/*.rst"))
    kinds = "class|function|module"
    documented = re.findall(rf"^\.\. auto(?:{kinds}):: jaxrnn\.(\w+)$", pages, re.M)
    # The last one is imported only by those who use it.
    assert sorted(documented) == sorted({*jaxrnn.__all__, "nnx"})


def public_dataclasses():
    for name in jaxrnn.__all__:
        thing = getattr(jaxrnn, name)
        found = vars(thing).values() if inspect.ismodule(thing) else [thing]
        yield from (
            value
            for value in found
            if inspect.isclass(value)
            and dataclasses.is_dataclass(value)
            and value.__module__.startswith("jaxrnn")
        )


@pytest.mark.parametrize(
    "cls", dict.fromkeys(public_dataclasses()), ids=lambda cls: cls.__name__
)
def test_every_attribute_of_a_class_is_described(cls, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    import flax_modules

    fields = {field.name for field in flax_modules.fields(cls)}
    assert fields - flax_modules.described(cls).keys() == set()
