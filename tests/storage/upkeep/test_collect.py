"""Garbage goes, what somebody refers to stays."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import pytest

from headwater.errors import SnapshotError
from storage.upkeep.collect import gc
from storage.upkeep.history import log, tag
from storage.upkeep.verify import verify
from tests.storage.storekit import contents, expected, extract, image

ZERO = dt.timedelta(0)


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_gc_frees_what_nobody_refers_to(store):
    extract(store, [image(i) for i in range(4)])
    first = tag(store, "release")
    extract(store, [image(i) for i in range(8)], block=1)
    model = store.snapshot
    extract(store, [image(i) for i in range(14)], block=1)
    time.sleep(0.01)
    folder = Path(store.location) / "bolts"
    before, history = size_of(folder), len(log(store))
    said = gc(store, older_than=ZERO, grace=ZERO, protect=[model])
    assert said.dry_run
    assert (size_of(folder), len(log(store))) == (before, history)
    assert not [p for p in Path(store.location).iterdir() if p.name.startswith(".gc")]
    kept = contents(store)
    done = gc(store, older_than=ZERO, grace=ZERO, protect=[model], dry_run=False)
    assert (done.bytes, done.chunks) == (said.bytes, said.chunks)
    assert set(done.expired) == set(said.expired)
    assert set(done.kept) == {first, model, store.snapshot}
    assert before - size_of(folder) > 0.9 * done.bytes > 0
    assert contents(store) == kept == expected([image(i) for i in range(14)])
    assert len(contents(store, snapshot="release")) == 4
    assert len(contents(store, snapshot=model)) == 8
    assert verify(store, "release").ok
    with pytest.raises(SnapshotError):
        store.root(done.expired[0])
    # What stayed is listed, though the branch's line does not lead there any more.
    assert {e.snapshot for e in log(store)} >= {first, model, store.snapshot}
    assert [e.tags for e in log(store) if e.snapshot == first] == [("release",)]
    assert [e.snapshot for e in log(store, 1)] == [store.snapshot]
    # What is young stays: somebody may be about to commit it.
    extract(store, [image(i) for i in range(20)], block=2)
    assert gc(store, grace=dt.timedelta(days=1)).bytes == 0
    # Nor does anything expire from what a training under way reads on.
    reading = log(store)[2].snapshot
    swept = gc(store, older_than=ZERO, grace=ZERO, in_use=[reading], dry_run=False)
    assert swept.expired
    assert [e.snapshot for e in log(store)].index(reading) == 2
    assert len(contents(store, snapshot=reading)) < 20
