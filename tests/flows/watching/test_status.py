"""A status says what is wrong and the remedy; what is damaged hides nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headwater
from flows.retraining.diary import Entry
from flows.runtime.sections import HookSettings
from flows.use.models.hooks import fire
from flows.watching import wrong as wrongs
from flows.watching.status import status_of
from headwater.errors import DataError
from headwater.samples import HELD
from storage.registry.registry import Registry
from tests.flows.commandkit import run_here

ROOT = Path(__file__).resolve().parents[3]


def one(home, name="s"):
    """Return the status of one set, and what is wrong with it: ``{what: [said, remedy]}``."""
    (found,) = status_of(home, [name]).sets
    return found, {w.what: [w.said, w.remedy] for w in found.wrong}


def test_all_is_well(home, monkeypatch, capsys):
    found, wrong = one(home)
    assert wrong == {}
    told = {k: found.champion[k] for k in ("model", "version", "service_version", "by")}
    assert told == {"model": "s.patchcore", "version": "1", "service_version": "1", "by": "retrain"}
    assert found.champion["since"][:19] <= found.retrained["end"][:19]  # which has whole seconds
    assert found.retrained["what"] == "promoted"
    assert (found.waiting, found.service) == (0, None)
    said = run_here(monkeypatch, capsys, "status", "--home", home.root)
    assert "s.patchcore v1" in said
    assert said.endswith("all is well\n")
    told = json.loads(run_here(monkeypatch, capsys, "status", "s", "--json", "--home", home.root))
    assert told["status"] == 0
    assert told["sets"] == [found.to_json()]
    assert headwater.open(home.root).status("s").sets == [found]


def test_nothing_heavy_is_imported(home):
    code = (
        "import sys; sys.argv = ['headwater', 'status', '--json']\n"
        "from flows.command.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print([m for m in ('torch', 'prefect', 'dask', 'sklearn', 'matplotlib')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HEADWATER_HOME": str(home.root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_champion_that_is_gone(home, monkeypatch, capsys):
    Registry(home.root).client.delete_model_version("s", "1")
    found, wrong = one(home)
    assert found.champion is None
    said, remedy = wrong.pop("champion")
    assert "version 1, was deleted" in said
    assert "headwater promote s HEAD" in remedy
    assert wrong == {}
    said = run_here(monkeypatch, capsys, "status", "--home", home.root, status=3)
    assert "s: champion: the champion of s, version 1, was deleted" in said
    assert "remedy: headwater promote s HEAD puts another in service" in said


@pytest.mark.parametrize("name", ["head.safetensors", "manifest.json", "backbone.safetensors"])
def test_damaged_files_of_the_champion(home, name):
    (file,) = (home.root / "mlartifacts").rglob(name)
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    found, wrong = one(home)
    assert found.champion["version"] == "1"
    said, remedy = wrong["files"]
    assert name in said
    assert "headwater rollback s" in remedy
    file.unlink()
    assert "files" in one(home)[1]


def test_a_damaged_set_hides_no_other(home):
    root = home.root
    home.write_card("t", {})
    for room in ("locked", "reviews", "retrained", "sets", "hooks", "served"):
        (root / room).mkdir(exist_ok=True)
        (root / room / f"t.{'sqlite' if room == 'served' else 'json'}").write_bytes(b"\x00{[")
    found = status_of(home)
    assert [s.image_set for s in found.sets] == ["s", "t"]
    assert found.sets[0].wrong == []
    about = {w.what for w in found.sets[1].wrong}
    damaged = {"locked test", "reviews", "images", "retrain", "hook"}
    assert about == damaged, "a set with nothing in service"
    assert all(w.remedy for w in found.sets[1].wrong)
    assert found.sets[1].waiting is None
    assert found.status == 3
    # What was served by a champion, damaged.
    (root / "served" / "t.sqlite").rename(root / "served" / "s.sqlite")
    assert "damaged" in one(home)[1]["served"][0]


def test_what_else_needs_a_person(home, monkeypatch):
    home.write_card("s", {**home.card("s"), "images": "/no/such/images"})
    home.add_reviews("s", {"a" * 64: {"said": HELD, "who": "guard", "when": "", "path": "x"}})
    Entry(home, "s").end("failed", "no answer", step="train", remedy="see to the server")
    fire(home, "s", HookSettings(command=("/no/such",)), "failed", {}, str)
    monkeypatch.setattr(wrongs, "LOW_DISK", 1e18)
    found, wrong = one(home)
    assert wrong["images"][0].endswith("images is not there")
    assert wrong["reviews"][0] == "1 image waits for a review"
    assert "failed (train): no answer" in wrong["retrain"][0]
    assert wrong["retrain"][1] == "see to the server"
    assert "such was not told of failed" in wrong["hook"][0]
    assert found.waiting == 1
    assert [w.what for w in status_of(home).wrong] == ["disk"]
    # A message that went out takes the complaint back.
    fire(home, "s", HookSettings(command=("true",)), "kept", {}, str)
    assert "hook" not in one(home)[1]


def test_a_retraining_that_broke_off(home):
    entry = Entry(home, "s")
    entry.start()
    assert one(home)[1] == {}, "it is at work"
    entry.kept["process"]["headwater.pid_started"] = "1.0"
    entry._write()
    assert "broke off" in one(home)[1]["retrain"][0]


def test_a_server_that_does_not_answer_hides_no_set(home):
    from flows.runtime.home import Home

    away = Home(home.root, None, "http://127.0.0.1:9")
    found = status_of(away)
    assert [w.what for w in found.wrong] == ["registry"]
    assert [s.image_set for s in found.sets] == ["s"]
    assert found.sets[0].retrained["what"] == "promoted"


def test_a_set_or_a_home_that_is_not_there(home, monkeypatch, capsys, tmp_path):
    with pytest.raises(DataError, match="has no set 'bolts'"):
        status_of(home, ["bolts"])
    said = run_here(monkeypatch, capsys, "status", "--home", tmp_path / "none", status=2)
    assert "no such home" in said
    assert not (tmp_path / "none").exists()


def test_what_is_kept_of_a_set_goes_with_it(home):
    from flows.use.delete import plan_deletion

    fire(home, "s", HookSettings(command=("true",)), "kept", {}, str)
    made = plan_deletion(home, "s")
    made.check(force=True)
    made.run()
    assert not [p for p in home.root.glob("*/s.json") if p.parent.name in ("retrained", "hooks")]
    assert status_of(home).sets == []
