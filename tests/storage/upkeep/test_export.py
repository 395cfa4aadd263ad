"""Copies of a snapshot elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from headwater.errors import ConfigError
from storage.store.feature_store import FeatureStore
from storage.upkeep.export import export
from storage.upkeep.verify import verify
from tests.storage.storekit import SPEC, contents, expected, extract, image, keys_of, maps_of


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
