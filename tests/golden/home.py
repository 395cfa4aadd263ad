"""The golden home as it is opened: a copy in which every address is the copy's."""

from __future__ import annotations

import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

GOLDEN = Path(__file__).parent / "home-v1"
MADE_AT = "/tmp/headwater-golden-home"


def unpack(folder: Path) -> Path:
    """Copy the golden home into `folder`, as if it had been made there."""
    shutil.copytree(GOLDEN / "images", folder / "images")
    shutil.copy(GOLDEN / "weights.safetensors", folder)
    with tarfile.open(GOLDEN / "home.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    for path in (folder / "home").rglob("*"):
        if path.suffix in (".json", ".csv") or path.name == "MLmodel":
            path.write_text(path.read_text().replace(MADE_AT, str(folder)))
    with closing(sqlite3.connect(folder / "home/mlflow.db")) as db, db:
        tables = [t for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in db.execute(f'PRAGMA table_info("{table}")').fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    db.execute(
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", ?1, ?2) '
                        f'WHERE instr("{column}", ?1)',
                        (MADE_AT, str(folder)),
                    )
    return folder
