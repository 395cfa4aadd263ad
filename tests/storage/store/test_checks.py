"""What is refused before it reaches the store, and the statistics of what is not."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.errors import FeatureRangeError
from tests.storage.storekit import LAYERS, SPEC, extract, image, keys_of, maps_of


def test_everything_wrong_with_a_block_is_said_at_once(store):
    images = [image(i) for i in range(5)]
    extract(store, images)
    snapshot = store.snapshot
    new = [image(f"new {i}") for i in range(5)]
    maps = {k: v.astype(np.float32) for k, v in maps_of(keys_of(new)).items()}
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
