"""New images against those that were there."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from headwater.errors import DataError
from headwater.spec import LayerSpec, TileSpec
from storage.upkeep.drift import compare_groups, drift, pooled
from storage.upkeep.history import tag
from tests.storage.storekit import SPEC, extract, image, keys_of, maps_of


def test_drift_knows_what_was_removed_since(store):
    old = [image(i) for i in range(12)]
    extract(store, old)
    tag(store, "then")
    new = [image(i) for i in range(12, 20)]
    bad = replace(old[0], kind="dent")
    extract(store, [bad, *new])
    for found in drift(store, "then", splits=19):
        assert (found.reference, found.new) == (11, 8)


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


def test_drift_is_of_images_however_many_tiles_they_have(store):
    spec = replace(SPEC, tiles=TileSpec(16))

    def add(images, shift):
        keys = [(one.sha256, part) for one in images for part in (1, 2, 3)]
        maps = {k: v + np.float16(shift) for k, v in maps_of(keys).items()}
        store.write(spec, keys, maps, images)

    add([image(i) for i in range(12)], 0)
    old = store.snapshot
    add([image(i) for i in range(12, 20)], 4)
    found = next(x for x in drift(store, old, splits=99) if x.layer == "layer2")
    assert (found.reference, found.new) == (12, 8)
    assert found.drifted
    reader = store.reader(spec, (LayerSpec.parse("layer2"),))
    means = reader.read(0, len(reader))["layer2"].double().mean((2, 3)).numpy()
    of = np.array(reader.ids)
    want = np.stack([means[of == sha].mean(0) for sha in dict.fromkeys(reader.ids)])
    assert np.allclose(pooled(reader), want)


def test_drift_of_new_images(store):
    extract(store, [image(i) for i in range(12)])
    old = store.snapshot
    with pytest.raises(DataError, match="12 reference images and 0 new"):
        drift(store, old)
    new = [image(i) for i in range(12, 20)]
    maps = {k: v + np.float16(4) for k, v in maps_of(keys_of(new)).items()}
    store.write(SPEC, keys_of(new), maps, new)
    found = next(x for x in drift(store, old, dimensions=4, splits=99) if x.layer == "layer2")
    assert (found.reference, found.new, found.dimensions, found.channels) == (12, 8, 4, 6)
    assert found.drifted
    json.dumps(found.to_json())
