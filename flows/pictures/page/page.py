"""One self-contained page: markup, style, scripts and data in one file that asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.text import shown

_FOLDER = Path(__file__).parent
#: In the order in which they build on each other.
_SCRIPTS = ("elements.js", "numbers.js", "charts.js", "board.js", "threshold.js", "pictures.js",
            "odd.js", "origin.js", "page.js")  # fmt: skip
#: Nothing may be fetched from anywhere; style and script are ours to the letter.
_POLICY = (
    "default-src 'none'; img-src data:; style-src '{0}'; script-src '{1}'; "
    "base-uri 'none'; form-action 'none'"
)


def page(data: Mapping[str, Any], title: str) -> str:
    """Return a page.

    Parameters
    ----------
    data
        JSON-ready: what `flows.use.report.gather` makes. Sections without data are left out. Text
        in it stays text, whatever it is made of.
    title
        Of the browser's tab.
    """
    style = _read("page.css")
    script = "(() => {\n'use strict';\n" + "\n".join(map(_read, _SCRIPTS)) + "\n})();"
    parts = {
        "policy": html.escape(_POLICY.format(_hash(style), _hash(script))),
        "title": html.escape(shown(title)),
        "style": style,
        "data": _inert(data),
        "script": script,
    }
    # Split at the marks once: what is put in is never looked at for marks.
    pieces = _read("page.html").split("@@")
    return "".join(parts[p] if i % 2 else p for i, p in enumerate(pieces))


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return a source as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(data: Mapping[str, Any]) -> str:
    r"""Return JSON that cannot end the script element it stands in.

    Examples
    --------
    >>> _inert({"name": "</script><!--"})
    '{"name":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
