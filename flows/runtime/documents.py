"""YAML of settings, read within limits: what is too large, too deep or multiplies itself is told.

A file of a few lines may stand for thousands of millions of values (an alias of aliases of
aliases), for one that holds itself, or be nested deeper than a reader's stack. All of it is seen in
the parser's events, before anything is made of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from headwater.errors import ConfigError

MOST_BYTES = 1_000_000
#: Settings of a head within the heads are three deep; lists of lists may be in them.
MOST_DEPTH = 20
#: Values, those that aliases repeat counted each time.
MOST_VALUES = 50_000

# The parser in C, where PyYAML was built with it, is ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_document(path: Path, expected: str, remedy: str = "") -> tuple[Any, yaml.Node | None]:
    """Return what a YAML file says, and its node, which knows the lines.

    Parameters
    ----------
    path
        The file.
    expected, remedy
        What it should have been, for a message that it cannot be read.

    Raises
    ------
    ConfigError
        Where it cannot be read, is no YAML or is beyond the limits; with the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if not (isinstance(error, UnicodeDecodeError) and len(data) > MOST_BYTES):
            what = getattr(error, "strerror", None) or "not a text file"
            raise ConfigError(f"{path}: {what}", expected=expected, remedy=remedy) from None
    if len(data) > MOST_BYTES:
        line = data.count(b"\n") + 1
        raise _beyond(path, line, "the file goes on", f"at most {MOST_BYTES // 10**6} MB")
    try:
        _check(path, text)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            return (loader.construct_document(root) if root else None), root
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{place}: {problem}", expected="valid YAML") from None
    except ValueError as error:  # 2026-13-45 looks like a date
        raise ConfigError(f"{path}: {error}", expected="valid YAML") from None


def _beyond(path: Path, line: int, what: str, most: str) -> ConfigError:
    return ConfigError(f"{path}, line {line}: {what}", expected=f"a file of settings: {most}")


def _check(path: Path, text: str) -> None:
    """Raise `ConfigError` at the first event that is beyond the limits."""
    size: dict[str, int] = {}  # values below an anchor, aliases counted out
    open_: list[tuple[str | None, int]] = []  # anchors of what is open, and values before it
    values = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = (event.start_mark.line if event.start_mark else 0) + 1
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                size[anchor] = values - before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        values += 1
        anchor = event.anchor
        if isinstance(event, yaml.AliasEvent):
            if anchor in (name for name, _ in open_):
                raise _beyond(path, line, f"*{anchor} holds itself", "without such")
            values += size.get(str(anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((anchor, values - 1))
            if len(open_) > MOST_DEPTH:
                raise _beyond(path, line, "nested too deep", f"at most {MOST_DEPTH} levels")
        elif anchor:
            size[anchor] = 1
        if values > MOST_VALUES:
            what = "too many values" if not size else "too many values, aliases counted out"
            raise _beyond(path, line, what, f"at most {MOST_VALUES:,} values")
