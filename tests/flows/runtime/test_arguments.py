"""A password that was put into a command line is gone from it before the work begins."""

import subprocess
import sys
import time

import psutil

from flows.runtime.arguments import without_passwords
from tests.flows.commandkit import HEADWATER, environment


def test_only_addresses_with_a_password_are_taken_out():
    plain = ["headwater", "run", "s", "--tracking", "http://host:5000", "--images", "http://a:b@c"]
    assert without_passwords(plain) == (plain, {}, [])
    secret = ["headwater", "ui", "--tracking=postgresql://me:word@host/x", "--port", "5001"]
    left, variables, notes = without_passwords(secret)
    assert left == ["headwater", "ui", "--port", "5001"]
    assert variables == {"HEADWATER_TRACKING": "postgresql://me:word@host/x"}
    assert "word" not in notes[0].replace("password", "")
    assert without_passwords(["headwater", "run", "--tracking"])[1] == {}


def test_the_list_of_processes_does_not_show_it(tmp_path):
    # A port that accepts and says nothing keeps the command waiting for its first answer.
    silent = (
        "import socket; s = socket.create_server(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True); input()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", silent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    address = f"http://me:hunter22@127.0.0.1:{server.stdout.readline().strip()}"
    child = subprocess.Popen(
        [*HEADWATER, "compare", "s", "--tracking", address], cwd=tmp_path,
        env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        # Nothing is seen for a moment while one program takes the other's place.
        while not (seen := " ".join(psutil.Process(child.pid).cmdline())) or "hunter22" in seen:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert seen.endswith("compare s")  # the same process, gone on with the rest
        said, _ = child.communicate(timeout=60)
    finally:
        child.kill()
        server.kill()
        server.communicate()
    assert child.returncode == 2, said
    assert "note: --tracking held a password" in said
    assert "no MLflow server answers at http://127.0.0.1:" in said
    assert "hunter22" not in said
