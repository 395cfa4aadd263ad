"""What a retraining did is kept, and told, however it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.retraining import diary
from flows.retraining import run as running
from flows.retraining.diary import Entry, entries, noted
from headwater import records
from headwater.errors import ConfigError, DataError, StoreError
from tests.flows.retraining.kit import Retrained
from tests.flows.retraining.test_retrain import worse
from tests.flows.setkit import QUIET

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def lines(tmp_path, resnet_weights, monkeypatch):
    """A set whose trainings run in this process, and whose hook keeps what it is told."""
    made = Retrained(tmp_path, resnet_weights).fill()
    monkeypatch.setattr(running, "on_prefect", made.flow)
    said = tmp_path / "said"
    made.hooks = {"command": ["sh", "-c", f'echo "$HOOK_EVENT" >> {said}']}
    made.events = lambda: said.read_text().split() if said.exists() else []
    return made


def test_each_end_is_kept_and_told(lines, monkeypatch):
    first = lines.retrain(hooks=lines.hooks)
    (entry,) = entries(lines.home, "s")
    assert (entry["what"], entry["champion"]) == ("promoted", first.champion)
    assert entry["status"] == 0
    assert entry["seconds"] > 0 < entry["cpu_seconds"]
    assert entry["start"] <= entry["end"]
    lines.retrain(hooks=lines.hooks)
    assert [e["what"] for e in entries(lines.home, "s")] == ["nothing new", "promoted"]
    assert lines.events() == ["promoted"]
    # A challenger that stays out, beside an image that waits.
    lines.draw(50)
    lines.spoil(51)
    monkeypatch.setattr("flows.retraining.judging.Bench.answers", worse)
    lines.retrain(hooks=lines.hooks)
    entry = entries(lines.home, "s")[0]
    assert entry["what"] == "kept"
    assert "recall of x: failed" in entry["why"]
    assert (entry["counts"]["held"], entry["counts"]["waiting"], entry["status"]) == (1, 1, 3)
    assert lines.events() == ["promoted", "kept", "held"]
    # One that breaks: in which step, why, what to do.
    lines.draw(52)

    def broken(*_, **__):
        raise StoreError("no answer from the server", remedy="see to it")

    monkeypatch.setattr(running, "watch_over", broken)
    with pytest.raises(StoreError):
        lines.retrain(hooks=lines.hooks)
    entry = entries(lines.home, "s")[0]
    told = [entry[k] for k in ("what", "step", "why", "remedy")]
    assert told == ["failed", "guard", "no answer from the server", "see to it"]
    assert lines.events()[-1] == "failed"
    assert len(entries(lines.home, "s")) == 4


def test_a_hook_that_fails_never_fails_the_retraining(lines):
    done = lines.retrain(hooks={"command": ["/no/such/command"]})
    assert (done.what, done.status) == ("promoted", 0)
    assert lines.service.champion() is not None


def test_a_mistake_about_an_unknown_set_leaves_nothing(lines):
    with pytest.raises(ConfigError), noted(lines.home, "tpyo", _none(), QUIET):
        raise ConfigError("no such set")
    assert not (lines.home.root / "retrained").exists()
    with pytest.raises(ConfigError), noted(lines.home, "s", _none(), QUIET):
        lines.home.write_card("s", {})
        raise ConfigError("no such head")
    assert entries(lines.home, "s")[0]["step"] == "begin"


def _none():
    from flows.runtime.sections import HookSettings

    return HookSettings()


def test_one_that_was_killed_is_known_as_such(lines):
    code = (
        "import os, sys; from flows.retraining.diary import Entry; "
        "from flows.runtime.home import Home; "
        "Entry(Home.at(sys.argv[1]), 's').start(); os.kill(os.getpid(), 9)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(lines.home.root)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=120,
    )  # fmt: skip
    (entry,) = entries(lines.home, "s")
    assert (entry["what"], entry["alive"]) == (diary.UNDER_WAY, False)
    Entry(lines.home, "s").start()
    assert [e["alive"] for e in entries(lines.home, "s")] == [True, False]


def test_a_damaged_record_is_begun_anew(lines):
    lines.home.write_card("s", {})
    file = lines.home.root / "retrained" / "s.json"
    Entry(lines.home, "s").end("kept", "better so")
    for text in ("{", "[1]", json.dumps([{"what": diary.UNDER_WAY}])):
        file.write_text(text)
        with pytest.raises(DataError, match=r"retrained/s\.json"):
            entries(lines.home, "s")
    file.write_text("{")
    Entry(lines.home, "s").end("kept", "better so")
    assert [e["what"] for e in entries(lines.home, "s")] == ["kept"]
    assert file.with_suffix(".damaged").read_text() == "{"


def test_a_full_disk_does_not_lose_what_was_done(lines, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_text", full)
    assert lines.retrain().what == "promoted"
