"""A home's own MLflow database, wherever the home stands now.

MLflow stores where artifacts lie as absolute addresses. A home that was moved, copied or mounted
elsewhere is told by what its database remembers (the table ``headwater_home``), and its addresses
are written anew, below the folder that it lies in now: in one transaction, under the database's
lock, with a copy beside it. So MLflow's own commands and pages find everything, too, and a copy
never writes to, or deletes from, the home that it was copied from.

A home that cannot be written is looked at through a copy of its database in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from headwater.errors import StoreError
from headwater.files import locked, replacing
from storage.registry.client import database_uri, prepare_database

#: Columns of MLflow's tables that hold addresses of artifacts.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_ARTIFACTS = "mlartifacts"


def can_write(path: Path) -> bool:
    """Return whether a file, and the folder that it lies in, can be written here."""
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def open_database(database: Path, home: Path | None) -> tuple[str, bool]:
    """Bring a database in order; return its tracking URI, and whether it can be written.

    Parameters
    ----------
    database
        SQLite file; made where it is not there.
    home
        Whose own it is: its addresses are made those of this folder. None for a database that
        was named by the user: its addresses are left alone.

    Raises
    ------
    StoreError
        As `storage.registry.client.prepare_database`.
    """
    writable = not database.exists() or can_write(database)
    if not writable:
        database = _copied(database)
    prepare_database(database)
    if home is not None:
        _settle(database, home)
    return database_uri(database), writable


def remembered(database: Path) -> Path | None:
    """Return the folder that a database says its home lies in; None where it says nothing."""
    try:
        with closing(_connect(database, "ro")) as db:
            return _remembered(db)
    except sqlite3.Error:
        return None


def local_path(address: str) -> Path | None:
    """Return the path of an address on this machine's disk; None for any other.

    Examples
    --------
    >>> local_path("file:///srv/line%20%232/x"), local_path("s3://bucket/x")
    (PosixPath('/srv/line #2/x'), None)
    """
    if address.startswith("/"):
        return Path(address)
    parsed = urlparse(address)
    if parsed.scheme != "file" or parsed.netloc not in ("", "localhost"):
        return None
    return Path(url2pathname(parsed.path))


def _connect(database: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode={mode}", uri=True, timeout=60)


def _remembered(db: sqlite3.Connection) -> Path | None:
    try:
        row = db.execute("SELECT root FROM headwater_home").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return Path(row[0]) if row else None


def _same(one: Path, other: Path) -> bool:
    """Whether two names are of one folder: a link to it, or a mount, is no move."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def _settle(database: Path, home: Path) -> None:
    """Make the addresses of a home's database those of the folder that it lies in."""
    try:
        with closing(_connect(database, "ro")) as db:
            known = _remembered(db)
        if known is None or not _same(known, home):
            lock = database.with_name(database.name + ".lock")
            with locked(lock), closing(_connect(database, "rw")) as db:
                _move(db, database, home)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"the addresses in {database} cannot be made those of {home}: {error}",
            expected="a database that can be written, and space for a copy",
            remedy="see to the disk; the database is as it was",
        ) from error


def _move(db: sqlite3.Connection, database: Path, home: Path) -> None:
    """Write the addresses anew in one transaction; nothing where another process has done so."""
    db.isolation_level = None
    db.execute("BEGIN IMMEDIATE")
    known = _remembered(db)
    if known is not None and _same(known, home):
        return
    places = {known} if known is not None else _inferred(db, home)
    if places:
        _copy(database, database.with_name(f"{database.name}.moved.bak"))
        _rewrite(db, places, home)
    db.execute("CREATE TABLE IF NOT EXISTS headwater_home (root TEXT NOT NULL)")
    db.execute("DELETE FROM headwater_home")
    db.execute("INSERT INTO headwater_home VALUES (?)", (str(home),))
    db.execute("COMMIT")


def _copy(database: Path, target: Path, mode: str = "ro") -> None:
    with (
        replacing(target) as new,
        closing(_connect(database, mode)) as db,
        closing(sqlite3.connect(new)) as copy,
    ):
        db.backup(copy)


def _inferred(db: sqlite3.Connection, home: Path) -> set[Path]:
    """Return where a home lay before homes remembered it: what its experiments' addresses say.

    Artifacts that somebody keeps elsewhere, in a folder of this name, are no home that moved: they
    are there, without a database beside them.
    """
    found = set()
    for name, address in db.execute("SELECT name, artifact_location FROM experiments"):
        path = local_path(address or "")
        if path is None or path.name != name or path.parent.name != _ARTIFACTS:
            continue
        place = path.parent.parent
        came_along = (home / _ARTIFACTS / name).is_dir()
        if not _same(place, home) and (came_along or _was_a_home(place)):
            found.add(place)
    return found


def _was_a_home(place: Path) -> bool:
    given = local_path(os.environ.get("HEADWATER_ARTIFACTS", ""))
    if given is not None and _same(given, place / _ARTIFACTS):
        return False
    return (place / "mlflow.db").exists() or not (place / _ARTIFACTS).exists()


def _rewrite(db: sqlite3.Connection, places: set[Path], home: Path) -> None:
    """Write every address below one of `places` as one below `home`, in the open transaction."""

    def moved(text: str | None) -> str | None:
        path = local_path(text or "")
        if text is None or path is None:
            return text
        for place in places:
            if path.is_relative_to(place):
                here = home / path.relative_to(place)
                return str(here) if text.startswith("/") else here.as_uri()
        return text

    def source(text: str | None) -> str | None:
        try:
            told = json.loads(text or "")
            store = moved(told["store"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return text
        return text if store == told["store"] else json.dumps({**told, "store": store})

    columns: list[tuple[str, str, Callable[[str | None], str | None]]] = [
        *((table, column, moved) for table, column in _ADDRESSES),
        ("datasets", "dataset_source", source),
    ]
    for table, column, change in columns:
        db.create_function("moved", 1, change, deterministic=True)
        db.execute(
            f"UPDATE {table} SET {column} = moved({column}) "
            f"WHERE {column} IS NOT NULL AND {column} != moved({column})"
        )


def _copied(database: Path) -> Path:
    """Return a copy, of this user alone, of a database that cannot be written here."""
    name = hashlib.sha256(os.fsencode(database)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "headwater" / "homes" / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="headwater-"))
    copy, seen = folder / database.name, folder / "seen.json"
    facts = database.stat()
    now = json.dumps([facts.st_mtime_ns, facts.st_size])
    with locked(folder / "copy.lock"):
        if copy.exists() and seen.exists() and seen.read_text() == now:
            return copy
        try:
            _copy(database, copy)
        except sqlite3.OperationalError:
            # A write-ahead log that was left needs files beside it that cannot be made here.
            _copy(database, copy, "ro&immutable=1")
        seen.write_text(now)
    return copy
