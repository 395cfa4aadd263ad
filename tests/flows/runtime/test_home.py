"""A home is its owner's alone, unless it was made for others; its address keeps its secret."""

import contextlib
import os
import pickle
import sqlite3
import stat
import subprocess
import sys

import pytest
from pydantic import TypeAdapter
from sqlalchemy import make_url

from flows.runtime.home import Home, prefect_is_configured
from headwater.addresses import whole
from headwater.errors import DataError
from storage.registry.client import prepare_database


def rights(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Ends with the umask that was; yields a way to ask for it."""
    before = os.umask(0o022)
    os.umask(0o022)

    def now():
        os.umask(mask := os.umask(0))
        return mask

    yield now
    os.umask(before)


def test_a_new_home_and_its_database_are_for_the_owner_alone(tmp_path, umask):
    home = Home.at(tmp_path / "of" / "mine")
    assert rights(home.root) == 0o700
    assert rights(home.root.parent) == 0o755
    prepare_database(home.root / "mlflow.db")
    assert rights(home.root / "mlflow.db") == 0o600  # without a umask, as a notebook has it
    home.narrow_umask()
    assert umask() == 0o077


@pytest.mark.parametrize(("mode", "mask"), [(0o755, 0o022), (0o2770, 0o027)])
def test_a_folder_that_is_there_keeps_its_rights(tmp_path, umask, mode, mask):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(mode)
    home = Home.at(tmp_path / "ours")
    home.narrow_umask()
    assert rights(home.root) == mode
    assert umask() == mask  # never wider than the user's own


def test_only_a_pickle_has_the_password(tmp_path):
    home = Home(tmp_path, tracking_url="postgresql://me:correct-horse@host/db")
    kept = TypeAdapter(Home).dump_json(home).decode()
    assert "correct-horse" not in kept + repr(home)
    assert TypeAdapter(Home).validate_json(kept) == home
    assert pickle.loads(pickle.dumps(home)) == home
    assert b"correct-horse" in pickle.dumps(home)  # a worker connects, too
    assert whole(home.tracking_url) == "postgresql://me:correct-horse@host/db"


def test_what_a_home_sets_for_the_libraries_does_not_depend_on_its_name(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PREFECT_") or "proxy" in name.lower():
            monkeypatch.delenv(name)
    home = Home.at(tmp_path / "what? #2 100%20")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    home.prepare_environment()
    url = make_url(os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"])
    database = home.root / "prefect/prefect.db"
    database.parent.mkdir()
    with contextlib.closing(sqlite3.connect(url.database, uri=True)) as made:
        made.execute("CREATE TABLE one (a)")
    assert database.is_file()
    assert list(tmp_path.iterdir()) == [home.root]
    assert "NO_PROXY" not in os.environ
    os.environ["HTTPS_PROXY"] = "http://proxy:3128"
    os.environ["no_proxy"] = "intern"
    for _ in range(2):
        home.prepare_environment()
    assert os.environ["no_proxy"] == "intern,127.0.0.1,localhost,::1"
    assert os.environ["NO_PROXY"] == "127.0.0.1,localhost,::1"


def test_a_home_that_databases_cannot_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="not UTF-8"):
        Home.at(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))


def test_a_prefect_server_that_is_down_is_told_at_once(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    code = "from flows.runtime.server import check_server; check_server()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "no Prefect server answers at http://127.0.0.1:9/api" in done.stderr
    assert "unset PREFECT_API_URL" in done.stderr


def test_a_prefect_that_is_named_anywhere_is_to_hear_of_runs(monkeypatch, tmp_path):
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)
    # A project that merely depends on Prefect, as this one does.
    (tmp_path / "pyproject.toml").write_text('dependencies = ["prefect>=3.8"]\n')
    assert not prefect_is_configured()
    for name, text in (
        ("prefect.toml", "[api]\n"),
        ("pyproject.toml", "[tool.prefect.api]\n"),
        (".env", "PREFECT_API_URL=http://host/api\n"),
        ("prefect/profiles.toml", 'active = "team"\n'),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        assert prefect_is_configured(), name
        (tmp_path / name).unlink()
    monkeypatch.setenv("PREFECT_API_URL", "http://host/api")
    assert prefect_is_configured()
