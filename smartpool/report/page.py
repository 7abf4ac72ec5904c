"""One self-contained HTML page: it opens offline, asks the network for nothing, and runs only our script.

The page carries a content security policy that allows the one script by its hash and no connection
at all. So even text that slipped through the escaping could not run or send anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from smartpool.drawing.assets import joined
from smartpool.report.text import printable

__all__ = ["NO_SCRIPT", "data_block", "escaped", "html_page", "text_block", "write_page"]

NO_SCRIPT: Final = (
    "<noscript><p>The pictures need JavaScript; what is in words and tables does not.</p></noscript>"
)


def html_page(title: str, body: str, *, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Return a page with styles and scripts of ours.

    Parameters
    ----------
    title
        Plain text; escaped here.
    body
        HTML, put in as it is: whoever builds it escapes what is in it.
    styles, scripts
        Files of this package or of the drawing kit, put together in this order.
    """
    script = joined(scripts, __package__)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{joined(styles, __package__)}</style>\n</head>\n"
        f"<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def escaped(text: str) -> str:
    """Return text that is safe inside an element and inside a quoted attribute.

    >>> escaped('<b a="1">')
    '&lt;b a=&quot;1&quot;&gt;'
    """
    return html.escape(printable(text), quote=True)


def data_block(data: object, *, name: str | None = None) -> str:
    r"""Return `data` as a block of JSON that the page's script can read and no parser can leave early.

    >>> data_block({"name": "</script>"})
    '<script type="application/json">{"name":"\\u003c/script>"}</script>'
    """
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return text_block(text, kind="application/json", name=name)


def text_block(text: str, *, kind: str, name: str | None = None) -> str:
    """Return text that the page's script can read by the id `name`. It must hold no ``<``."""
    if "<" in text:
        raise ValueError("expected text without '<', which could end the block early")
    identity = "" if name is None else f' id="{name}"'
    return f'<script type="{kind}"{identity}>{text}</script>'


def write_page(path: str | os.PathLike[str], page: str) -> Path:
    """Write a page, or a picture, and return its path. `OSError` when that cannot be done."""
    target = Path(path)
    target.write_text(page, encoding="utf-8")
    return target
