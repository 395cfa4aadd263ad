"""The registry against a real MLflow on SQLite: nothing stays RUNNING, nobody is in the way."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from storage.registry.client import MlflowClient
from storage.registry.facts import process_tags
from tests.storage.registry.conftest import TAGS


def test_runs_of_dead_processes_are_reaped_and_living_ones_are_not(registry):
    mine = registry.start("bottles", "f2r", "k1")
    dead, far, reused = (registry.start("bottles", "f2r", k) for k in ("k2", "k3", "k4"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    client = registry.client
    client.set_tag(dead.run_id, "headwater.pid", str(ended.pid))
    client.set_tag(far.run_id, "headwater.host", "another-machine")
    client.set_tag(reused.run_id, "headwater.pid_started", "12.5")  # the id was given away again
    assert set(registry.reap("bottles")) == {dead.run_id, reused.run_id}
    with registry.start("bottles", "f2r", "k3"):  # the same training again: the far one is given up
        assert client.get_run(far.run_id).info.status == "KILLED"
    assert client.get_run(mine.run_id).info.status == "RUNNING"
    assert process_tags()["headwater.pid"] == str(os.getpid())


def test_trainings_that_begin_at_once_share_a_data_set(registry, monkeypatch):
    together, plain = threading.Barrier(8), MlflowClient.log_inputs
    waited = set()

    def at_once(client, run_id, *inputs, **named):
        if run_id not in waited:  # not when asked again
            waited.add(run_id)
            together.wait(60)
        return plain(client, run_id, *inputs, **named)

    monkeypatch.setattr(MlflowClient, "log_inputs", at_once)

    def begin(n):
        with registry.start("bottles", f"head{n}", "k", params={}, tags=TAGS) as run:
            return run.run_id

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(begin, range(8)))
    for run_id in runs:
        assert len(registry.client.get_run(run_id).inputs.dataset_inputs) == 1
