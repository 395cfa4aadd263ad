"""What the model in service said of each picture, and what people say it is: SQLite, a file a set.

``HOME/served/SET.sqlite`` has a row an answer; ``HOME/served/SET/`` has the pictures that were
kept, each under its digest: no name from outside chooses where anything is written. What people say
is of the picture, by its digest, so that it holds for every answer to the same bytes; it is only
ever added to, and the newest counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.runtime.home import Home
from flows.runtime.sections import KeepSettings
from flows.serving.pictures import TABLES, Pictures
from flows.serving.said import New, Said, wanted
from headwater.errors import ConfigError, DataError, StoreError
from headwater.text import restored, storable

#: Raised when the tables change.
_VERSION = 1
#: Rows that are too old are looked for so often: seconds.
_SWEEP = 3600
_TABLES = """
CREATE TABLE IF NOT EXISTS said (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, sha256 TEXT NOT NULL, name TEXT NOT NULL,
  score REAL NOT NULL, p_value REAL, threshold REAL NOT NULL, gap REAL NOT NULL,
  verdict TEXT NOT NULL, regions TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
  service_version TEXT NOT NULL, seconds REAL NOT NULL);
CREATE INDEX IF NOT EXISTS said_sha ON said (sha256, id);
CREATE INDEX IF NOT EXISTS said_at ON said (at);
"""
_ROWS = """
SELECT s.id, s.at, s.sha256, s.name, s.score, s.p_value, s.threshold, s.verdict, s.regions, s.model,
  s.version, s.service_version, COALESCE(p.file, ''), COALESCE(a.answer, ''), COALESCE(a.who, ''),
  COALESCE(a.at, ''), s.seconds, s.gap, COALESCE(a.put, '')
FROM said s LEFT JOIN pictures p ON p.sha256 = s.sha256
LEFT JOIN answers a ON a.number = (SELECT MAX(number) FROM answers WHERE sha256 = s.sha256)
"""


class Kept:
    """The answers of the model in service of an image set; safe for several processes at once.

    Parameters
    ----------
    home, image_set
        Whose. Nothing is made before something is added.
    rule
        What is kept of pictures and how long of answers.

    Examples
    --------
    >>> import tempfile
    >>> Kept(Home.at(tempfile.mkdtemp()), "bolts").rows()
    []
    """

    def __init__(self, home: Home, image_set: str, rule: KeepSettings | None = None) -> None:
        self.home, self.image_set, self.rule = home, image_set, rule or KeepSettings()
        self.file = home.root / "served" / f"{image_set}.sqlite"
        self.folder = home.root / "served" / image_set
        self._db: sqlite3.Connection | None = None
        self._lock, self._swept = threading.RLock(), 0.0

    def close(self) -> None:
        """Close the database; it opens again by itself."""
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = None

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- what was said ---------------------------------------------------------------------------

    def add(self, answers: Sequence[New]) -> list[int]:
        """Keep answers, together; return their numbers.

        A picture is on the disk before the row that names it. Beyond `KeepSettings.max_mb` the
        oldest ones that nobody has answered go.

        Raises
        ------
        StoreError
            Where they cannot be kept: the disk is full, the database damaged or locked.
        """
        now, ids = _now(), list[int]()
        with self._work(make=True) as db:
            pictures = [self._pictures.write(db, one) for one in answers if wanted(one, self.rule)]
            with db:
                for one in answers:
                    regions = json.dumps(list(one.regions))
                    row: list[Any] = [now, one.sha256, storable(one.name), one.score, one.p_value]
                    row += [one.threshold, one.gap, one.verdict, regions, one.model, one.version]
                    row += [one.service_version, one.seconds]
                    marks = ",".join("?" * len(row))
                    done = db.execute(
                        "INSERT INTO said (at, sha256, name, score, p_value, threshold, gap,"
                        " verdict, regions, model, version, service_version, seconds)"
                        f" VALUES ({marks})",
                        row,
                    )
                    ids.append(int(done.lastrowid or 0))
                db.executemany(
                    "INSERT OR IGNORE INTO pictures VALUES (?, ?, ?, ?)",
                    [(*picture, now) for picture in pictures if picture is not None],
                )
            if any(pictures):
                self._pictures.make_room(db, self.rule.max_mb * 1_000_000)
            self._sweep(db)
        return ids

    def rows(
        self,
        *,
        since: str = "",
        until: str = "",
        limit: int | None = None,
        answered: bool | None = None,
    ) -> list[Said]:
        """Return what was said, newest first.

        Parameters
        ----------
        since, until
            ISO 8601 times or days, UTC where they do not say: from the first on, before the second.
        limit
            No more than so many.
        answered
            Only those of pictures that somebody has answered, or that nobody has.
        """
        where, values = ["1"], list[Any]()
        for sign, told in ((">=", since), ("<", until)):
            if told:
                where.append(f"s.at {sign} ?")
                values.append(_utc(told))
        if answered is not None:
            where.append("COALESCE(a.answer, '') " + ("<> ''" if answered else "= ''"))
        query = f"{_ROWS} WHERE {' AND '.join(where)} ORDER BY s.id DESC LIMIT ?"
        with self._work() as db:
            values.append(-1 if limit is None else limit)
            return [] if db is None else [_said(row) for row in db.execute(query, values)]

    def find(self, image: str) -> list[Said]:
        """Return all that was said of one picture, newest first; nothing where it is not known.

        Parameters
        ----------
        image
            The number of an answer, or the beginning of the picture's digest, 8 digits at least.

        Raises
        ------
        DataError
            Where several pictures begin so.
        """
        told = image.strip().lower()
        digits = len(told) >= 8 and not set(told) - set("0123456789abcdef")
        with self._work() as db:
            if db is None:
                return []
            shas: list[str] = []
            if digits:
                query = "SELECT DISTINCT sha256 FROM said WHERE sha256 >= ? AND sha256 < ? LIMIT 2"
                shas = [row[0] for row in db.execute(query, (told, told + "g"))]
            if not shas and told.isdecimal() and len(told) < 19:
                rows = db.execute("SELECT sha256 FROM said WHERE id = ?", (int(told),))
                shas = [row[0] for row in rows]
            if len(shas) > 1:
                raise DataError(
                    f"{image}: several pictures of {self.image_set} begin so",
                    expected="more digits of the digest",
                )
            query = f"{_ROWS} WHERE s.sha256 = ? ORDER BY s.id DESC"
            return [_said(row) for sha in shas for row in db.execute(query, (sha,))]

    def counts(self, *, since: str = "", until: str = "") -> dict[str, Any]:
        """Return how many answers were given, and what people said of their pictures.

        Returns
        -------
        dict
            ``asked``, ``flagged``, ``pictures`` (different ones), ``answered`` (of these), and
            ``answers``: how many pictures of each answer. Times as of `rows`.
        """
        rows = self.rows(since=since, until=until)
        told = {row.sha256: row.answer for row in rows}
        return {
            "asked": len(rows),
            "flagged": sum(row.flagged for row in rows),
            "pictures": len(told),
            "answered": sum(bool(answer) for answer in told.values()),
            "answers": dict(Counter(filter(None, told.values()))),
        }

    # --- what people say -------------------------------------------------------------------------

    def answer(self, sha256: str, answer: str, who: str, put: str = "") -> None:
        """Keep what somebody says of a picture; an empty answer takes back what was said.

        What was said before stays in the table, with who and when.

        Raises
        ------
        StoreError
            As of `add`.
        """
        with self._work(make=True) as db, db:
            db.execute(
                "INSERT INTO answers (sha256, answer, who, at, put) VALUES (?, ?, ?, ?, ?)",
                (sha256, answer, storable(who), _now(), storable(put)),
            )

    def picture(self, sha256: str) -> bytes | None:
        """Return a picture that was kept; None where it was not, or is damaged."""
        with self._work() as db:
            return None if db is None else self._pictures.read(db, sha256)

    # --- within ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _work(self, *, make: bool = False) -> Iterator[Any]:
        """Yield the database, None where there is none and none is to be made."""
        try:
            with self._lock:
                if self._db is None and (make or self.file.exists()):
                    self._db = self._open()
                yield self._db
        except sqlite3.OperationalError as error:
            # It may have been moved away, or the disk be full: the next one opens it again.
            self.close()
            raise StoreError(
                f"{self.file}: {error}",
                expected="what the model in service says to be kept there",
                remedy="see whether the disk is full, and who may write to the home",
            ) from error
        except sqlite3.DatabaseError as error:
            self.close()
            raise StoreError(
                f"{self.file} is damaged: {error}",
                expected="an SQLite file that Headwater made",
                remedy="restore it from a copy, or move it away to begin with an empty one",
            ) from error
        except OSError as error:
            raise StoreError(
                f"{error.filename or self.folder}: {error.strerror}",
                expected="a folder for what the model in service says",
                remedy="see whether the disk is full, and who may write to the home",
            ) from error

    def _open(self) -> sqlite3.Connection:
        rights = self.home.root.stat().st_mode & 0o777
        self._pictures = Pictures(self.folder, rights)
        if not self.file.exists():
            self.file.parent.mkdir(mode=rights, parents=True, exist_ok=True)
            # SQLite gives its side files the rights of the database.
            made = os.open(self.file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, rights & 0o666)
            os.close(made)
        db = sqlite3.connect(self.file, timeout=30, check_same_thread=False)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise StoreError(
                    f"{self.file} is of a newer Headwater",
                    expected=f"tables of version {_VERSION}",
                    remedy="install that version again",
                )
            if version < _VERSION:
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(_TABLES + TABLES)
                db.execute(f"PRAGMA user_version={_VERSION}")
            db.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Remove answers that are too old and that nobody has answered, and what no row names."""
        if time.monotonic() - self._swept < _SWEEP and self._swept:
            return
        self._swept = time.monotonic()
        before = datetime.now(UTC) - timedelta(days=self.rule.days)
        told = "SELECT sha256 FROM answers"
        with db:
            db.execute(
                f"DELETE FROM said WHERE at < ? AND sha256 NOT IN ({told})", (_text(before),)
            )
            db.execute(
                "DELETE FROM pictures WHERE sha256 NOT IN (SELECT sha256 FROM said)"
                f" AND sha256 NOT IN ({told})"
            )
        self._pictures.sweep(db)


def _said(row: Sequence[Any]) -> Said:
    made = list(row)
    made[3], made[14], made[18] = restored(row[3]), restored(row[14]), restored(row[18])
    made[8] = tuple(json.loads(row[8]))
    return Said(*made)


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds")


def _utc(told: str) -> str:
    """Return a time as the rows have it."""
    try:
        when = datetime.fromisoformat(told)
    except ValueError:
        raise ConfigError(
            f"time {told!r}", expected="a day or time such as 2026-01-31 or 2026-01-31T12:00"
        ) from None
    return _text(when if when.tzinfo else when.replace(tzinfo=UTC))
