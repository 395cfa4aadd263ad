"""Names that are no UTF-8 are stored and come back as the files are called."""

from __future__ import annotations

import os

import numpy as np

from headwater.spec import ExtractorSpec
from storage.store.feature_store import FeatureStore
from storage.store.table import ImageRow


def test_latin_1_names_come_back(tmp_path):
    store = FeatureStore.open(str(tmp_path), "old")
    name = os.fsdecode(b"train/good/gr\xfcn.png")
    row = ImageRow("ab" * 32, name, "train", "good", "", 9, 9)
    assert store.sync([row]).counts["added"] == 1
    spec = ExtractorSpec("net", "untrained:0", resize=(32, 32))
    maps = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float16)
    store.write(spec, [(row.sha256, 0)], {"layer": maps}, images=[row])
    assert [image.path for image in store.table().images()] == [name]
    assert store.sync([row]).counts["unchanged"] == 1
