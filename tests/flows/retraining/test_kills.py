"""A retraining that was killed anywhere ends, asked for again, as one that never was."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.retraining import run as running
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from tests.flows.commandkit import ROOT, environment
from tests.flows.retraining.kit import POINTS, Retrained


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_at(point, tmp_path, resnet_weights, monkeypatch):
    made = Retrained(tmp_path, resnet_weights).fill()
    monkeypatch.setattr(running, "on_prefect", made.flow)
    made.retrain()
    for number in (40, 41):
        made.draw(number)
    made.spoil(77)
    command = [sys.executable, "-m", "tests.flows.retraining.kit"]
    done = subprocess.run(
        [*command, tmp_path, resnet_weights, point],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    # Whoever answers is whole, whichever it is.
    registry = Registry(made.home.root)
    assert made.service.champion()["service_version"] in ("1", "2")
    Detector.load(made.service.champion()["uri"], registry)
    # Once more: as if nothing had been.
    end = made.retrain()
    assert end.champion == "s.patchcore version 2"
    assert [Path(path).name for path in end.guarded.waiting] == ["77.png"]
    assert len(registry.leaderboard("s")) == 2
    champion = made.service.champion()
    assert champion["service_version"] == "2"
    Detector.load(champion["uri"], registry)
    rows = registry.artifact_json(champion["run_id"], "tables/samples.json")
    learnt = {Path(row["path"]).name for row in rows if row["role"] in ("train", "held out")}
    assert learnt == {f"{n}.png" for n in (*range(14), 40, 41)}
    assert [e["what"] for e in made.service.history()][:1] != ["keep"]
    assert made.retrain().what == "nothing new"
