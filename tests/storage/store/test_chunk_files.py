"""Chunks read straight from their files are those of the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headwater.errors import StoreError
from storage.store import chunk_files
from storage.store.arrays import Maps
from storage.store.feature_store import FeatureStore
from tests.storage.storekit import LAYERS, OPTIONS, SPEC, extract, image


def everything(source, seed=None):
    """Return an epoch's rows and values, and one read."""
    found = list(source.batches(16, seed=seed)) + [source.read(3, 99)]
    return [(name, values) for batch in found for name, values in sorted(batch.items())]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_chunks_read_from_their_files_are_those_of_the_engine(tmp_path, monkeypatch, dtype):
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    spec = replace(SPEC, dtype=dtype)
    images = [image(i) for i in range(120)]
    extract(store, images[:50], spec=spec, block=20)
    extract(store, images, spec=spec, block=33)  # chunks that were written twice

    def open_reader():
        return store.reader(spec, LAYERS, memory=0).subset([*range(0, 100, 3), *range(101, 118)])

    calls = []
    original = Maps.fetch
    monkeypatch.setattr(Maps, "fetch", lambda *a: calls.append(a) or original(*a))
    ours = [everything(open_reader(), seed) for seed in (None, 4)]
    assert not calls
    # A file that is not as we know it is left to the engine, and gives the same.
    monkeypatch.setattr(chunk_files, "_MAGIC", b"something else")
    chunk_files.locate.cache_clear()
    theirs = [everything(open_reader(), seed) for seed in (None, 4)]
    chunk_files.locate.cache_clear()
    assert calls
    for mine, other in zip(ours, theirs, strict=True):
        assert [n for n, _ in mine] == [n for n, _ in other]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(mine, other, strict=True))


def test_a_chunk_that_ends_early_is_named(tmp_path):
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    extract(store, [image(i) for i in range(20)])
    source = store.reader(SPEC, LAYERS, memory=0)
    path = Path(next(iter(source.open()[0].files["layer2"].values()))[0])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="damaged chunk"):
        list(source.batches(4))
