"""Pages for people: single HTML files that hold all they need.

What comes from outside is in a page as JSON, and its script sets it as text, never as
markup. A content security policy with the hashes of style and script lets nothing else
run, and nothing be loaded.
"""

import base64
import hashlib
import html
import json
from pathlib import Path
from string import Template
from typing import Any, Literal

import jax

TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    path: Path, kind: Literal["explanation", "neurons"], title: str, data: Any
) -> None:
    """Writes the page of a `kind` that shows the JSON `data`; of several processes the
    first one does.

    Raises:
        ValueError: the file cannot be written.
    """
    if jax.process_index() > 0:
        return
    style = _read("page.css") + _read(f"{kind}.css")
    script = _read("page.js") + _read(f"{kind}.js")
    page = Template(_read("page.html")).substitute(
        title=html.escape(title),
        style=style,
        style_hash=_hash(style),
        body=_read(f"{kind}.html"),
        data=embed(data),
        script=script,
        script_hash=_hash(script),
    )
    try:
        path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ValueError(
            f"cannot write {path} ({error.strerror}): give another --html"
        ) from error


def embed(data: Any) -> str:
    """JSON that ends no script element, whatever is in it.

    >>> embed({"text": "</script>"})
    '{"text": "\\\\u003c/script>"}'
    """
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """As content security policies have it."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
