"""Names of files are shown so that they can do no harm, by errors, console and tables."""

from __future__ import annotations

import io
import unicodedata

import pytest

from flows.runtime.console import SafeConsole, table
from headwater.errors import ConfigError, ImageError, several
from headwater.text import cell, shown

#: Line break, colours, a title set, a bell, C1's escape, direction marks, a byte that is no text.
BAD = "a\nnote: fine\r\t\x1b[31m\x1b]0;t\x07\x9b2J\u202egnp\u2066\u2028\u200b\udce4\x7f\x00"


def raw(text: str) -> list[str]:
    """The characters that would act on a terminal or a log, line breaks apart."""
    return [c for c in text if unicodedata.category(c)[0] == "C" and c != "\n"] + [
        c for c in text if c in "\u2028\u2029"
    ]


def test_names_are_one_harmless_line():
    assert raw(BAD)
    assert not raw(shown(BAD))
    assert "\n" not in shown(BAD)
    assert "\\n" in shown(BAD)
    assert "\\xe4" in shown(BAD)
    for plain in ("grün.png", "面.png", "a b-c_(1).png", "नि\u200dष्क"):
        assert shown(plain) == plain


def test_errors_tell_a_name_in_one_line():
    text = str(ImageError(f"{BAD}: not an image", expected=f"one of {BAD}", remedy=BAD))
    assert not raw(text)
    assert [line[:11] for line in text.split("\n")[1:]] == ["  expected:", "  remedy: a"]
    assert str(ConfigError(several(["one", "two"]))) == "one\ntwo"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_lets_nothing_through(terminal):
    file = io.TextIOWrapper(io.BytesIO(), "ascii", "backslashreplace")
    console = SafeConsole(file=file, force_terminal=terminal, color_system=None, width=1000)
    console.print(f"note: {shown(BAD)}", markup=False)
    console.print(f"[bold]{BAD}[/]")
    console.print(table(["image", "score"], [[BAD, 1.0]]))
    console.print_json(data=[{"image": BAD}])
    file.seek(0)
    said = file.read().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert not raw(said)
    assert not any(line.startswith("note: fine") for line in said.split("\n")[:1])


def test_cells_are_no_formulas():
    for formula in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"):
        assert str(cell(formula)).startswith("'")
    assert cell("good/=1.png") == "good/=1.png"
    assert cell(-1.5) == -1.5
    assert cell(None) is None
