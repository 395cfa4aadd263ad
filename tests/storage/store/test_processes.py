"""Real processes: two writers, a killed writer, a full disk, a reader meanwhile."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headwater.errors import DiskFullError
from storage.store.feature_store import FeatureStore
from storage.upkeep.collect import gc
from storage.upkeep.history import log
from storage.upkeep.verify import verify
from tests.storage.storekit import LAYERS, OPTIONS, SPEC, contents, expected, extract, image, write

HERE = Path(__file__).parent


def start(location: Path, first: int, stop: int, block: int = 3) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.storage.store.worker", str(location)]
    command += [str(first), str(stop), str(block)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def check(store: FeatureStore, images: list) -> None:
    assert contents(store) == expected(images)
    assert len(store.table()) == len(images)
    report = verify(store)
    assert report.ok, (report.damage, report.problems)


def test_two_processes_and_a_reader(tmp_path):
    """They overlap by half: what both compute is stored once, what one computes is not lost."""
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    extract(store, [image(i) for i in range(4)])
    reader = store.reader(SPEC, LAYERS, memory=0)
    before = contents(store)
    writers = [start(tmp_path, 0, 30), start(tmp_path, 15, 45)]
    epochs = 0
    while any(w.poll() is None for w in writers):
        rows = sum(len(b["_rows"]) for b in reader.batches(3, seed=epochs))
        assert rows == 4
        epochs += 1
        time.sleep(0.02)
    assert [w.wait() for w in writers] == [0, 0]
    assert epochs > 0
    assert contents(store, snapshot=reader.snapshot) == before
    check(store, [image(i) for i in range(45)])


def kill_rounds(tmp_path: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    killed = 0
    for _ in range(rounds):
        writer = start(tmp_path, 0, 120, block=2)
        assert writer.stdout is not None
        writer.stdout.readline()  # it is open: whatever is killed from now on is work
        time.sleep(rng.uniform(0.0, 0.6))
        writer.send_signal(signal.SIGKILL)
        killed += writer.wait() == -signal.SIGKILL
        # What was committed is whole and readable at once.
        # A kill before the first commit leaves a store without features.
        found = contents(store) if store.extractors() else {}
        assert found == {k: v for k, v in expected([image(i) for i in range(120)]).items()
                         if k in found}  # fmt: skip
    assert killed
    images = [image(i) for i in range(120)]
    extract(store, images, block=40)
    check(store, images)


def test_killed_at_random_moments(tmp_path):
    kill_rounds(tmp_path, 3, 0)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path):
    kill_rounds(tmp_path, 40, 1)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_disk_that_fills_up(small_disk):
    store = FeatureStore.open(small_disk, "bolts", options=OPTIONS)
    images = [image(i) for i in range(3000)]
    extract(store, images[:20])
    with pytest.raises(DiskFullError, match="no space left") as caught:
        extract(store, images, block=100)
    assert isinstance(caught.value, OSError)
    kept = contents(store)
    assert len(kept) >= 20
    assert kept == {k: v for k, v in expected(images).items() if k in kept}
    assert verify(store).ok
    # What the failed commit left behind is freed, and the store takes features again.
    freed = gc(store, older_than=dt.timedelta(0), grace=dt.timedelta(0), dry_run=False)
    assert freed.bytes > 0
    new = [image("one more")]
    write(store, new)
    assert contents(store) == kept | expected(new)
    assert log(store)[0].message.endswith("1 new images")
