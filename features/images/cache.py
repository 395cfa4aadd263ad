"""What is known of files: hash and size, remembered so that an unchanged file is read once."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.images.depth import Depth
from features.images.looks import SAME, look_of, near_copies, pixels_digest
from features.images.masks import look_at_mask
from features.images.pixels import look_at
from headwater.errors import HeadwaterError
from headwater.files import open_regular

#: Called with (files done, files in all).
Progress = Callable[[int, int], None]
#: Files looked up and read at a time: bounds the memory of a scan.
_CHUNK = 512
#: Comparisons of test and training images that are remembered: of each set the last ones.
_KEPT = 200
#: Raised when `_read` finds something else in a file, so that old caches are read anew.
_VERSION = 5


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one reading of a file found.

    Parameters
    ----------
    path
        Absolute path.
    sha256
        Of its bytes; empty where the file could not even be read.
    width, height
        In pixels, after EXIF orientation; 0 where it is no usable image.
    bytes
        File size.
    reason
        Why the file is set aside, or empty.
    note
        What is to be known of how it is read, or empty (`features.images.pixels.Decoded.notes`).
    depth
        The values of an image of more than 8 bits.
    blank
        Of a mask: whether it marks nothing.
    soft
        Of a mask: whether it has soft edges.
    pixels, look
        Of an image: what it shows, exactly and from afar (`features.images.looks`).
    """

    path: str
    sha256: str
    width: int
    height: int
    bytes: int
    reason: str = ""
    note: str = ""
    depth: Depth | None = None
    blank: bool = False
    soft: bool = False
    pixels: str = ""
    look: builtins.bytes = b""


class FileCache:
    """SQLite table of `FileFacts` keyed by path, valid while size, mtime and inode are the same.

    Being a cache it may be deleted at any time; a damaged one is put aside and begun anew.

    Parameters
    ----------
    file
        The database, made where it does not exist; None remembers nothing.
    rehash
        Read every file, whatever is remembered.
    progress
        Called with (files done, files in all) as `facts` goes on.
    """

    def __init__(
        self, file: Path | None, *, rehash: bool = False, progress: Progress | None = None
    ) -> None:
        self.reads, self.rehash, self.progress = 0, rehash, progress
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._open(file)
        except sqlite3.DatabaseError as error:
            # Locked or unwritable is not damaged.
            if file is None or isinstance(error, sqlite3.OperationalError):
                raise
            file.replace(file.with_suffix(file.suffix + ".damaged"))
            for side in ("-wal", "-shm"):
                file.with_name(file.name + side).unlink(missing_ok=True)
            self._db = self._open(file)

    @staticmethod
    def _open(file: Path | None) -> sqlite3.Connection:
        db = sqlite3.connect(str(file) if file else ":memory:", timeout=60)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                db.execute("DROP TABLE IF EXISTS files")
                db.execute(f"PRAGMA user_version={_VERSION}")
            db.execute(
                # Bytes: SQLite's text takes no names that are none in UTF-8.
                "CREATE TABLE IF NOT EXISTS files (path BLOB, mask INTEGER, size INTEGER,"
                " mtime_ns INTEGER, inode INTEGER, sha256 TEXT, width INTEGER, height INTEGER,"
                " reason TEXT, note TEXT, kind TEXT, low REAL, high REAL, blank INTEGER,"
                " soft INTEGER, pixels TEXT, look BLOB, PRIMARY KEY (path, mask)) WITHOUT ROWID"
            )
            db.execute("CREATE TABLE IF NOT EXISTS copies (looks TEXT PRIMARY KEY, found TEXT)")
            db.commit()
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def __enter__(self) -> FileCache:
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def facts(self, paths: Sequence[str], *, mask: bool = False) -> Iterator[FileFacts]:
        """Yield the facts of each path, in order; only new and changed files are read.

        Parameters
        ----------
        paths
            Absolute paths.
        mask
            Whether these are masks (decoded as `read_mask` does) rather than images.
        """
        # Hashing and decoding both release Python's lock.
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
            for start in range(0, len(paths), _CHUNK):
                part = paths[start : start + _CHUNK]
                known = {} if self.rehash else self._lookup(part, mask)
                todo = [p for p in part if p not in known]
                fresh = dict(zip(todo, pool.map(lambda p: _read(p, mask), todo), strict=True))
                if fresh:
                    self.reads += len(fresh)
                    self._remember(fresh, mask)
                known |= fresh
                for p in part:
                    yield known[p][1]
                if self.progress is not None:
                    self.progress(min(start + _CHUNK, len(paths)), len(paths))

    def pixels_of(self, contents: Iterable[str]) -> dict[str, str]:
        """Return what images show (`FileFacts.pixels`) by their hash, as far as it is remembered.

        Of images whose files may be gone, too: it goes with their bytes.
        """
        wanted = sorted(set(contents))
        found: dict[str, str] = {}
        for start in range(0, len(wanted), _CHUNK):
            part = wanted[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            query = f"SELECT sha256, pixels FROM files WHERE mask = 0 AND sha256 IN ({marks})"
            found |= {sha: pixels for sha, pixels in self._db.execute(query, part) if pixels}
        return found

    def copies(self, tested: Sequence[bytes], trained: Sequence[bytes]) -> list[tuple[int, int]]:
        """Return which tested images show a picture that was trained on, as `near_copies` finds.

        Every tested image is compared with every trained one, so what was found is remembered by
        what the images look like: where no image is new, none is compared.

        Parameters
        ----------
        tested, trained
            As of `features.images.looks.look_of`.

        Returns
        -------
        list
            ``(number of the tested, number of the trained)``, the most alike first.
        """
        seen = hashlib.sha256(f"{SAME} {len(tested)} {len(trained)}".encode())
        for look in (*tested, *trained):
            seen.update(look)
        known = self._db.execute("SELECT found FROM copies WHERE looks = ?", (seen.hexdigest(),))
        if (row := known.fetchone()) is not None:
            return [(i, j) for i, j in json.loads(row[0])]
        found = [(i, j) for i, j, _ in near_copies(tested, trained)]
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO copies (looks, found) VALUES (?, ?)",
                (seen.hexdigest(), json.dumps(found)),
            )
            self._db.execute(
                "DELETE FROM copies WHERE rowid <= (SELECT MAX(rowid) FROM copies) - ?", (_KEPT,)
            )
        return found

    def _lookup(self, paths: Sequence[str], mask: bool) -> dict[str, _Entry]:
        """Return what is remembered of files that have not changed since."""
        marks = ",".join("?" * len(paths))
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM files WHERE mask = ? AND path IN ({marks})",
            (int(mask), *map(os.fsencode, paths)),
        )
        found = (_from_row(row) for row in rows)
        return {path: entry for path, entry in found if _same(path, entry[0])}

    def _remember(self, fresh: dict[str, _Entry], mask: bool) -> None:
        rows = [
            (os.fsencode(p), int(mask), *stat, f.sha256, f.width, f.height, f.reason, f.note)
            + ((f.depth.kind, f.depth.low, f.depth.high) if f.depth else ("", 0.0, 0.0))
            + (f.blank, f.soft, f.pixels, f.look)
            for p, (stat, f) in fresh.items()
            if stat is not None
        ]
        with self._db:
            self._db.executemany(
                f"INSERT OR REPLACE INTO files VALUES ({','.join('?' * 17)})", rows
            )


_COLUMNS = (
    "path, size, mtime_ns, inode, sha256, width, height, reason, note, kind, low, high, blank,"
    " soft, pixels, look"
)


_Stat = tuple[int, int, int]
_Entry = tuple[_Stat | None, FileFacts]


def _from_row(row: tuple[Any, ...]) -> tuple[str, _Entry]:
    """Return what a row of `_COLUMNS` remembers, by its path."""
    name, size, mtime, inode, sha, width, height, reason, note, kind, low, high, *more = row
    blank, soft, pixels, look = more
    path = os.fsdecode(name)
    depth = Depth(kind, low, high) if kind else None
    facts = FileFacts(
        path, sha, width, height, size, reason, note, depth, bool(blank), bool(soft), pixels, look
    )
    return path, ((size, mtime, inode), facts)


def _stat(status: os.stat_result) -> _Stat:
    # SQLite integers are signed; an inode may use all 64 bits.
    return status.st_size, status.st_mtime_ns, status.st_ino & 0x7FFFFFFFFFFFFFFF


def _same(path: str, stat: _Stat | None) -> bool:
    with contextlib.suppress(OSError):
        return stat == _stat(os.stat(path))  # noqa: PTH116  a hundred thousand Path objects
    return False


def _read(path: str, mask: bool) -> _Entry:
    """Hash and fully decode one file; what goes wrong becomes the `reason`."""
    stat, sha = None, ""
    more: dict[str, Any] = {}
    try:
        with open_regular(path) as file:
            # Taken before the reading: a file that changes meanwhile is read again next time.
            stat = _stat(os.fstat(file.fileno()))
            sha = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if mask:
                found = look_at_mask(Path(path))
                height, width = found.marked.shape
                more = {"blank": not found.marked.any(), "soft": found.soft}
            else:
                decoded = look_at(file, path)
                height, width = decoded.pixels.shape[:2]
                more = {"note": "; ".join(decoded.notes), "depth": Depth.of(decoded.pixels)}
                more |= {"pixels": pixels_digest(decoded.pixels), "look": look_of(decoded.pixels)}
    except HeadwaterError as error:
        reason = error.culprit.removeprefix(f"{path}: ")
        if error.expected:
            reason += f" (expected {error.expected})"
        return stat, FileFacts(path, sha, 0, 0, stat[0] if stat else 0, reason)
    except OSError as error:
        # Not remembered: permissions and shares come back without the file changing.
        return None, FileFacts(path, "", 0, 0, 0, error.strerror or str(error))
    return stat, FileFacts(path, sha, width, height, stat[0], **more)
