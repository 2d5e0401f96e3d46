"""A Sphinx extension: Flax modules, and other classes, as their users see them.

Of a dataclass all fields are described, those that it inherits too, and its signature
has the defaults as they stand in the source. What Flax or Python puts into a class
(`parent`, `apply`, `_replace`, ...) is left out.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any

FIELDS_OF_FLAX = {"parent", "name"}


def fields(cls: type) -> list[dataclasses.Field]:
    """The fields that a user gives."""
    return [
        f for f in dataclasses.fields(cls) if f.init and f.name not in FIELDS_OF_FLAX
    ]


def described(cls: type) -> dict[str, str]:
    """What the class's docstring, or that of a base class, says of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        documentation = inspect.cleandoc(vars(base).get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?: .*\n?|\n)+)", documentation, re.M)
        if section and base.__module__.split(".")[0] == "jaxrnn":
            entries = textwrap.dedent(section[1]).strip()
            for entry in re.split(r"\n(?=\S)", entries):
                names, _, text = entry.partition(":")
                found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _defaults(cls: type) -> dict[str, str]:
    """The source of each field's default."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] != "jaxrnn":
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        for node in getattr(tree.body[0], "body", []):
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                found[ast.unparse(node.target)] = ast.unparse(node.value)
    return found


def _signature(cls: type) -> str:
    defaults = _defaults(cls)
    parameters, by_name = [], False
    for field in fields(cls):
        if field.kw_only and not by_name:
            by_name = True
            parameters.append("*")
        has = field.name in defaults
        parameters.append(field.name + (f"={defaults[field.name]}" if has else ""))
    return f"({', '.join(parameters)})"


def process_signature(
    app: Any, what: str, name: str, thing: Any, options: Any, *signature: str | None
) -> tuple[str | None, ...]:
    if what == "class" and dataclasses.is_dataclass(thing):
        return _signature(thing), None
    return tuple(
        text and text.replace("jaxlib._jax.Array", "Array") for text in signature
    )


def process_docstring(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """All fields under "Attributes:", in the order in which they are given."""
    # In reStructuredText nothing may follow a name in backquotes: `Mean`s.
    lines[:] = [re.sub(r"(`[\w.]+`)(?=s\b)", r"\1\\ ", line) for line in lines]
    if what != "class" or not dataclasses.is_dataclass(thing):
        return
    texts = described(thing)
    documentation = "\n".join(lines) + "\n"
    own = r"^Attributes:\n((?: .*\n?|\n)+)"
    documentation = re.sub(own, "", documentation, flags=re.M)
    entries = [
        f"    {f.name}: {texts[f.name]}" for f in fields(thing) if f.name in texts
    ]
    if entries:
        # Before the first example, or section.
        parts = re.split(r"(?m)^(?=>>> |Raises:|Reference)", documentation, maxsplit=1)
        parts.insert(1, "\n".join(["Attributes:", *entries, "", ""]))
        documentation = "".join(parts)
    lines[:] = documentation.splitlines()


def skip_member(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any):
    """Whether it is not ours; None leaves the decision to others."""
    code = getattr(thing, "fget", None) or getattr(thing, "func", None) or thing
    code = getattr(code, "__func__", code)
    module = getattr(code, "__module__", None) or ""
    of_others = not module.startswith("jaxrnn")
    if what == "class" and (of_others or name == "setup" or isinstance(thing, type)):
        return True
    return None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-signature", process_signature)
    # Before napoleon reads the sections.
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True}
