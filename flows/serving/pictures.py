"""The pictures that were kept of what the model in service was asked: files, each its digest."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from pathlib import Path

from flows.serving.said import New
from headwater.files import replacing

#: The table of pictures in the database of `flows.serving.kept`, and of what people say of them.
TABLES = """
CREATE TABLE IF NOT EXISTS pictures (
  sha256 TEXT PRIMARY KEY, file TEXT NOT NULL, bytes INTEGER NOT NULL, at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
  number INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL, answer TEXT NOT NULL,
  who TEXT NOT NULL, at TEXT NOT NULL, put TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS answers_sha ON answers (sha256, number);
"""
#: A file that no row knows, left by a killed process, goes when it is so old: seconds.
_ORPHAN = 600
_OLDEST = """
SELECT p.sha256, p.file, p.bytes FROM pictures p WHERE COALESCE((SELECT answer FROM answers
  WHERE sha256 = p.sha256 ORDER BY number DESC LIMIT 1), '') = '' ORDER BY p.at, p.rowid
"""


class Pictures:
    """A folder of pictures, and the table that knows them.

    Parameters
    ----------
    folder
        Made when it is needed.
    rights
        Mode bits of folder and files, at most.
    """

    def __init__(self, folder: Path, rights: int) -> None:
        self.folder, self.rights = folder, rights & 0o777

    def write(self, db: sqlite3.Connection, one: New) -> tuple[str, str, int] | None:
        """Write a picture; return digest, name and bytes for its row, None where it has one."""
        known = "SELECT 1 FROM pictures WHERE sha256 = ?"
        if one.content is None or db.execute(known, (one.sha256,)).fetchone():
            return None
        place = self.folder / f"{one.sha256}{one.suffix}"
        self.folder.mkdir(mode=self.rights, exist_ok=True)
        with replacing(place) as new:
            new.write_bytes(one.content)
            new.chmod(self.rights & 0o666)
        return one.sha256, place.name, len(one.content)

    def read(self, db: sqlite3.Connection, sha256: str) -> bytes | None:
        """Return a picture; None where it was not kept, or is damaged."""
        rows = db.execute("SELECT file FROM pictures WHERE sha256 = ?", (sha256,)).fetchall()
        for (file,) in rows:
            with contextlib.suppress(OSError):
                content = (self.folder / file).read_bytes()
                if hashlib.sha256(content).hexdigest() == sha256:
                    return content
        return None

    def make_room(self, db: sqlite3.Connection, limit: int) -> None:
        """Remove the oldest that nobody has answered, down to so many bytes."""
        (held,) = db.execute("SELECT COALESCE(SUM(bytes), 0) FROM pictures").fetchone()
        gone = []
        for sha, file, size in db.execute(_OLDEST).fetchall() if held > limit else ():
            if held <= limit:
                break
            held -= size
            gone.append((sha, file))
        with db:
            db.executemany("DELETE FROM pictures WHERE sha256 = ?", [(sha,) for sha, _ in gone])
        for _, file in gone:
            (self.folder / file).unlink(missing_ok=True)

    def sweep(self, db: sqlite3.Connection) -> None:
        """Remove files that no row knows; what was begun just now is let be."""
        if not self.folder.is_dir():
            return
        known = {row[0] for row in db.execute("SELECT file FROM pictures")}
        for file in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if file.name not in known and time.time() - file.stat().st_mtime > _ORPHAN:
                    file.unlink()
