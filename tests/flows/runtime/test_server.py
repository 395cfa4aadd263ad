"""Prefect's temporary server answers the process that started it, and no other."""

import json
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing

import pytest

from flows.runtime.home import PATIENCE
from flows.runtime.server import TemporaryServer, _copy_database
from headwater.errors import StoreError
from tests.flows.commandkit import environment

FLOW = """
import os, sys
from flows.runtime.home import Home
Home.at(sys.argv[1]).prepare_environment()
from prefect import flow
from flows.runtime.server import prefect_server, start_server

@flow
def told():
    server = start_server()  # the one that runs
    args = open(f"/proc/{server.process.pid}/cmdline").read()
    print(os.environ["PREFECT_API_URL"], server.password in args, flush=True)
    sys.stdin.readline()
    return 5

with prefect_server():
    print(told(), flush=True)
print([m for m in sys.modules if m.startswith("prefect.server")], "PREFECT_API_URL" in os.environ)
"""


def test_without_the_password_its_api_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PREFECT_HOME", "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)  # tests before may have set them
    child = subprocess.Popen(
        [sys.executable, "-c", FLOW, tmp_path / "home"], env=environment(tmp_path),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said = child.stdout.readline().split()
        assert len(said) == 2, child.stderr.read()
        api, seen = said
        assert seen == "False"  # in the list of processes
        for header in ({}, {"Authorization": "Basic aGVhZHdhdGVyOng="}):
            asked = urllib.request.Request(
                f"{api}/flow_runs/filter", json.dumps({}).encode(),
                {"Content-Type": "application/json", **header},
            )  # fmt: skip
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(asked, timeout=20)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "5\n", child.stderr.read()  # and the flow goes on with it
        assert child.stdout.readline() == "[] False\n"  # four seconds of imports, and no trace
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.communicate()
    # The empty database is kept: the next home gets a copy before its server starts.
    (kept,) = (tmp_path / "cache/headwater").iterdir()
    with closing(sqlite3.connect(kept)) as database:
        assert database.execute("select count(*) from flow_run").fetchone() == (0,)
        database.execute("create table mark (a)")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    server = TemporaryServer()
    server.start()
    server.stop()
    with closing(sqlite3.connect(tmp_path / "prefect/prefect.db")) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master")}
    assert {"mark", "flow_run", "alembic_version"} <= tables


def test_a_database_that_is_damaged_is_not_copied(tmp_path):
    good, target = tmp_path / "good.db", tmp_path / "new/prefect.db"
    with closing(sqlite3.connect(good)) as database:
        database.execute("create table t (a)")
        database.executemany("insert into t values (?)", [("x" * 1000,)] * 100)
        database.commit()
    bad = tmp_path / "bad.db"
    bad.write_bytes(good.read_bytes()[:50_000])
    for broken in (bad, tmp_path / "missing.db"):
        _copy_database(broken, target, tries=1)
        assert not target.exists()
    _copy_database(good, target)
    with closing(sqlite3.connect(target)) as database:
        assert database.execute("select count(*) from t").fetchone() == (100,)
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_machine_too_busy_for_it_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv(PATIENCE, "0.2")
    server = TemporaryServer()
    server.start()
    process = server.process
    with pytest.raises(StoreError, match=f"within 0.2 s.*\n.*\n.*set {PATIENCE}"):
        server.wait()
    assert process.poll() is not None  # nothing is left behind


def test_one_that_cannot_start_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nonsense://")
    server = TemporaryServer()
    server.start()
    with pytest.raises(StoreError, match="ended with status"):
        server.wait()
