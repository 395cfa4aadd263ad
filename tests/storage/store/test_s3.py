"""The store on S3: a server on loopback, configured by the usual environment alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import storage.store.feature_store as module
from headwater.errors import SnapshotError
from storage.store.distributed import commit_blocks
from storage.store.engine import list_sets
from storage.store.feature_store import FeatureStore
from storage.upkeep.collect import gc
from storage.upkeep.export import export
from storage.upkeep.history import log, tag
from storage.upkeep.verify import verify
from tests.storage.storekit import OPTIONS, allot, contents, expected, extract, image, work, write

ROOT = Path(__file__).resolve().parents[3]


def test_a_store_in_a_bucket(bucket, tmp_path):
    where = f"{bucket}/team/line4"
    with pytest.raises(SnapshotError):
        FeatureStore.open(where, "bolts", create=False)
    store = FeatureStore.open(where, "bolts", options=OPTIONS)
    images = [image(i) for i in range(12)]
    extract(store, images, block=6)
    old = tag(store, "first")
    now = [*images[2:], image(20)]
    extract(store, now)
    again = FeatureStore.open(where, "bolts", create=False)
    assert extract(again, now) == 0
    assert contents(again) == expected(now)
    assert contents(again, snapshot="first") == expected(images)
    assert verify(again).ok
    assert list_sets(where) == ["bolts"]
    assert gc(again).expired == []
    assert old in {e.snapshot for e in log(again)}
    done = [work(t) for t in allot(again, now, ["layer3"])]
    assert commit_blocks(again, done).maps == {"layer3": len(now)}
    # From the bucket to a folder and the other way round.
    export(again, tmp_path, plain=False)
    local = FeatureStore.open(tmp_path, "bolts")
    assert contents(local) == expected(now)
    export(local, f"{bucket}/copy", plain=False)
    assert contents(FeatureStore.open(f"{bucket}/copy", "bolts")) == expected(now)


@pytest.mark.slow
def test_concurrent_committers(bucket):
    """Three processes commit at once, no lock between them: conditional writes decide."""
    where = f"{bucket}/race"
    store = FeatureStore.open(where, "bolts", options=OPTIONS)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.storage.store.worker", where]
    spans = [(0, 12), (6, 18), (12, 24)]
    workers = [
        subprocess.Popen([*command, str(a), str(b), "2"], env=env, stdout=subprocess.DEVNULL)
        for a, b in spans
    ]
    assert [w.wait(timeout=240) for w in workers] == [0, 0, 0]
    images = [image(i) for i in range(24)]
    assert contents(store) == expected(images)
    assert len(store.table()) == 24
    assert verify(store).ok


def test_two_threads_race_for_the_commit(bucket, monkeypatch):
    """The loser of a race tries again with what is then missing, and computes nothing anew."""
    where = f"{bucket}/threads"
    one = FeatureStore.open(where, "bolts", options=OPTIONS)
    two = FeatureStore.open(where, "bolts", options=OPTIONS)
    plain = module.put_block

    def slow(*args, **kwargs):
        report = plain(*args, **kwargs)
        time.sleep(0.3)  # both look at the same snapshot, whoever is first
        return report

    monkeypatch.setattr(module, "put_block", slow)
    spans = ([image(i) for i in range(6)], [image(i) for i in range(3, 9)])

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(write, (one, two), spans))
    assert sorted(r.retries > 0 for r in reports) == [False, True]
    assert sorted(r.rows for r in reports) == [3, 6]
    assert contents(one) == expected([image(i) for i in range(9)])
    assert verify(one).ok
