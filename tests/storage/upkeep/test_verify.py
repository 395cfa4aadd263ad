"""Damage is named, and just that is computed again."""

from __future__ import annotations

from pathlib import Path

import zarr

from storage.store.feature_store import FeatureStore
from storage.upkeep.verify import damaged_keys, invalidate, verify
from tests.storage.storekit import OPTIONS, SPEC, contents, expected, extract, image


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
