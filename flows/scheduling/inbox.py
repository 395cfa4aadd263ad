"""A folder that new images are dropped into: what has settled is taken, what cannot be is put by.

Nothing is lost: a file leaves the inbox once its bytes lie where the set's images are, and what is
refused is moved to ``refused/`` in the inbox, with the reason in ``refused/why.txt``. Nothing that
its name says is believed, links are not followed, and no clock is asked: a file has settled when it
looked the same for so many seconds, however its times are set.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from features.images.junk import junk_file, junk_folder
from features.images.pixels import SUFFIXES
from headwater.errors import DataError, ImageError
from headwater.text import shown

REFUSED = "refused"
#: Ends of names that programs give files which they are still writing.
_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", "~")
#: Puts an image into the set's: its bytes, and what comes first in its name, so that names keep the
#: order in which images came. Returns its file, and whether it is new there.
Put = Callable[[bytes, str], tuple[Path, bool]]


@dataclass
class Taken:
    """What one look at an inbox found.

    Parameters
    ----------
    new
        Files that were put among the set's images.
    known
        How many more were there already.
    refused
        ``(name, why)``.
    waiting
        How many are not settled yet.
    trouble
        What could not be done now, and is tried again: ``(name, why)``.
    """

    new: list[Path] = field(default_factory=list)
    known: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    waiting: int = 0
    trouble: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Entry:
    """A file of the inbox as it looks now."""

    path: str
    name: str
    mode: int
    size: int
    mtime: int
    sign: tuple[int, ...]


class Inbox:
    """The inbox of one set.

    Parameters
    ----------
    folder
        Made where it is missing.
    put
        See `Put`.
    settle
        Seconds for which a file must look the same.
    max_mb
        10^6 bytes above which it is refused unread.
    clock
        Seconds that only go forward.

    Raises
    ------
    DataError
        Where there is something else than a folder.
    """

    def __init__(
        self,
        folder: Path,
        put: Put,
        *,
        settle: float,
        max_mb: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self._put, self._settle, self._clock = folder, put, settle, clock
        self._most = int(max_mb * 1e6)
        self._since: dict[str, tuple[tuple[int, ...], float]] = {}
        #: Whether it was not there: a name that was misspelt is made, too.
        self.made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"inbox {folder}: {error.strerror}", expected="a folder that may be written to"
            ) from error

    def look(self) -> Taken:
        """Take what has settled since the last look, oldest first.

        What cannot be done now (the disk is full, the network drive away) is in `Taken.trouble`,
        and stays where it is.
        """
        found, now = Taken(), self._clock()
        entries = sorted(self._entries(self.folder, found), key=lambda e: (e.mtime, e.path))
        self._since = {e.path: self._first_seen(e, now) for e in entries}
        settled = [e for e in entries if now - self._since[e.path][1] >= self._settle]
        found.waiting = len(entries) - len(settled)
        for number, entry in enumerate(settled):
            try:
                self._take(entry, number, found)
            except OSError as error:
                found.trouble.append((entry.name, error.strerror or str(error)))
        return found

    def _first_seen(self, entry: _Entry, now: float) -> tuple[tuple[int, ...], float]:
        sign, since = self._since.get(entry.path, (None, now))
        return entry.sign, since if sign == entry.sign else now

    def _entries(self, folder: Path | str, found: Taken) -> Iterator[_Entry]:
        """Yield what is in the inbox and below, but for what is hidden, unfinished or refused."""
        try:
            there = list(os.scandir(folder))
        except OSError as error:
            found.trouble.append((str(folder), error.strerror or str(error)))
            return
        for one in there:
            if one.name.startswith(".") or one.name.endswith(_UNFINISHED):
                continue
            try:
                if one.is_dir(follow_symlinks=False):
                    mine = one.name == REFUSED and Path(folder) == self.folder
                    if not mine and not junk_folder(one.name):
                        yield from self._entries(one.path, found)
                    continue
                if junk_file(one.name):
                    continue
                now = one.stat(follow_symlinks=False)
            except FileNotFoundError:  # gone in between
                continue
            except OSError as error:
                found.trouble.append((one.name, error.strerror or str(error)))
                continue
            sign = (now.st_size, now.st_mtime_ns, now.st_ino)
            yield _Entry(one.path, one.name, now.st_mode, now.st_size, now.st_mtime_ns, sign)

    def _take(self, entry: _Entry, number: int, found: Taken) -> None:
        if (why := self._unfit(entry)) is not None:
            self._refuse(entry, why, found)
            return
        content = _read(entry)
        if content is None:  # written to meanwhile: it has to settle anew
            del self._since[entry.path]
            found.waiting += 1
            return
        when = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{number:05}"
        try:
            path, new = self._put(content, when)
        except ImageError as error:
            self._refuse(entry, error.culprit, found)
            return
        # Its bytes lie where the images are. Killed here, the next look finds that they do.
        Path(entry.path).unlink()
        if new:
            found.new.append(path)
        else:
            found.known += 1

    def _unfit(self, entry: _Entry) -> str | None:
        """Return why a file is refused unread; None where it is not."""
        if stat.S_ISLNK(entry.mode):
            return "a link"
        if not stat.S_ISREG(entry.mode):
            return "no regular file"
        if Path(entry.name).suffix.lower() not in SUFFIXES:
            return "not of a type that images have here"
        if entry.size > self._most:
            return f"{entry.size / 1e6:.0f} MB, and schedule.max_mb is {self._most / 1e6:g}"
        return None if entry.size else "empty"

    def _refuse(self, entry: _Entry, why: str, found: Taken) -> None:
        place = self.folder / REFUSED
        place.mkdir(exist_ok=True)
        target, number = place / entry.name, 1
        while os.path.lexists(target):
            number += 1
            target = place / f"{number}-{entry.name}"
        Path(entry.path).rename(target)
        with (place / "why.txt").open("a", encoding="utf-8") as file:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"{when}  {shown(target.name)}  {shown(why)}\n")
        found.refused.append((entry.name, why))


def _read(entry: _Entry) -> bytes | None:
    """Return a file's bytes; None where it is not the one that was looked at any more."""
    try:
        number = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(number, "rb") as file:
        content = file.read(entry.size + 1)
        now = os.fstat(number)
    same = (now.st_size, now.st_mtime_ns, now.st_ino) == entry.sign
    return content if same and len(content) == entry.size else None
