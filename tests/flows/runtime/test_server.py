"""Prefect's temporary server answers the process that started it, and no other."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.flows.commandkit import environment

FLOW = """
import os, sys, threading
from pathlib import Path
from flows.runtime.home import Home
Home.at(sys.argv[1]).prepare_environment()
from prefect import flow
from prefect.server.api.server import SubprocessASGIServer
from flows.runtime.server import watch_server

@flow
def told():
    server = SubprocessASGIServer()
    secret = os.environ["PREFECT_API_AUTH_STRING"]
    args = open(f"/proc/{server.server_process.pid}/cmdline").read()
    print(server.api_url, secret in args, flush=True)
    sys.stdin.readline()
    return 5

watch_server()
print(told(), flush=True)
"""


def test_without_the_password_its_api_says_nothing(tmp_path):
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
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.communicate()
