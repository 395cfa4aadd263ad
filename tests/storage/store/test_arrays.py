"""Maps come back as they were stored, in every dtype and compression."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from storage.store.feature_store import FeatureStore
from storage.store.layout import StoreOptions
from tests.storage.storekit import LAYERS, SPEC, image, keys_of, maps_of


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
