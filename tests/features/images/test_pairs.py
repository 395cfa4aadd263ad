"""Folders of pairs: found by name, judged by their masks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from features.images.pairs import scan_pairs
from headwater.errors import DataError
from tests.features.imagekit import save


def test_scan_finds_pairs_and_shares_templates(pair_folder):
    found = scan_pairs(pair_folder, cache=pair_folder / "cache.sqlite")
    assert [p.key for p in found.pairs] == ["train/a", "train/b", "train/c", "test/d"]
    assert [p.is_normal for p in found.pairs] == [False, True, False, False]
    assert [p.split for p in found.pairs] == ["train"] * 3 + ["test"]
    pair = found.pairs[0]
    assert pair.current.sha256 == hashlib.sha256(pair.current.path.read_bytes()).hexdigest()
    # One template in four pairs is one image; b's current image is the template itself.
    assert len(found.images("history")) == 1
    assert len(found.images()) == 4
    assert {i.kind for i in found.images("current")} == {"good", "changed"}
    assert scan_pairs(pair_folder, cache=pair_folder / "cache.sqlite").hashed == 0


def test_scan_sets_aside_what_it_cannot_use_and_says_so(pair_folder):
    (pair_folder / "train/current/a.png").write_bytes(b"no image")
    (pair_folder / "train/history/c.png").unlink()
    save(pair_folder / "test/mask/d.png", np.zeros((40, 49), np.uint8))
    found = scan_pairs(pair_folder)
    assert [(p.key, p.mask) for p in found.pairs if p.split == "test"] == [("test/d", None)]
    assert [p.key for p in found.pairs] == ["train/b", "test/d"]
    assert [b.path.name for b in found.broken] == ["a.png"]
    assert any("c.png" in p and "no history" in p for p in found.problems)
    assert any("49x40" in p and "without mask" in p for p in found.problems)
    with pytest.raises(DataError, match="no pairs"):
        scan_pairs(pair_folder / "train" / "mask")
