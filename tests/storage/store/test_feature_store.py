"""The store: what re-running costs, what is refused, what versions hold."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import zarr

from headwater.errors import ConfigError, DataError, SnapshotError, StoreError
from headwater.spec import LayerSpec
from storage.store.feature_store import FeatureStore
from tests.storage.storekit import LAYERS, SPEC, VIEWS, contents, expected, extract, image, write


def test_a_second_run_does_nothing(store):
    images = [image(i) for i in range(12)]
    assert extract(store, images) == 24
    snapshot = store.snapshot
    assert extract(store, images) == 0
    assert store.snapshot == snapshot
    assert contents(store) == expected(images)


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
    write(store, images[:5])
    again = write(store, images)
    assert (again.rows, again.known, again.images) == (3, 5, 3)
    twice = write(store, images + images)
    assert (twice.rows, twice.snapshot) == (0, again.snapshot)
    assert contents(store) == expected(images)


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
    write(store, images[:2], ["layer3"])
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
        store.write(SPEC, [(image(77).sha256, 0)], {})
    with pytest.raises(DataError, match="64 hexadecimal digits"):
        store.sync([replace(images[0], sha256="xyz")])


def test_a_newer_format_is_refused(store, tmp_path):

    session = store.repository.writable_session("main")
    zarr.open_group(session.store).attrs["headwater_format"] = 2
    session.commit("from the future")
    with pytest.raises(StoreError, match="format 2"):
        FeatureStore.open(tmp_path, "bolts")
