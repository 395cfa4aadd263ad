"""MLflow, quiet and with its database in order.

Nothing is sent anywhere, nothing is printed that the user did not ask for: what MLflow reads from
the environment is set in `storage`.
"""

from __future__ import annotations

import functools
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from headwater.errors import HeadwaterError, StoreError
from headwater.files import locked, replacing, sqlite_url

__all__ = [
    "MlflowClient",
    "MlflowException",
    "database_uri",
    "mlflow",
    "prepare_database",
    "told",
]

for _name in ("mlflow", "alembic", "alembic.runtime.migration"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def database_uri(path: Path) -> str:
    """Return the tracking URI of an SQLite file, whatever its path is made of.

    Examples
    --------
    >>> database_uri(Path("/srv/line 2/mlflow.db")), database_uri(Path("/srv/line#2/mlflow.db"))
    ('sqlite:////srv/line 2/mlflow.db', 'sqlite+pysqlite:///file:/srv/line%232/mlflow.db?uri=true')
    """
    # Of "sqlite:///" MLflow makes the parent folders itself, from the quoted path.
    return sqlite_url(path, "sqlite", "sqlite+pysqlite")


@functools.cache
def _newest_revision() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _known_revisions() -> set[str]:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    script = ScriptDirectory.from_config(_get_alembic_config(db_url=""))
    return {r.revision for r in script.walk_revisions()}


def _revision(path: Path) -> str | None:
    """Return the schema revision of a database; None where there is none yet.

    A file that holds anything is never taken for none: another would be put in its place.
    """
    if not path.exists() or not path.stat().st_size:
        return None
    foreign = StoreError(
        f"{path} is an SQLite file without MLflow's tables",
        expected="the database that MLflow made there",
        remedy="restore it from a copy, or move it away to begin with an empty one",
    )
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=20)
        ) as db:
            row = db.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise foreign from error
        raise StoreError(
            f"the MLflow database {path} cannot be opened: {error}",
            expected="a readable SQLite file",
            remedy="check the folder's permissions and free space",
        ) from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} is not an MLflow database: {error}",
            expected="an SQLite file that MLflow made",
            remedy="restore it from a copy, or move it away to begin with an empty one",
        ) from error
    if not row:
        raise foreign
    return str(row[0])


def prepare_database(path: Path) -> str:
    """Create or upgrade the SQLite database at `path` where needed; return its tracking URI.

    Only one process at a time does so, under a file lock; a database that is up to date is told
    by one query and takes no lock. A new one is migrated under a temporary name and then moved
    into place, so that a killed creation leaves nothing half made. Before an upgrade the old file
    is copied to ``<name>.<revision>.bak``.

    Raises
    ------
    StoreError
        Where the file is none of MLflow's, unreadable, or of a newer MLflow.
    """
    newest = _newest_revision()
    if _revision(path) == newest:
        return database_uri(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock")):
        found = _revision(path)
        if found is None:
            with replacing(path) as new:
                _migrate(new)
        elif found != newest:
            if found not in _known_revisions():
                raise StoreError(
                    f"{path} has schema {found}, which MLflow {mlflow.__version__} does not know",
                    expected=f"a database of MLflow {mlflow.__version__} or older",
                    remedy="install the newer MLflow that wrote it",
                )
            shutil.copy2(path, path.with_name(f"{path.name}.{found}.bak"))
            _migrate(path)
    return database_uri(path)


def _migrate(path: Path) -> None:
    from mlflow.store.db.utils import (
        _initialize_tables,
        _upgrade_db,
        create_sqlalchemy_engine_with_retry,
    )

    fresh = not path.exists()
    if fresh:
        # SQLite would give it the rights of any file; it may not have more than its folder.
        path.touch(path.parent.stat().st_mode & 0o666)
    engine = create_sqlalchemy_engine_with_retry(database_uri(path))
    try:
        if fresh:
            _initialize_tables(engine)
        else:
            _upgrade_db(engine)
    finally:
        # Closes the last connection, which folds a write-ahead log into the file.
        engine.dispose()


@contextmanager
def told() -> Iterator[None]:
    """Turn MLflow's errors into one of ours with its first line."""
    try:
        yield
    except HeadwaterError:
        raise
    except MlflowException as error:
        refused = error.error_code == "PERMISSION_DENIED" or "error code 403" in str(error)
        raise StoreError(
            f"MLflow: {str(error).splitlines()[0]}",
            expected="a user who may do that" if refused else "",
            remedy="docs/operations.md, Several users, says which rights on the server it takes"
            if refused
            else "see to the MLflow server, or to the database and disk of the home",
        ) from error
