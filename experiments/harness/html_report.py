"""Reports as single HTML pages with everything they need.

Data from outside is embedded as JSON, and the script inserts it as text, never as
markup. A content security policy with the hashes of style and script lets nothing else
run, and nothing be loaded.
"""

import base64
import hashlib
import html
import json
from pathlib import Path
from string import Template
from typing import Any

import jax

from experiments.harness.files import replace_file

PAGE = Path(__file__).parent / "templates" / "page"


def write_page(path: Path, template: Path, title: str, data: Any) -> None:
    """Write the page of `render`, on the first process only.

    Raises:
        ValueError: the file cannot be written.
    """
    if jax.process_index() > 0:
        return
    page = render(template, title, data)
    content = page.encode()
    replace_file(path, lambda partial: partial.write_bytes(content), "--html")


def render(template: Path, title: str, data: Any, *, served: bool = False) -> str:
    """Return a page that shows the JSON `data`.

    `template` is the path, without a suffix, of the .html, .css and .js files that are
    added to those of every page; so is shared.js beside them. A page that is served may
    ask its server for more.
    """
    style = _read(PAGE, ".css") + _read(template, ".css")
    shared = template.with_name("shared")
    script = "".join(_read(part, ".js") for part in (PAGE, shared, template))
    return Template(_read(PAGE, ".html")).substitute(
        connect="connect-src 'self'; " if served else "",
        title=html.escape(title),
        style=style,
        style_hash=_hash(style),
        body=_read(template, ".html"),
        data=embed(data),
        script=script,
        script_hash=_hash(script),
    )


def embed(data: Any) -> str:
    r"""Return JSON that cannot end the script element it is in.

    >>> embed({"text": "</script>"})
    '{"text": "\\u003c/script>"}'
    """
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _read(template: Path, suffix: str) -> str:
    return template.with_suffix(suffix).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """Return a hash in the format of content security policies."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
