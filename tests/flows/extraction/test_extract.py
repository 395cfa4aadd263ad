"""Re-running an extraction: each change costs just what it must, counted in backbone calls."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.backbones.backbone import Backbone
from flows.extraction import forecast
from flows.runtime.home import Home
from headwater.errors import DiskFullError, SnapshotError
from storage.upkeep.contents import diff
from storage.upkeep.history import log
from tests.flows.commandkit import features, same
from tests.flows.setkit import SmallSet


def test_nothing_changed_costs_nothing(small):
    first = small.run()
    assert (first.computed, first.sides[0].images, first.sides[0].changes["added"]) == (13, 13, 13)
    before = small.store.snapshot
    again = small.run()
    assert (again.computed, again.backbone_calls, again.hashed) == (0, 0, 0)
    assert small.store.snapshot == before
    assert small.run(rehash=True).hashed >= 13


def test_arithmetic_that_was_given_is_the_sets_from_then_on(small, monkeypatch):
    monkeypatch.setattr(Backbone, "best_precision", lambda self: "bfloat16")
    small.run()
    small.extraction = {"size": 48}
    again = small.run()
    assert again.computed == 0
    assert [e.spec.precision for e in small.store.extractors()] == ["float32"]


def test_a_run_that_the_disk_is_too_small_for_leaves_nothing(small, monkeypatch):
    monkeypatch.setattr(forecast, "free_bytes", lambda place: 10)
    region = small.folder / "region.png"
    Image.fromarray(np.full((48, 48), 255, np.uint8)).save(region)
    small.extraction["roi"] = region
    with pytest.raises(DiskFullError):
        small.run()
    assert not (small.home.root / "regions").exists()
    assert small.home.card("s") == {}


def test_added_removed_replaced_renamed(small):
    small.run()
    before = small.store.snapshot
    good = small.images / "train/good"
    for number in (100, 101, 102):
        small.draw(number)
    for number in (0, 1):
        (good / f"{number}.png").unlink()
    small.draw(103).rename(good / "2.png")
    (good / "3.png").rename(good / "three.png")
    report = small.run()
    assert report.computed == 4
    assert report.backbone_calls == 1
    changes = report.sides[0].changes
    counted = [changes[k] for k in ("added", "removed", "replaced", "renamed")]
    assert counted == [3, 2, 1, 1]
    found = diff(small.store, before)
    assert {Path(p).name for p in found.added} == {"100.png", "101.png", "102.png", "2.png"}
    assert {Path(p).name for p in found.removed} == {"0.png", "1.png", "2.png"}
    assert [Path(new).name for _, new in found.renamed] == ["three.png"]


def test_one_layer_or_head_more_computes_just_that(small):
    small.heads = {"patchcore": {"nodes": ["layer2"]}}
    small.run()
    small.heads = {"patchcore": {"nodes": ["layer2"]}, "padim": {"nodes": ["layer1", "layer2"]}}
    report = small.run()
    store = small.store
    (extractor,) = store.extractors()
    assert report.computed == 13
    assert len(extractor.layers) >= 2
    small.heads = {"padim": {"nodes": ["layer1", "layer2"]}}
    assert small.run().backbone_calls == 0


def test_another_backbone_is_kept_beside(small):
    small.run()
    assert small.run(seed=4).computed == 13
    assert len(small.store.extractors()) == 2
    assert small.run().computed == 0


def test_broken_files_are_set_aside_and_taken_in_once_repaired(small):
    whole = {}
    for number in (4, 5):
        path = small.images / f"train/good/{number}.png"
        whole[path] = path.read_bytes()
        path.write_bytes(whole[path][:60])
    report = small.run()
    assert report.computed == 11
    assert sorted(Path(p).name for p, _ in report.set_aside) == ["4.png", "5.png"]
    for path, content in whole.items():
        path.write_bytes(content)
    repaired = small.run()
    assert (repaired.computed, repaired.set_aside) == (2, [])
    # Half of what is stored becomes unreadable: set aside, and taken back without computing.
    for path in sorted(whole) + sorted((small.images / "train/good").glob("[6-9].png")):
        whole.setdefault(path, path.read_bytes())
        path.write_bytes(b"not an image")
    spoilt = small.run()
    assert (spoilt.computed, len(spoilt.set_aside)) == (0, 6)
    assert len(features(small.store)) == 7 * len(small.store.extractors()[0].layers)
    for path, content in whole.items():
        path.write_bytes(content)
    back = small.run()
    assert (back.computed, back.backbone_calls, back.set_aside) == (0, 0, [])
    assert back.sides[0].changes["returned"] == 6


def test_views_are_computed_for_normal_training_images_and_reseeded_anew(small):
    small.heads = {"f2r": {"views": 2}}
    report = small.run()
    assert [e.computed for e in report.extracted] == [13, 20]
    assert small.run().computed == 0


def test_workers_give_the_same_store_as_one_process(small, tmp_path):
    small.run()
    other = SmallSet(tmp_path)
    other.home = Home.at(tmp_path / "cluster-home")
    other.extraction = {**small.extraction, "workers": 2, "block_mb": 1}
    report = other.run()
    assert report.computed == 13
    assert same(features(small.store), features(other.store))
    assert other.run().computed == 0


def test_a_killed_worker_is_replaced_and_its_block_done_again(small, monkeypatch, tmp_path):
    marker = tmp_path / "died"
    monkeypatch.setenv("HEADWATER_TEST_DIE_ONCE", str(marker))
    import flows.extraction.cluster as cluster

    monkeypatch.setattr(cluster, "extract_block", die_once_then_extract)
    small.extraction = {**small.extraction, "workers": 2, "block_mb": 1}
    report = small.run()
    assert marker.exists()
    assert report.computed == 13
    single = SmallSet(tmp_path / "single")
    shutil.copytree(small.images, single.images)
    single.run()
    assert same(features(small.store), features(single.store))


def die_once_then_extract(*arguments):
    """Kill the worker at its first block; the marker on disk outlives it."""
    from flows.extraction.cluster import extract_block

    marker = Path(os.environ["HEADWATER_TEST_DIE_ONCE"])
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return extract_block(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)


CHILD = """
import sys
from pathlib import Path
from tests.flows.setkit import SmallSet
small = SmallSet(Path(sys.argv[1]))
small.extraction["block_mb"] = 1
small.extraction["batch"] = 1
import flows.extraction.fill as e
real = e.extract
e.extract = lambda *a, **k: real(*a, **{**k, "block_bytes": 1})
print("ready", flush=True)
small.run()
"""


def test_a_killed_extraction_goes_on_where_it_was(small, tmp_path):
    code = CHILD
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    )
    child.stdout.readline()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(SnapshotError):
            if len(log(small.store)) > 3 or child.poll() is not None:
                break
        time.sleep(0.02)
    child.kill()
    child.wait()
    done = len(small.store.table().images())
    report = small.run()
    assert report.computed == 13 - done
    whole = SmallSet(tmp_path / "whole")
    shutil.copytree(small.images, whole.images)
    whole.run()
    assert same(features(small.store), features(whole.store))
