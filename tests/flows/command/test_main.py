"""The command as a whole: any terminal, and an end within seconds whatever it waits for."""

import signal
import socket
import subprocess
import sys
import time

import pytest
import typer

from flows.command import begin
from flows.command.main import main
from tests.flows.commandkit import HEADWATER, environment


def test_a_terminal_that_lacks_letters_gets_escapes(tmp_path):
    done = subprocess.run(
        [*HEADWATER, "extract", "s", "--images", "grün/\u2215nowhere"],
        cwd=tmp_path, env={**environment(tmp_path), "PYTHONIOENCODING": "latin-1"},
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert b"gr\xfcn/\\u2215nowhere" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_bucket_that_does_not_answer_does_not_keep_a_command_from_ending(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(120)
        where = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1",
        }  # fmt: skip
        child = subprocess.Popen(
            [*HEADWATER, "store", "inspect", "s", "--store", "s3://bucket/x"],
            cwd=tmp_path, env={**environment(tmp_path), **where},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            kept, _ = silent.accept()  # it waits for the answer
            began = time.monotonic()
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 143, child.stdout.read()
            assert time.monotonic() - began < 20
            kept.close()
        finally:
            child.kill()
            child.communicate()


def test_a_fault_shows_no_password_and_the_command_is_built_once(monkeypatch, capsys):
    def fails():
        raise RuntimeError("cannot reach postgresql://me:hunter22@host/x")

    built, build = [], typer.main.get_command
    monkeypatch.setattr(typer.main, "get_command", lambda app: built.append(1) or build(app))
    monkeypatch.setattr(begin, "every_setting", fails)
    monkeypatch.setattr(sys, "argv", ["headwater", "settings"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(RuntimeError) as fault:
        main()
    sys.excepthook(fault.type, fault.value, fault.tb)  # as the interpreter does
    said = capsys.readouterr().err
    assert "cannot reach" in said
    assert "hunter22" not in said
    assert built == [1]
