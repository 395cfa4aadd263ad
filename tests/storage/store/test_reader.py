"""Reading for training: order, residency, excerpts put together, workers."""

from __future__ import annotations

import gc
import hashlib
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import storage.store.reader as module
from headwater.errors import DataError
from storage.store.feature_store import FeatureStore
from storage.store.reader import FeatureReader
from tests.storage.storekit import LAYERS, OPTIONS, SPEC, VIEWS, expected, extract, image

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = FeatureStore.open(tmp_path_factory.mktemp("store"), "bolts", options=OPTIONS)
    images = [image(i) for i in range(150)]
    extract(store, images, block=64)
    extract(store, images[:40], spec=VIEWS, complete=False, block=40)
    return store


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(module, "WINDOW_BYTES", 1)
    monkeypatch.setattr(module, "WINDOW_UNITS", 1)


def reader(store, memory):
    return store.reader(SPEC, LAYERS, memory=memory)


@pytest.mark.parametrize("memory", [0, None])
def test_batches_hold_every_row_once_and_the_right_one(store, memory):
    source = reader(store, memory)
    every = source.read(0, len(source))
    for seed in (None, 1):
        seen = []
        for batch in source.batches(16, seed=seed):
            rows = batch["_rows"]
            seen += rows.tolist()
            for layer in LAYERS:
                assert batch[layer.name].dtype == torch.float32
                assert torch.equal(batch[layer.name], every[layer.name][rows])
        assert sorted(seen) == list(range(150))
        assert (seen == sorted(seen)) == (seed is None)
        assert [len(b["_rows"]) for b in source.batches(16, seed=seed, drop_last=True)] == [16] * 9


def test_order_depends_on_the_seed_and_not_on_memory(store):
    def order(memory, seed):
        return torch.cat([b["_rows"] for b in reader(store, memory).batches(7, seed=seed)])

    assert torch.equal(order(0, 5), order(None, 5))
    assert not torch.equal(order(0, 5), order(0, 6))


def test_a_released_reader_holds_nothing_and_reads_the_same_again(store):
    source = reader(store, None)
    first = list(source.batches(16, seed=1))
    held = weakref.ref(next(iter(source._resident.values())))
    assert held() is not None
    source.release()
    gc.collect()
    assert held() is None
    assert not source._pool._free
    for a, b in zip(first, source.batches(16, seed=1), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_rows_are_mixed_across_the_store(store, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_UNITS", 4)
    order, _ = reader(store, 0).order(3)
    # Of neighbours in the store few stay neighbours in an epoch.
    assert (np.abs(np.diff(order)) == 1).mean() < 0.1


def test_subset_and_plain_images_with_their_views(store):
    plain = reader(store, 0)
    views = store.reader(VIEWS, LAYERS, memory=0, missing="skip")
    assert set(views.views) == {1, 2}
    views = views.subset(np.flatnonzero(np.array(views.views) == 2))
    assert len(views) == 40
    some = plain.subset([149, 3, 77])
    assert some.ids == [plain.ids[i] for i in (149, 3, 77)]
    assert torch.equal(some.read(1, 2)["layer2"], plain.read(3, 4)["layer2"])
    both = FeatureReader.concat([some, views])
    both = pickle.loads(pickle.dumps(both))
    assert both.views == [0] * 3 + [2] * 40
    want = {**expected([image(i) for i in (149, 3, 77)]),
            **expected([image(i) for i in range(40)], views=(2,))}  # fmt: skip
    keys = list(zip(both.ids, both.views, strict=True))
    for batch in both.batches(9, seed=0):
        for row, values in zip(batch["_rows"].tolist(), batch["layer2"], strict=True):
            assert values.numpy().tobytes() == want[keys[row]]["layer2"]
    with pytest.raises(DataError, match="the same layers"):
        FeatureReader.concat([plain, store.reader(SPEC, LAYERS[:1])])


def test_a_reader_is_a_small_reference_for_another_process(store, tmp_path):
    source = reader(store, 0).subset(range(0, 150, 2))
    path = tmp_path / "reader.pickle"
    path.write_bytes(pickle.dumps(source))
    assert path.stat().st_size < 5000
    code = (
        "import pickle, sys, hashlib\n"
        "r = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(hashlib.sha256(r.read(0, len(r))['layer2'].numpy().tobytes()).hexdigest())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    mine = source.read(0, len(source))["layer2"].numpy().tobytes()
    assert out.stdout.strip() == hashlib.sha256(mine).hexdigest()


def test_an_epoch_left_early_leaves_no_thread(store):
    list(reader(store, 0).batches(50))  # the store's own threads stay
    before = threading.active_count()
    for _ in range(5):
        batches = reader(store, 0).batches(4, seed=0)
        next(batches)
        batches.close()
    assert threading.active_count() <= before
