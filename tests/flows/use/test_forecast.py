"""What is said before a run is what the run then does; saying it changes nothing."""

import json
import shutil
from types import SimpleNamespace

import pytest

from flows.extraction.plan import plan_job, ready
from flows.runtime.settings import changed
from flows.use.forecast import Forecast, TrainingAhead, forecast
from headwater.errors import DataError, DiskFullError
from tests.flows.commandkit import HEADS
from tests.flows.setkit import QUIET


def ahead_of(small, **options) -> Forecast:
    settings = ready(small.settings(), small.home)
    return forecast(settings, small.home, plan_job(settings, small.home, 3), QUIET, **options)


def test_a_wish_without_known_defects_is_refused_before_anything_is_done(small):
    settings = small.settings()
    small.settings = lambda: changed(settings, {"training.target_recall": 0.9})
    with pytest.raises(DataError, match=r"s has no known defects for target_recall 0\.9"):
        ahead_of(small)
    assert not small.home.card("s")


def files_of(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(("-shm", "-wal"))
    }


def test_the_features_foretold_are_those_that_are_stored(small):
    before = ahead_of(small, measure_from=1)
    assert (before.images, before.normal) == (13, 10)
    (one,) = before.extractions
    assert (one.wanted, one.todo, one.device) == (13, 13, "cpu")
    assert one.seconds_per_image is not None
    assert one.seconds == pytest.approx(13 * one.seconds_per_image)
    assert before.free is not None
    report = small.run()
    stored = small.store.extractors()[0]
    (layer,) = one.layers
    reader = small.store.reader(stored.spec, tuple(stored.layers.values()))
    maps = reader.read(0, len(reader))[layer.name]
    assert before.bytes == 2 * maps.numel()  # to the byte: stored as float16
    assert report.computed == one.todo
    small.draw(40)
    after = ahead_of(small)
    assert [x.todo for x in after.extractions] == [1]
    assert after.bytes == before.bytes / 13
    assert after.extractions[0].seconds_per_image is None  # a run measures nothing for one image


def test_planning_changes_nothing_and_makes_no_home(desk, tmp_path):
    before = files_of(desk.home)
    desk.draw(10)
    options = ("--images", desk.images, "--size", 48, "--precision", "float32", *HEADS, "--json")
    said = json.loads(desk("plan", "s", *options))
    assert [(one["wanted"], one["todo"]) for one in said["extractions"]] == [(11, 1)]
    assert said["trainings"][0]["head"] == "patchcore"
    assert any("A trial tells" in note for note in said["notes"])
    assert files_of(desk.home) == before
    text = desk("plan", "new", *options[:-1], "--home", tmp_path / "none")
    assert "train patchcore" in text
    assert "ms an image here" in text
    assert not (tmp_path / "none").exists()


def test_too_small_a_disk_is_told_before_anything_is_stored(desk, monkeypatch):
    desk.draw(10)
    snapshot = desk.store.snapshot
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    options = ("--images", desk.images, "--size", 48, "--precision", "float32", *HEADS)
    said = desk("plan", "s", *options, status=2)
    assert "to compute" in said  # what it would be is shown all the same
    assert "the features of 1 image(s) take" in said
    assert "1.0 kB of free disk" in said
    assert "nothing was begun" in desk("extract", "s", *options, status=2)
    assert desk.store.snapshot == snapshot
    monkeypatch.setattr(shutil, "disk_usage", real)


def test_a_gpu_that_is_not_there_is_told_before_anything_is_computed(desk, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for command in ("plan", "run"):
        said = desk(command, "new", "--images", desk.images, "--device", "cuda:1", *HEADS, status=2)
        assert "device cuda:1: torch finds no GPUs here" in said
    assert not (desk.home / "sets" / "new.json").exists()


def test_times_come_from_earlier_fits_of_the_same_kind():
    trained = TrainingAhead("f2r", "small", seconds=400.0, basis="40.0 s for 30 rows in s")
    found = TrainingAhead("padim", "small", "v3")
    one = Forecast("s", 1200, 1000, [], [trained, found], "auto", 10**9, [], [])
    assert one.line() == (
        "s: 1,200 images (1,000 normal for training); every feature is stored; "
        "train f2r (7 min); found in MLflow: padim v3"
    )
    one.check()
    short = Forecast("s", 1, 1, [], [], "auto", 0, [], [], DiskFullError("full"))
    assert not short.to_json()["enough_room"]
    with pytest.raises(DiskFullError):
        short.check()
