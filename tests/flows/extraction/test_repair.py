"""`headwater store verify --repair`: damage on the disk, and just that computed again."""

import json
from pathlib import Path

import pytest

import flows.extraction.repair as repairing
from features.backbones.backbone import load_backbone
from headwater.errors import StoreError
from headwater.spec import ExtractorSpec, LayerSpec, ViewSpec
from storage.store.engine import fetch_chunks, submit
from storage.store.feature_store import FeatureStore
from storage.upkeep.verify import verify
from tests.flows.commandkit import features, same
from tests.storage.storekit import OPTIONS, extract, image


def damage(store, spec_id, layer, rows):
    """Flip a bit of these rows in the chunk files on the disk."""
    extractor = store.extractor(spec_id)
    maps = extractor.maps(layer)
    for row in rows:
        (chunk,) = maps.chunks(store.root().store, [row // maps.rows])
        want, at = chunk.tobytes(), row % maps.rows * maps.row_bytes + 3
        for path in (Path(store.location) / store.image_set / "chunks").iterdir():
            data = bytearray(path.read_bytes())
            if data == want:
                data[at] ^= 0x40
                path.write_bytes(data)


@pytest.fixture
def calls(monkeypatch):
    """Count the images that repairs take through the backbone."""
    seen = []

    class Watched(repairing.BackboneRef):
        def load(self):
            backbone = super().load()
            maps = backbone.maps

            def counted(x, *more):
                seen.append(len(x))
                return maps(x, *more)

            monkeypatch.setattr(backbone, "maps", counted)
            return backbone

    monkeypatch.setattr(repairing, "BackboneRef", Watched)
    return seen


def test_repair_computes_just_what_is_damaged(desk, calls):
    whole = features(desk.store)
    (extractor,) = desk.store.extractors()
    (layer,) = extractor.layers
    damage(desk.store, extractor.spec.id, layer, [4])
    path = desk.store.table().path[4]
    said = desk("store", "verify", "s", status=3)
    assert f"layer {layer}, image {path}" in said
    assert said.count("damaged:") == 1
    assert "repaired: 1 map computed" in desk("store", "verify", "s", "--repair")
    assert calls == [1]
    assert "all is well" in desk("store", "verify", "s")
    assert same(features(desk.store), whole)
    assert calls == [1]


def test_an_image_damaged_in_two_layers_is_seen_once(desk, calls):
    desk("extract", "s", "--size", 48, "--precision", "float32", "--heads", "patchcore",
         "--set", 'patchcore.nodes=["layer2"]')  # fmt: skip
    whole = features(desk.store)
    (extractor,) = desk.store.extractors()
    assert len(extractor.layers) == 2
    for layer in extractor.layers:
        damage(desk.store, extractor.spec.id, layer, [7])
    said = json.loads(desk("store", "verify", "s", "--repair", "--json"))
    assert (said["repaired"], len(said["damage"]), said["ok"]) == (2, 2, True)
    assert calls == [1]
    assert same(features(desk.store), whole)


def test_a_damaged_image_whose_file_is_gone_is_named_and_given_up(desk, calls):
    (extractor,) = desk.store.extractors()
    (layer,) = extractor.layers
    damage(desk.store, extractor.spec.id, layer, [2, 3])
    gone = desk.images / desk.store.table().path[2]
    content = gone.read_bytes()
    gone.unlink()
    said = desk("store", "verify", "s", "--repair", status=3)
    assert f"not repaired: {gone}" in said
    assert "repaired: 1 map computed" in said
    # What is left is sound; the image leaves with the next scan, or is computed once it is back.
    assert "all is well" in desk("store", "verify", "s")
    gone.write_bytes(content)
    assert desk.extract()["computed"] == 1
    assert verify(desk.store).rows == 10


def test_damage_to_removed_images_is_said_apart_and_given_up(desk, calls):
    (extractor,) = desk.store.extractors()
    (layer,) = extractor.layers
    names = desk.store.table().path
    gone, kept = names[2], names[3]
    (desk.images / gone).unlink()
    desk.extract()
    whole = features(desk.store)
    damage(desk.store, extractor.spec.id, layer, [2, 3])
    said = desk("store", "verify", "s", status=3)
    assert f"removed image {gone}" in said
    assert f"layer {layer}, image {kept}" in said
    assert "1 damaged map; --repair computes just this one again" in said
    assert "1 damaged map of removed images: not needed" in said
    said = desk("store", "verify", "s", "--repair")
    assert "repaired: 1 map computed again" in said
    assert "given up: 1 damaged map of removed images" in said
    assert calls == [1]
    assert "all is well" in desk("store", "verify", "s")
    assert same(features(desk.store), whole)


def test_views_are_repaired_as_they_were_made(desk, calls, resnet_weights):
    backbone = load_backbone("resnet18", resnet_weights)
    (plain,) = desk.store.extractors()
    spec = ExtractorSpec(**{**plain.spec.__dict__, "views": ViewSpec(2, 30.0)})
    layer = LayerSpec.parse("layer1")
    rows = desk.store.table().images()
    jobs = [
        repairing.Job(r.sha256, desk.images / r.path, view) for r in rows[:4] for view in (1, 2)
    ]
    for block in repairing.extract(jobs, backbone, spec, (layer,)):
        desk.store.write(spec, [(j.sha256, j.view) for j in block.jobs], block.maps)
    whole = features(desk.store)
    damage(desk.store, spec.id, "layer1", [5])
    said = desk("store", "verify", "s", status=3)
    assert "view 2: checksum differs" in said
    desk("store", "verify", "s", "--repair")
    assert calls == [1]
    assert same(features(desk.store), whole)


def test_a_layer_whose_own_columns_are_damaged_is_computed_anew(desk, calls):
    whole = features(desk.store)
    (extractor,) = desk.store.extractors()
    (layer,) = extractor.layers
    key = f"features/{extractor.spec.id}/{layer}/statistics/c/0/0/0"
    (raw,) = submit(fetch_chunks(desk.store.root().store, [key])).result()
    want = bytes(raw)
    chunks = Path(desk.store.location) / "s" / "chunks"
    (path,) = [p for p in chunks.iterdir() if p.read_bytes() == want]
    data = bytearray(want)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = desk("store", "verify", "s", status=3)
    assert f"layer {layer} of extractor {extractor.spec.id}, all images" in said
    assert "repaired: 10 maps" in desk("store", "verify", "s", "--repair")
    assert sum(calls) == 10
    assert "all is well" in desk("store", "verify", "s")
    assert same(features(desk.store), whole)


def test_only_the_newest_snapshot_is_repaired(desk):
    old = desk.store.snapshot
    desk.draw(77)
    desk.extract()
    assert "--repair at" in desk("store", "verify", "s", "--repair", "--snapshot", old, status=2)


def test_damage_beyond_repair_is_named(tmp_path):
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    extract(store, [image(i) for i in range(40)], block=40)
    (raw,) = submit(fetch_chunks(store.root().store, ["images/sha256/c/0/0"])).result()
    chunks = Path(store.location) / "bolts" / "chunks"
    (path,) = [p for p in chunks.iterdir() if p.read_bytes() == bytes(raw)]
    path.write_bytes(path.read_bytes()[:20])
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    (problem,) = verify(store).problems
    assert problem.startswith("the image table cannot be read: images/sha256 cannot be read")
    assert "\n" not in problem
    with pytest.raises(StoreError, match="images/sha256 cannot be read"):
        extract(store, [image(50)])
