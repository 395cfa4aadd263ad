"""What a store holds, and how two versions differ."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headwater.spec import LayerSpec
from storage.store.engine import list_sets
from storage.store.feature_store import FeatureStore
from storage.store.layout import StoreOptions
from storage.upkeep.contents import diff, inspect
from tests.storage.storekit import LAYERS, SPEC, VIEWS, extract, image


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
