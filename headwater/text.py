"""Text that is not ours, shown so that it can do no harm: file names, mostly.

A name may hold a line break that forges a line of a log, an escape sequence that paints the
terminal or answers for the user, marks that turn its letters round, or bytes that are no text.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

#: Marks that do not show and change how the rest reads: Unicode calls them formats. Joiners belong
#: to words of some scripts and to pictures, and only join.
_HARMLESS = frozenset("\u200c\u200d")
#: What makes a program of tables take a cell for a formula.
#: From a byte that is no text, as Python has it, to a private character.
_PLANE = 0x100000
_FORMULA = tuple("=+-@\t\r\n")


def shown(value: object, *, lines: bool = False) -> str:
    r"""Return text with what could harm its reader written as escapes.

    Control characters (line breaks and escape sequences among them), marks that turn the direction
    of reading, lone surrogates (bytes that are no UTF-8) and what no font can show.

    Parameters
    ----------
    value
        A name, a path, or a sentence with some in it.
    lines
        Whether line breaks stay: a text of several lines that is not a name.

    Examples
    --------
    >>> shown("a\nnote: all is well \x1b[31m"), shown(PurePath("gr\udcfcn.png"))
    ('a\\nnote: all is well \\x1b[31m', 'gr\\xfcn.png')
    >>> shown("grün.png"), shown("a\u202egnp.exe"), shown("one\ntwo", lines=True)
    ('grün.png', 'a\\u202egnp.exe', 'one\ntwo')
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if (lines and c == "\n") or _plain(c) else _escaped(c) for c in text)


def _plain(c: str) -> bool:
    # Cc control, Cf format, Cs surrogate, Co private, Cn unassigned, Zl and Zp separators.
    kind = unicodedata.category(c)
    return (kind[0] != "C" and kind not in ("Zl", "Zp")) or c in _HARMLESS


def _escaped(c: str) -> str:
    if c in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[c]
    code = ord(_byte(c))
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that is no text
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def few(equals: Sequence[tuple[object, object]], most: int = 3) -> str:
    """Return the first of some things that are alike, and how many more there are.

    Examples
    --------
    >>> few([("a", "b"), ("c", "d")], most=1)
    'a = b and 1 more'
    """
    told = ", ".join(f"{one} = {other}" for one, other in equals[:most])
    return f"{told} and {len(equals) - most} more" if len(equals) > most else told


def one_of(known: Sequence[str], wrong: str = "", most: int = 20) -> str:
    """Return what there is to choose from, for a message: names like the wrong one first.

    Examples
    --------
    >>> one_of(["nuts", "tiles", "tile"], "tyle"), one_of(["nuts", "tiles"], most=1), one_of([])
    ('one of tile, tiles, nuts', 'one of nuts and 1 more', '')
    """
    import difflib  # late: nothing is wrong, mostly

    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    names = [*near, *(name for name in known if name not in near)]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"one of {', '.join(names[:most])}{more}" if names else ""


def storable(text: str) -> str:
    r"""Return a name as UTF-8 can hold it: bytes that are no text become private characters.

    `restored` gives the name back; every other name is returned as it is.

    Examples
    --------
    >>> storable("gr\udcfcn.png") == "gr\U0010dcfcn.png", restored("gr\U0010dcfcn.png")
    (True, 'gr\udcfcn.png')
    """
    return text if text.isascii() else "".join(map(_private, text))


def restored(text: str) -> str:
    """Return the name that `storable` made storable."""
    return text if text.isascii() else "".join(map(_byte, text))


def _private(c: str) -> str:
    return chr(ord(c) + _PLANE) if 0xDC80 <= ord(c) <= 0xDCFF else c


def _byte(c: str) -> str:
    return chr(ord(c) - _PLANE) if 0xDC80 <= ord(c) - _PLANE <= 0xDCFF else c


def cell(value: object) -> object:
    """Return a cell of a table that others open: no name is taken for a formula.

    Text that begins as formulas do gets an apostrophe before it, as programs of tables write text;
    numbers stay what they are.

    Examples
    --------
    >>> cell("=cmd|' /C calc'!A0"), cell("good/000.png"), cell(-1.5)
    ("'=cmd|' /C calc'!A0", 'good/000.png', -1.5)
    """
    if not isinstance(value, str | PurePath):
        return value
    text = str(value)
    return f"'{shown(text)}" if text.startswith(_FORMULA) else shown(text)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    r"""Return rows as a table of comma-separated values; no cell is taken for a formula (`cell`).

    Parameters
    ----------
    rows
        Values by column; what a row lacks is empty.
    columns
        Their order; without them that in which the rows name them.

    Examples
    --------
    >>> csv_text([{"image": "a.png", "score": 1.5}, {"image": "=b", "error": "gone"}])
    "image,score,error\na.png,1.5,\n'=b,,gone\n"
    """
    text = io.StringIO()
    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()
