"""What becomes of a run whose Prefect does not start. That none is started: test_golden_home."""

from types import SimpleNamespace

import pytest

from flows import dags, pipeline
from flows.runtime import server
from headwater.errors import StoreError
from tests.flows.setkit import QUIET


def test_a_machine_too_busy_for_prefects_server_is_told_what_to_do(monkeypatch):
    def slow(image_set, request):
        # Prefect's words.
        raise RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")

    monkeypatch.setattr(server, "watch_server", lambda: None)
    monkeypatch.setattr(server, "check_server", lambda: "")
    monkeypatch.setattr(dags, "run_flow", slow)
    monkeypatch.setenv(pipeline.PATIENCE, "7")
    asked = SimpleNamespace(settings=SimpleNamespace(image_set="s"), to_json=dict)
    with pytest.raises(StoreError, match=f"within 7 s.*\n.*\n.*set {pipeline.PATIENCE}"):
        pipeline._through_prefect("run_flow", asked, QUIET)
