"""Crops without a change, cut out of pairs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from features.images.crops import cut_normal_pairs, source_of
from features.images.pairs import scan_pairs
from headwater.errors import DataError


def test_crops_are_unchanged_disjoint_and_repeatable(pair_folder, tmp_path):
    pairs = scan_pairs(pair_folder).pairs
    names = []
    for out in ("one", "two"):
        written = cut_normal_pairs(pairs, tmp_path / out, 12, per_pair=3, margin=2, seed=1)
        names.append([p.name for p in written])
        for path in written:
            assert Image.open(path).size == (12, 12)
    assert names[0] == names[1]
    assert len(names[0]) == 12
    crops = scan_pairs(tmp_path / "one")
    assert all(p.is_normal and p.mask is None for p in crops.pairs)
    taken = {}
    for name in names[0]:
        key, place = name.removesuffix(".png").split("@")
        top, left = place.split("_")
        assert source_of(f"train/{key}@{place}") == f"train/{key}"
        grid = taken.setdefault(key, np.zeros((40, 50), int))
        grid[int(top) : int(top) + 12, int(left) : int(left) + 12] += 1
        current = np.asarray(Image.open(tmp_path / "one/current" / name))
        assert np.array_equal(current, np.asarray(Image.open(tmp_path / "one/history" / name)))
    for key, grid in taken.items():
        assert grid.max() == 1, key
        if key != "train_b":
            assert not grid[1:8, 2:11].any(), key  # the changed square and the margin
    with pytest.raises(DataError, match="has an unchanged square of 40 px"):
        cut_normal_pairs([pairs[0]], tmp_path / "three", 40, margin=3)
