"""The MLflow database: made once, upgraded, never guessed at; and nothing is sent or printed."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.errors import StoreError
from storage.registry.client import MlflowClient, mlflow, prepare_database
from storage.registry.registry import Registry


def test_databases_of_other_versions(tmp_path, empty_database):
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)

    def stamp(revision):
        with sqlite3.connect(path) as db:
            (old,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
            db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        return old

    newest = stamp("from_the_future")
    with pytest.raises(StoreError, match="newer MLflow"):
        prepare_database(path)
    stamp(newest)
    assert prepare_database(path) == f"sqlite:///{path}"


def test_several_processes_may_want_the_database_at_once(tmp_path):
    code = (
        "import sys; from storage.registry.registry import Registry\n"
        "with Registry(sys.argv[1]).start('bottles', 'f2r', sys.argv[2]) as run:\n"
        "    run.metric('loss', 1, 1)"
    )
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(k)],
            cwd=Path(__file__).resolve().parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(2)
    ]
    said = [p.communicate(timeout=200)[0] for p in begun]
    assert [p.returncode for p in begun] == [0, 0], said
    assert said == ["", ""]  # MLflow's chatter is silenced
    registry = Registry(tmp_path)
    kept = list(registry._search("bottles", "attributes.status = 'FINISHED'"))
    assert len(kept) == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_mlflow_sends_and_prints_nothing(registry):
    assert mlflow.telemetry.client.get_telemetry_client() is None
    assert isinstance(registry.client, MlflowClient)
