"""What is for Colab, which is not here: the first cell of the notebooks with a shell
that only writes down what it is told, and the same lines in the documentation."""

import ast
import fnmatch
import glob
import re
import sys
import tomllib
from importlib import metadata
from types import ModuleType

import pytest
from IPython.core.inputtransformer2 import TransformerManager

import jaxrnn
from tests.test_notebooks import NOTEBOOKS, read
from tests.test_structure import ROOT

ADDRESS = "https://host/people/jaxrnn.git"
FOLDERS = "# `JAXRNN_NOTEBOOK=short`"  # Only what comes after it differs.

# What each kind of machine has in /dev; the driver's own files are no device.
CPU = ["/dev/null", "/dev/nvidiactl", "/dev/vfio/vfio"]
GPU = ["/dev/nvidia0", *CPU]
OLD_TPU = ["/dev/accel0", "/dev/accel1", *CPU]
NEW_TPU = ["/dev/vfio/0", *CPU]


class Shell:
    """Stands for IPython: keeps the commands, with the cell's variables filled in."""

    def __init__(self, variables):
        self.variables = variables
        self.commands = []

    def system(self, line):
        self.commands.append("!" + line.format_map(self.variables))

    def run_line_magic(self, name, line):
        self.commands.append(f"%{name} " + line.format_map(self.variables))


def run(cell, devices, monkeypatch):
    """The commands of a first cell in Colab on a machine with these devices."""
    variables = {}
    shell = Shell(variables)
    variables["get_ipython"] = lambda: shell
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(glob, "glob", lambda found: fnmatch.filter(devices, found))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.chdir(ROOT / "experiments" / "notebooks")
    exec(TransformerManager().transform_cell(cell), variables)
    return shell.commands


@NOTEBOOKS
@pytest.mark.parametrize(
    ("devices", "jax"),
    [(CPU, "jax"), (GPU, "jax[cuda12]"), (OLD_TPU, "jax[tpu]"), (NEW_TPU, "jax[tpu]")],
    ids=["cpu", "gpu", "old_tpu", "new_tpu"],
)
def test_the_first_cell_clones_and_installs(name, devices, jax, monkeypatch):
    cell = read(name)[1][0].source
    filled = cell.replace('REPOSITORY = ""', f'REPOSITORY = "{ADDRESS}"')
    assert run(filled, devices, monkeypatch) == [
        f'!git clone --quiet --depth 1 "{ADDRESS}" /content/clone',
        "%cd -q /content/clone",
        f'%pip install -q "{jax}" ".[experiments]"',
    ]
    assert sys.path == [str(ROOT)]
    with pytest.raises(ValueError, match=r"REPOSITORY .*git clone"):
        run(cell, devices, monkeypatch)


def test_all_notebooks_begin_alike():
    starts = {read(name)[1][0].source.split(FOLDERS)[0] for name in NOTEBOOKS.args[1]}
    [start] = starts
    assert "git clone" in start


def test_what_is_installed_exists():
    of_jax = metadata.metadata("jax").get_all("Provides-Extra")
    assert {"cuda12", "tpu"} <= {*of_jax}
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "experiments" in ours["optional-dependencies"]


def test_the_documentation_has_the_same_for_both_programs():
    page = (ROOT / "docs" / "installation.md").read_text()
    [block] = [b for b in re.findall(r"```bash\n(.*?)```", page, re.S) if "cuda" in b]
    assert [re.sub(" +#.*", "", line) for line in block.splitlines()] == [
        "git clone --depth 1 ADDRESS jaxrnn",
        "cd jaxrnn",
        'pip install -q ".[experiments]"',
        'pip install -q ".[experiments]" "jax[cuda12]"',
        'pip install -q ".[experiments]" "jax[tpu]"',
        "python -m experiments.imdb",
        "python -m experiments.charlm --sample",
    ]


def test_notebooks_use_what_is_public():
    loaders = set()
    for name in NOTEBOOKS.args[1]:
        cells = [cell.source for cell in read(name)[1]]
        tree = ast.parse(TransformerManager().transform_cell("\n".join(cells)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert not re.match("_(?!_)", node.attr), node.attr
                if ast.unparse(node.value) == "jaxrnn":
                    assert node.attr in jaxrnn.__all__
            elif isinstance(node, ast.Import):
                ours = [n.name for n in node.names if n.name.startswith("jaxrnn")]
                assert ours in ([], ["jaxrnn"])
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                loaders |= {n for n in names if n.startswith("experiments")}
                for found in (n.split(".") for n in names if n.startswith("jaxrnn.")):
                    assert found[1] in jaxrnn.__all__
                    assert not any(part.startswith("_") for part in found)
    assert loaders == {
        "experiments.imdb.datasets.load_imdb",
        "experiments.charlm.datasets.load_shakespeare",
    }
