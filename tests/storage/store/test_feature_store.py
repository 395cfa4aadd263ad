"""The store: what re-running costs, what is refused, what versions hold."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.errors import ConfigError, DataError, FeatureRangeError, SnapshotError, StoreError
from headwater.spec import LayerSpec
from storage.store.feature_store import FeatureStore
from storage.store.layout import StoreOptions, bfloat16_bits, bfloat16_values, chunk_rows
from storage.store.table import Selection, ShaIndex, nanoseconds, sha_array
from tests.storage.storekit import (
    LAYERS,
    OPTIONS,
    SHAPES,
    SPEC,
    VIEWS,
    contents,
    expected,
    extract,
    image,
    keys_of,
    maps_of,
)


@pytest.fixture
def store(tmp_path):
    return FeatureStore.open(tmp_path, "bolts", options=OPTIONS)


def test_a_second_run_does_nothing(store):
    images = [image(i) for i in range(12)]
    assert extract(store, images) == 24
    snapshot = store.snapshot
    assert extract(store, images) == 0
    assert store.snapshot == snapshot
    assert contents(store) == expected(images)


def test_added_removed_replaced_renamed_relabelled(store):
    images = [image(i) for i in range(10)]
    extract(store, images)
    now = images[3:]  # 0, 1, 2 go
    now[0] = image("new 3", path=now[0].path)  # replaced under the same name
    now[1] = replace(now[1], path="train/good/renamed.png")
    now[2] = replace(now[2], split="test", kind="scratch", mask="m.png")
    now += [image(100), image(101)]
    report = store.sync(now)
    assert report.counts == {
        "added": 2, "returned": 0, "removed": 3, "renamed": 1, "replaced": 1, "relabelled": 1,
        "unchanged": 4,
    }  # fmt: skip
    assert report.renamed == ((images[4].path, "train/good/renamed.png"),)
    assert report.replaced == (images[3].path,)
    assert extract(store, now) == 3 * 2  # two added, one replaced, two layers each
    assert contents(store) == expected(now)
    assert sorted(store.table().images(), key=str) == sorted(now, key=str)


def test_an_image_that_comes_back_is_not_computed_again(store):
    images = [image(i) for i in range(6)]
    extract(store, images)
    extract(store, images[2:])
    report = store.sync(images)
    assert set(report.returned) == {i.path for i in images[:2]}
    assert extract(store, images) == 0
    assert contents(store) == expected(images)


def test_a_partial_scan_removes_nothing_but_what_was_overwritten(store):
    images = [image(i) for i in range(5)]
    extract(store, images)
    other = image("other", path=images[0].path)
    report = store.sync([other], complete=False)
    assert report.replaced == (images[0].path,)
    extract(store, [other], complete=False)
    assert contents(store) == expected([*images[1:], other])


def test_a_layer_added_later_is_filled_in_alone(store):
    images = [image(i) for i in range(11)]
    extract(store, images)
    more = (*LAYERS, LayerSpec.parse("layer3"))
    assert store.plan(SPEC, more).missing == {"layer2": 0, LAYERS[1].name: 0, "layer3": 11}
    extract(store, images[4:7], more[2:], complete=False, block=2)
    assert store.plan(SPEC, more).missing["layer3"] == 8
    new = [*images, image(50)]
    assert extract(store, new, more, block=3) == 8 + 3
    assert contents(store, more) == expected(new, more)


def test_views_are_rows_of_their_own_extractor(store):
    images = [image(i) for i in range(4)]
    extract(store, images)
    assert extract(store, images, spec=VIEWS) == 4 * 2 * 2
    assert extract(store, images, spec=VIEWS) == 0
    assert contents(store) == expected(images)
    assert contents(store, spec=VIEWS) == expected(images, views=(1, 2))
    other = replace(VIEWS, views=replace(VIEWS.views, seed=1))
    assert store.plan(other, LAYERS).todo == 8


def test_the_same_block_twice_and_halves_of_it(store):
    images = [image(i) for i in range(8)]
    keys = keys_of(images)
    store.write(SPEC, keys[:5], maps_of(keys[:5], list(SHAPES)[:2]), images)
    again = store.write(SPEC, keys, maps_of(keys, list(SHAPES)[:2]), images)
    assert (again.rows, again.known, again.images) == (3, 5, 3)
    twice = store.write(SPEC, keys + keys, maps_of(keys + keys, list(SHAPES)[:2]), images)
    assert (twice.rows, twice.snapshot) == (0, again.snapshot)
    assert contents(store) == expected(images)


def test_everything_wrong_with_a_block_is_said_at_once(store):
    images = [image(i) for i in range(5)]
    extract(store, images)
    snapshot = store.snapshot
    new = [image(f"new {i}") for i in range(5)]
    maps = {k: v.astype(np.float32) for k, v in maps_of(keys_of(new), list(SHAPES)[:2]).items()}
    maps["layer2"][1, 0, 0, 0] = 70000
    maps["layer2"][2, 3, 4, 4] = np.nan
    maps[LAYERS[1].name][3] = 0.25
    maps["layer3"] = np.ones((4, 3, 2, 2), np.float32)
    with pytest.raises(FeatureRangeError) as caught:
        store.write(SPEC, keys_of(new), maps, new)
    text = str(caught.value)
    for part in (
        "layer layer2, image train/good/new 1.png", "70000", "float16",
        "new 2.png", "not a number", "new 3.png", "constant: every value is 0.25",
        "layer layer3: maps of shape (4, 3, 2, 2) for 5 images", "bfloat16",
    ):  # fmt: skip
        assert part in text
    assert len(caught.value.failures) == 4
    assert store.snapshot == snapshot
    # A float16 array that overflowed before it came here is infinite: the same error.
    bad = maps_of(keys_of(new), ["layer2"])
    bad["layer2"][0, 0, 0, 0] = np.inf
    with pytest.raises(FeatureRangeError, match="beyond float16's range"):
        store.write(SPEC, keys_of(new), bad, new)
    with pytest.raises(FeatureRangeError, match=r"the layer holds \(6, 8, 8\)"):
        store.write(SPEC, keys_of(new), {"layer2": np.ones((5, 6, 8, 7), np.float16)}, new)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_and_compression(tmp_path, dtype, compression):
    store = FeatureStore.open(tmp_path, "s", options=StoreOptions(compression, chunk_bytes=3000))
    spec = replace(SPEC, dtype=dtype)
    images = [image(i) for i in range(9)]
    keys = keys_of(images)
    maps = {k: v * (1e6 if dtype != "float16" else 1) for k, v in
            maps_of(keys, ["layer2"], "float32").items()}  # fmt: skip
    for a in range(0, 9, 4):
        store.write(spec, keys[a : a + 4], {"layer2": maps["layer2"][a : a + 4]}, images)
    got = store.reader(spec, LAYERS[:1]).read(0, 9)["layer2"]
    want = torch.from_numpy(maps["layer2"])
    exact = want.to(getattr(torch, dtype)).float()
    assert torch.equal(got, exact)


def test_bfloat16_is_rounded_as_torch_rounds():
    values = np.concatenate(
        [np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 10.0**e
         for e in range(-30, 30, 5)] + [np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)]
    )  # fmt: skip
    want = torch.from_numpy(values).bfloat16()
    bits = bfloat16_bits(values)
    np.testing.assert_array_equal(bfloat16_values(bits), want.float().numpy())


def test_chunk_sizes_follow_from_bytes():
    assert chunk_rows(512 * 28 * 28 * 2) == 4
    assert chunk_rows(304 * 6 * 6 * 2) == 256
    assert chunk_rows(100 * 1024 * 1024) == 1
    for size in (10, 999, 54_321, 1_000_000):
        assert chunk_rows(size).bit_count() == 1


def test_statistics_are_those_of_the_block(store):
    images = [image(i) for i in range(7)]
    maps = maps_of(keys_of(images), ["layer2"], "float32")
    maps["layer2"] += 100  # a large mean must not cost the variance
    store.write(SPEC, keys_of(images), maps, images)
    group = store.extractor(SPEC)
    mean, variance, low, high = group.array("layer2/statistics")[0]
    values = maps["layer2"].astype(np.float16).astype(np.float64).transpose(1, 0, 2, 3)
    flat = values.reshape(6, -1)
    np.testing.assert_allclose(mean, flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(variance, flat.var(1), rtol=1e-4)
    np.testing.assert_array_equal(low, flat.min(1))
    np.testing.assert_array_equal(high, flat.max(1))
    assert group.array("layer2/blocks")[:].tolist() == [[0, 7]]


def test_point_in_time(store):
    early, late = [image(i) for i in range(3)], [image(i) for i in range(3, 6)]
    defect = replace(image(9), split="test", kind="crack")
    extract(store, [*early, defect])
    moment = int(store.table().added_at.max())
    extract(store, [*early, *late, defect])
    extract(store, [*early[1:], *late, defect])  # the first one goes
    normal = Selection(normal=True)
    assert set(contents(store, select=normal)) == set(keys_of([*early[1:], *late]))
    then = Selection(normal=True, known_by=moment)
    assert set(contents(store, select=then)) == set(keys_of(early))
    since = Selection(since=moment)
    assert set(contents(store, select=since)) == set(keys_of(late))
    assert not contents(store, select=Selection(known_by="2001-01-01"))
    with pytest.raises(ConfigError, match="ISO date"):
        nanoseconds("last week")


def test_a_reader_stays_at_its_snapshot(store):
    images = [image(i) for i in range(6)]
    extract(store, images)
    old = store.reader(SPEC, LAYERS)
    shadow = pickle.loads(pickle.dumps(old))
    extract(store, [*images[1:], image(10)])
    assert old.ids == shadow.ids == [i.sha256 for i in images]
    assert contents(store, snapshot=old.snapshot) == expected(images)


def test_errors_name_what_there_is(store, tmp_path):
    images = [image(i) for i in range(4)]
    extract(store, images)
    with pytest.raises(LookupError, match=r"layer9.*\n.*layer2"):
        store.reader(SPEC, [LayerSpec.parse("layer9")])
    store.write(SPEC, keys_of(images[:2]), maps_of(keys_of(images[:2]), ["layer3"]))
    with pytest.raises(StoreError, match="2 of 4 selected images lack"):
        store.reader(SPEC, [LayerSpec.parse("layer3")])
    some = store.reader(SPEC, [LayerSpec.parse("layer3")], missing="skip")
    assert (len(some), some.missing) == (2, [i.path for i in images[2:]])
    with pytest.raises(SnapshotError, match="does not exist"):
        store.reader(SPEC, LAYERS, snapshot="1CECHNKREP0F1RSTCMT9")
    with pytest.raises(SnapshotError, match="'nuts'"):
        FeatureStore.open(tmp_path, "nuts", create=False)
    assert not (tmp_path / "nuts").exists()
    with pytest.raises(ConfigError, match="image set name"):
        FeatureStore.open(tmp_path, "../nuts")
    with pytest.raises(StoreError, match="not in the table"):
        store.write(SPEC, keys_of([image(77)]), maps_of(keys_of([image(77)]), ["layer2"]))
    with pytest.raises(DataError, match="64 hexadecimal digits"):
        store.sync([replace(images[0], sha256="xyz")])


def test_a_newer_format_is_refused(store, tmp_path):
    import zarr

    session = store.repository.writable_session("main")
    zarr.open_group(session.store).attrs["headwater_format"] = 2
    session.commit("from the future")
    with pytest.raises(StoreError, match="format 2"):
        FeatureStore.open(tmp_path, "bolts")


def test_contents_with_the_same_prefix_are_told_apart():
    names = [bytes([1] * 8 + [i] * 24).hex() for i in range(4)] + [bytes([9] * 32).hex()]
    index = ShaIndex(sha_array(names[:3] + names[4:]))
    assert index.find(sha_array(names)).tolist() == [0, 1, 2, -1, 3]
    assert ShaIndex(sha_array([])).find(sha_array(names)).tolist() == [-1] * 5
