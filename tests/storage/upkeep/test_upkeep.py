"""History, differences, damage and repair, garbage, export, drift."""

from __future__ import annotations

import datetime as dt
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from headwater.errors import ConfigError, DataError, SnapshotError
from headwater.spec import LayerSpec
from storage.store.engine import list_sets
from storage.store.feature_store import FeatureStore
from storage.store.layout import StoreOptions
from storage.upkeep.collect import gc
from storage.upkeep.contents import diff, inspect
from storage.upkeep.drift import compare_groups, drift
from storage.upkeep.export import export
from storage.upkeep.history import log, summary, tag, tags, untag
from storage.upkeep.verify import damaged_keys, invalidate, verify
from tests.storage.storekit import (
    LAYERS,
    OPTIONS,
    SPEC,
    VIEWS,
    contents,
    expected,
    extract,
    image,
    keys_of,
    maps_of,
)

NOW = dt.timedelta(0)


@pytest.fixture
def store(tmp_path):
    return FeatureStore.open(tmp_path, "bolts", options=OPTIONS)


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_inspect_says_what_is_there_and_how_it_was_made(tmp_path):
    store = FeatureStore.open(tmp_path, "bolts", options=StoreOptions("zstd", 3000))
    images = [replace(image(i), kind="good" if i < 7 else "dent") for i in range(10)]
    extract(store, images)
    extract(store, images[:5], spec=VIEWS, complete=False)
    extract(store, images[1:])
    found = json.loads(json.dumps(inspect(store)))
    assert (found["images"], found["removed"]) == (9, 1)
    assert found["kinds"] == {"train/dent": 3, "train/good": 6}
    plain = next(e for e in found["extractors"] if e["id"] == SPEC.id)
    assert plain["extractor"] == SPEC.to_json()
    layer = next(x for x in plain["layers"] if x["name"] == "layer2")
    assert layer["shape"] == [6, 8, 8]
    assert (layer["rows"], layer["coverage"], layer["compression"]) == (10, 1.0, "zstd")
    assert layer["bytes"] == 10 * 6 * 8 * 8 * 2
    assert layer["ratio"] == round(layer["bytes"] / layer["stored_bytes"], 3)
    views = next(e for e in found["extractors"] if e["id"] == VIEWS.id)
    assert views["layers"][0]["coverage"] == pytest.approx(8 / 18, abs=1e-6)
    assert list_sets(tmp_path) == ["bolts"]


def test_log_tags_and_the_past(store):
    extract(store, [image(i) for i in range(4)])
    old = tag(store, "first")
    assert tag(store, "first", old) == old
    extract(store, [image(i) for i in range(1, 9)])
    with pytest.raises(ConfigError, match="is taken by"):
        tag(store, "first")
    entries = log(store)
    assert next(e for e in entries if e.snapshot == old).tags == ("first",)
    assert any("sync: 1 removed" in line for line in summary(entries))
    assert contents(store, snapshot="first") == expected([image(i) for i in range(4)])
    untag(store, "first")
    assert tags(store) == {}
    with pytest.raises(SnapshotError, match="first"):
        untag(store, "first")


def test_diff_names_what_changed(store):
    images = [image(i) for i in range(6)]
    extract(store, images)
    old = store.snapshot
    now = [*images[1:], image(20)]
    now[0] = replace(now[0], path="moved.png")
    now[1] = replace(now[1], kind="dent", split="test")
    extract(store, now, (*LAYERS, LayerSpec.parse("layer3")))
    found = diff(store, old)
    assert found.added == [image(20).path]
    assert found.removed == [images[0].path]
    assert found.renamed == [(images[1].path, "moved.png")]
    assert found.relabelled == [images[2].path]
    assert found.layers_added == [f"{SPEC.id}/layer3"]
    assert found.rows == {f"{SPEC.id}/layer3": 6, **{f"{SPEC.id}/{x.name}": 1 for x in LAYERS}}
    back = diff(store, found.new, old)
    assert (back.added, back.removed) == (found.removed, found.added)
    assert not diff(store, old, old).added
    json.loads(found.to_json())


def chunk_file(store: FeatureStore, number: int, layer: str = "layer2") -> Path:
    """Return the file of a chunk of maps, found by its bytes."""
    maps = store.extractor(SPEC).maps(layer)
    (data,) = maps.chunks(store.root().store, [number])
    want = data.tobytes()
    folder = Path(store.location) / store.image_set / "chunks"
    return next(p for p in folder.iterdir() if p.read_bytes() == want)


def test_verify_names_damage_and_repair_computes_just_that(store):
    images = [image(i) for i in range(20)]
    extract(store, images, block=20)
    assert verify(store).ok
    flipped = chunk_file(store, 1)  # rows 4..7
    data = bytearray(flipped.read_bytes())
    data[2 * 6 * 8 * 8 * 2 + 11] ^= 0x40  # one bit of row 6, large enough for the statistics
    lost, cut = chunk_file(store, 2), chunk_file(store, 4)
    flipped.write_bytes(bytes(data))
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    store = FeatureStore.open(store.location, "bolts", options=OPTIONS)
    report = verify(store)
    assert not report.problems
    names = {(d.layer, d.path) for d in report.damage}
    assert names == {("layer2", images[i].path) for i in (6, 8, 9, 10, 11, 16, 17, 18, 19)}
    assert "checksum differs" in str(report.damage[0])
    todo = damaged_keys(store, report.damage)
    assert [len(k) for k in todo[SPEC].values()] == [9]
    invalidate(store, report.damage)
    assert verify(store).ok
    assert extract(store, images, block=4) == 9
    assert verify(store).ok
    assert contents(store) == expected(images)


def test_verify_sees_statistics_that_are_not_the_maps(store):
    extract(store, [image(i) for i in range(6)], block=6)

    def spoil(session) -> str:
        array = zarr.open_group(session.store)[f"features/{SPEC.id}/layer2/statistics"]
        array[0, 1, 2] = 3.5
        return "spoil"

    store.transact(spoil)
    report = verify(store)
    assert {d.reason for d in report.damage} == {"statistics of block 0 differ"}
    assert len(report.damage) == 6


def test_gc_frees_what_nobody_refers_to(store):
    extract(store, [image(i) for i in range(4)])
    first = tag(store, "release")
    extract(store, [image(i) for i in range(8)], block=1)
    model = store.snapshot
    extract(store, [image(i) for i in range(14)], block=1)
    time.sleep(0.01)
    folder = Path(store.location) / "bolts"
    before, history = size_of(folder), len(log(store))
    said = gc(store, older_than=NOW, grace=NOW, protect=[model])
    assert said.dry_run
    assert (size_of(folder), len(log(store))) == (before, history)
    assert not [p for p in Path(store.location).iterdir() if p.name.startswith(".gc")]
    kept = contents(store)
    done = gc(store, older_than=NOW, grace=NOW, protect=[model], dry_run=False)
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
    swept = gc(store, older_than=NOW, grace=NOW, in_use=[reading], dry_run=False)
    assert swept.expired
    assert [e.snapshot for e in log(store)].index(reading) == 2
    assert len(contents(store, snapshot=reading)) < 20


def test_drift_knows_what_was_removed_since(store):
    old = [image(i) for i in range(12)]
    extract(store, old)
    tag(store, "then")
    new = [image(i) for i in range(12, 20)]
    bad = replace(old[0], kind="dent")
    extract(store, [bad, *new])
    for found in drift(store, "then", splits=19):
        assert (found.reference, found.new) == (11, 8)


def test_export_as_plain_zarr_and_as_a_store(store, tmp_path):
    images = [image(i) for i in range(9)]
    extract(store, images)
    old = store.snapshot
    extract(store, images[:3])
    target = tmp_path / "out" / "plain"
    assert export(store, target, old) > 9 * 6 * 8 * 8 * 2
    group = zarr.open_group(target, mode="r")
    assert group["images/path"][:].tolist() == [i.path for i in images]
    maps = group[f"features/{SPEC.id}/layer2/maps"][:]
    np.testing.assert_array_equal(maps, maps_of(keys_of(images), ["layer2"])["layer2"])
    with pytest.raises(ConfigError, match="exists"):
        export(store, target)
    export(store, tmp_path / "elsewhere", old, plain=False)
    other = FeatureStore.open(tmp_path / "elsewhere", "bolts", create=False)
    assert contents(other) == expected(images)
    assert verify(other).ok
    with pytest.raises(ConfigError, match="not empty"):
        export(store, tmp_path / "elsewhere", plain=False)


def test_drift_between_groups_of_known_distance():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((400, 8))
    same = compare_groups(reference, rng.standard_normal((200, 8)), "e", "x", rng, splits=99)
    assert not same.drifted
    assert 0.8 < same.nearest_ratio < 1.25
    moved = compare_groups(reference, rng.standard_normal((200, 8)) + 1, "e", "x", rng, splits=99)
    # |m1 - m2|² = 8 over a total variance of 8
    assert moved.mean_distance == pytest.approx(1.0, abs=0.15)
    assert moved.frechet == pytest.approx(1.0, abs=0.2)
    assert moved.drifted
    assert moved.nearest_ks > 0.2
    wider = compare_groups(reference, 3 * rng.standard_normal((200, 8)), "e", "x", rng, splits=99)
    # 8 · (3 - 1)² over 8
    assert wider.frechet == pytest.approx(4.0, rel=0.25)
    assert (wider.mean_p > 0.01) or wider.mean_distance < 0.4
    assert wider.frechet_p == 0.01


def test_drift_of_new_images(store):
    extract(store, [image(i) for i in range(12)])
    old = store.snapshot
    with pytest.raises(DataError, match="12 reference images and 0 new"):
        drift(store, old)
    new = [image(i) for i in range(12, 20)]
    maps = {k: v + np.float16(4) for k, v in maps_of(keys_of(new), ["layer2"]).items()}
    store.write(SPEC, keys_of(new), maps, new)
    (found,) = drift(store, old, layers=["layer2"], dimensions=4, splits=99)
    assert (found.reference, found.new, found.dimensions, found.channels) == (12, 8, 4, 6)
    assert found.drifted
    json.dumps(found.to_json())
