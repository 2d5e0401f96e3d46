"""Sphinx settings. `sphinx-build -W docs build/docs` writes build/docs/index.html."""

import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "_ext")]

import jaxrnn  # noqa: E402

# Sphinx reads nothing outside its own folder.
shutil.copytree(
    ROOT / "experiments" / "notebooks",
    DOCS / "notebooks",
    ignore=shutil.ignore_patterns(".*"),
    dirs_exist_ok=True,
)

project = "jaxrnn"
author = "the jaxrnn authors"
version = release = jaxrnn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "flax_modules",
]
exclude_patterns = ["_ext"]
default_role = "py:obj"  # `name` in a docstring is a link where there is such a name
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # The tests run the notebooks and every code block.

autodoc_default_options = {
    "members": True,
    "inherited-members": True,
    "special-members": "__call__",
    "member-order": "bysource",
}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# As the docstrings have it: name, then what it is.
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "jaxrnn"
html_static_path = ["_static"]
html_css_files = ["code.css"]
html_theme_options = {
    "navbar_persistent": [],  # The search is in the sidebar.
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
