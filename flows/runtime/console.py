"""What a person at the terminal sees: progress, tables, plain lines.

Results go to standard output, progress and warnings to standard error, so that ``--json`` can be
piped. Without a terminal progress becomes a line every few seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from headwater.text import shown

#: Where there is no terminal (a pipe, a log) a row stays one line, however long its paths.
_WIDTH = None if sys.stdout.isatty() else 10_000


class SafeConsole(Console):
    """A console that shows text that is not ours, such as file names, by `headwater.text.shown`.

    Line breaks stay: what is one line is made one where it is said.
    """

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as `Console.print` does; where there is no terminal, no line ends in blanks."""
        safe = [shown(o, lines=True) if isinstance(o, str) else o for o in objects]
        if self.is_terminal or all(isinstance(o, str) for o in objects):
            return super().print(*safe, **how)
        with self.capture() as got:  # a table fills its columns, the last one, too
            super().print(*safe, **how)
        text = "\n".join(line.rstrip() for line in got.get().split("\n"))
        super().print(text, end="", markup=False, soft_wrap=True)
        return None

    def print_json(self, json: str | None = None, **how: Any) -> None:
        """Print as `Console.print_json` does, in ASCII: escapes are read back as what they are."""
        super().print_json(json, **{"ensure_ascii": True, **how})


out = SafeConsole(highlight=False, soft_wrap=True, width=_WIDTH)
err = SafeConsole(stderr=True, highlight=False, soft_wrap=True)


_live: list[Reporter] = []


def reporter() -> Reporter:
    """Return the reporter that is showing progress now, or a quiet one."""
    return _live[-1] if _live else Reporter(quiet=True)


class Reporter:
    """Progress of named pieces of work that may run at the same time; thread-safe."""

    def __init__(self, every: float = 15.0, quiet: bool = False) -> None:
        self._every, self._quiet = every, quiet
        self._lock = threading.Lock()
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}", style="dim"),
        )
        # A training's step may take minutes: its pace is that of the last hour, not of 30 seconds.
        self._bars = Progress(*columns, console=err, transient=True, speed_estimate_period=3600)
        self._tasks: dict[str, TaskID] = {}
        self._spoken: dict[str, float] = {}

    @contextmanager
    def live(self) -> Iterator[Reporter]:
        """Show progress while the block runs; meanwhile `reporter` returns this one."""
        _live.append(self)
        try:
            with nullcontext() if self._quiet or not err.is_terminal else self._bars:
                yield self
        finally:
            _live.remove(self)

    def update(self, name: str, done: int, total: int, text: str = "") -> None:
        """Say how far `name` is; less than before is another stage of it, which `text` names."""
        if self._quiet:
            return
        with self._lock:
            now = time.monotonic()
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, text=text)
                self._spoken[name] = now
            task = self._bars.tasks[self._tasks[name]]
            if done < task.completed:
                # Its time left is not to be reckoned from the last stage's pace.
                self._bars.reset(task.id, total=total)
                self._spoken[name] = now
            text = shown(text)
            self._bars.update(task.id, completed=done, total=total, text=escape(text))
            if not self._bars.live.is_started and now - self._spoken[name] >= self._every:
                self._spoken[name] = now
                rest = task.time_remaining
                left = "" if rest is None else f", about {rest:.0f} s left"
                print(
                    f"  {name}: {task.percentage:3.0f} %{left}  {text}", file=sys.stderr, flush=True
                )

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        if not self._quiet:
            err.print(shown(text), markup=False)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    title: str | None = None,
    whole: Sequence[str] = (),
) -> Table:
    """Return a table; numbers are set flush right, None is shown as a dash, text is no markup.

    Where the terminal is narrow, columns in `whole` (ids to be copied) keep their width and the
    others are broken into lines; nothing is cut off.
    """
    head = None if title is None else Text(title, "bold")
    made = Table(title=head, box=None, pad_edge=False, title_justify="left")
    for i, column in enumerate(columns):
        numeric = any(isinstance(r[i], (int, float)) for r in rows)
        made.add_column(
            column,
            justify="right" if numeric else "left",
            header_style="bold",
            overflow="fold",
            no_wrap=column in whole,
        )
    for row in rows:
        made.add_row(*(Text(_cell(value)) for value in row))
    return made


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return shown(value)


def counted(count: int, what: str) -> str:
    """Return a number of things: ``1 map``, ``2 maps``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Return a time for people, no more exact than it is known: ``40 s``, ``7 min``, ``3.2 h``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Return a number of bytes for people: ``3.2 MB``."""
    return decimal(int(count))
