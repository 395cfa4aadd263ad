"""The whole job with its results in a real PostgreSQL, as docs/operations.md has it."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.flows.commandkit import HEADWATER, ROOT, save_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("initdb"), reason="needs PostgreSQL's initdb and pg_ctl"),
]
PASSWORD, QUOTED = "p@ss:w/rd", "p%40ss%3Aw%2Frd"


@pytest.fixture(scope="module")
def database():
    """Address, with user and password, of an empty database on a server of its own."""
    pytest.importorskip("psycopg2")
    # PostgreSQL does not run as root, and nobody else sees pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="headwater-postgres-"))
    who = {"user": "nobody", "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    (folder / "password").write_text(PASSWORD)
    if who:
        for path in (folder, folder / "password"):
            shutil.chown(path, "nobody")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(*words):
        subprocess.run(words, check=True, cwd=folder, stdout=subprocess.DEVNULL, **who)

    data = folder / "data"
    call("initdb", "-D", data, "-U", "me", "--auth=scram-sha-256", "--pwfile=password")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -F"
    call("pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://me:{QUOTED}@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_results_live_in_the_database_and_its_password_nowhere(database, tiny_set, tmp_path):
    save_weights(tmp_path)

    def headwater(*arguments, tracking=database, status=0):
        done = subprocess.run(
            [*HEADWATER, *arguments, "--home", "home"],
            cwd=tmp_path,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                "HEADWATER_TRACKING": tracking, "HEADWATER_WEIGHTS": str(tmp_path),
            },
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        assert QUOTED not in done.stdout + done.stderr
        return done.stdout, done.stderr

    job = ("--images", str(tiny_set), "--heads", "patchcore", "--size", "48")
    headwater("run", "tiny", *job, "--backbone", "resnet18")
    (row,) = json.loads(headwater("compare", "tiny", "--json")[0])
    assert row["version"] == "1"
    assert not (tmp_path / "home/mlflow.db").exists()
    headwater("predict", "tiny", str(tiny_set / "test/spot/000.png"))
    for path in (tmp_path / "home").rglob("*"):
        assert path.is_dir() or QUOTED.encode() not in path.read_bytes(), path
    wrong = database.replace(QUOTED, "hunter22")
    _, said = headwater("compare", "tiny", tracking=wrong, status=2)
    assert "password authentication failed" in said
    assert "hunter22" not in said
