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

from flows.extraction.extract import extract_set
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from headwater.errors import SnapshotError
from headwater.spec import LayerSpec
from storage.store.feature_store import FeatureStore
from storage.store.table import Selection
from storage.upkeep.contents import diff
from storage.upkeep.history import log

SEED = 3


def picture(number):
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8))


@pytest.fixture
def job(tmp_path):
    for part, numbers in (("train/good", range(10)), ("test/good", (20, 21)), ("test/x", (30,))):
        (tmp_path / "images" / part).mkdir(parents=True)
        for number in numbers:
            picture(number).save(tmp_path / "images" / part / f"{number}.png")
    return Job(tmp_path)


class Job:
    """A set, its home, and one way to extract it."""

    def __init__(self, folder):
        self.folder, self.images = folder, folder / "images"
        self.home = Home.at(folder / "home")
        self.heads = {"patchcore": {}}
        self.extraction = {"size": 48, "batch": 4, "precision": "float32"}

    def settings(self):
        return Settings.model_validate(
            {
                "image_set": "s",
                "images": self.images,
                "heads": self.heads,
                "extraction": self.extraction,
                "training": {"preset": "small"},
            }
        )

    def run(self, seed=SEED, **options):
        return extract_set(
            self.settings(), self.home, Reporter(quiet=True), untrained_seed=seed, **options
        )

    @property
    def store(self):
        return FeatureStore.open(self.home.store, "s", create=False)

    def read(self):
        """Return all plain features by image and layer."""
        store, found = self.store, {}
        for extractor in store.extractors():
            for layer in extractor.layers:
                reader = store.reader(extractor.spec, (LayerSpec.parse(layer),), Selection())
                batch = reader.read(0, len(reader))
                for i, sha in enumerate(reader.ids):
                    found[extractor.spec.id, layer, sha] = batch[layer][i].numpy()
        return found


def test_nothing_changed_costs_nothing(job):
    first = job.run()
    assert (first.computed, first.images, first.changes["added"]) == (13, 13, 13)
    before = job.store.snapshot
    again = job.run()
    assert (again.computed, again.backbone_calls, again.hashed) == (0, 0, 0)
    assert job.store.snapshot == before
    assert job.run(rehash=True).hashed >= 13


def test_added_removed_replaced_renamed(job):
    job.run()
    before = job.store.snapshot
    good = job.images / "train/good"
    for number in (100, 101, 102):
        picture(number).save(good / f"{number}.png")
    for number in (0, 1):
        (good / f"{number}.png").unlink()
    picture(103).save(good / "2.png")
    (good / "3.png").rename(good / "three.png")
    report = job.run()
    assert report.computed == 4
    assert report.backbone_calls == 1
    changes = report.changes
    counted = [changes[k] for k in ("added", "removed", "replaced", "renamed")]
    assert counted == [3, 2, 1, 1]
    found = diff(job.store, before)
    assert {Path(p).name for p in found.added} == {"100.png", "101.png", "102.png", "2.png"}
    assert {Path(p).name for p in found.removed} == {"0.png", "1.png", "2.png"}
    assert [Path(new).name for _, new in found.renamed] == ["three.png"]


def test_one_layer_or_head_more_computes_just_that(job):
    job.heads = {"patchcore": {"nodes": ["layer2"]}}
    job.run()
    job.heads = {"patchcore": {"nodes": ["layer2"]}, "padim": {"nodes": ["layer1", "layer2"]}}
    report = job.run()
    store = job.store
    (extractor,) = store.extractors()
    assert report.computed == 13
    assert len(extractor.layers) >= 2
    job.heads = {"padim": {"nodes": ["layer1", "layer2"]}}
    assert job.run().backbone_calls == 0


def test_another_backbone_is_kept_beside(job):
    job.run()
    assert job.run(seed=4).computed == 13
    assert len(job.store.extractors()) == 2
    assert job.run().computed == 0


def test_broken_files_are_set_aside_and_taken_in_once_repaired(job):
    whole = {}
    for number in (4, 5):
        path = job.images / f"train/good/{number}.png"
        whole[path] = path.read_bytes()
        path.write_bytes(whole[path][:60])
    report = job.run()
    assert report.computed == 11
    assert sorted(Path(p).name for p, _ in report.set_aside) == ["4.png", "5.png"]
    for path, content in whole.items():
        path.write_bytes(content)
    repaired = job.run()
    assert (repaired.computed, repaired.set_aside) == (2, [])
    # Half of what is stored becomes unreadable: set aside, and taken back without computing.
    for path in sorted(whole) + sorted((job.images / "train/good").glob("[6-9].png")):
        whole.setdefault(path, path.read_bytes())
        path.write_bytes(b"not an image")
    spoilt = job.run()
    assert (spoilt.computed, len(spoilt.set_aside)) == (0, 6)
    assert len(job.read()) == 7 * len(job.store.extractors()[0].layers)
    for path, content in whole.items():
        path.write_bytes(content)
    back = job.run()
    assert (back.computed, back.backbone_calls, back.set_aside) == (0, 0, [])
    assert back.changes["returned"] == 6


def test_views_are_computed_for_normal_training_images_and_reseeded_anew(job):
    job.heads = {"f2r": {"views": 2}}
    report = job.run()
    assert [e.computed for e in report.extracted] == [13, 20]
    assert job.run().computed == 0


def test_workers_give_the_same_store_as_one_process(job, tmp_path):
    job.run()
    other = Job(tmp_path)
    other.home = Home.at(tmp_path / "cluster-home")
    other.extraction = {**job.extraction, "workers": 2, "block_mb": 1}
    report = other.run()
    assert report.computed == 13
    mine, theirs = job.read(), other.read()
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[k], theirs[k]) for k in mine)
    assert other.run().computed == 0


def test_a_killed_worker_is_replaced_and_its_block_done_again(job, monkeypatch, tmp_path):
    marker = tmp_path / "died"
    monkeypatch.setenv("HEADWATER_TEST_DIE_ONCE", str(marker))
    import flows.extraction.cluster as cluster

    monkeypatch.setattr(cluster, "extract_block", die_once_then_extract)
    job.extraction = {**job.extraction, "workers": 2, "block_mb": 1}
    report = job.run()
    assert marker.exists()
    assert report.computed == 13
    single = Job(tmp_path / "single")
    shutil.copytree(job.images, single.images)
    single.run()
    mine, theirs = job.read(), single.read()
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[k], theirs[k]) for k in mine)


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
from tests.flows.extraction.test_extract import Job
job = Job(Path(sys.argv[1]))
job.extraction["block_mb"] = 1
job.extraction["batch"] = 1
import flows.extraction.extract as e
real = e.extract
e.extract = lambda *a, **k: real(*a, **{**k, "block_bytes": 1})
print("ready", flush=True)
job.run()
"""


def test_a_killed_extraction_goes_on_where_it_was(job, tmp_path):
    code = CHILD
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    )
    child.stdout.readline()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(SnapshotError):
            if len(log(job.store)) > 3 or child.poll() is not None:
                break
        time.sleep(0.02)
    child.kill()
    child.wait()
    done = len(job.store.table().images())
    report = job.run()
    assert report.computed == 13 - done
    whole = Job(tmp_path / "whole")
    shutil.copytree(job.images, whole.images)
    whole.run()
    mine, theirs = job.read(), whole.read()
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[k], theirs[k]) for k in mine)
