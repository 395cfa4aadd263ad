"""Pairs of images: found on disk, handed on, cut into crops."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from features.images.crops import cut_normal_pairs, source_of
from features.images.pairs import ImageSource, PairMasks, scan_pairs
from heads.pairs.source import Pair, PairSource
from headwater.errors import DataError


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    template = rng.integers(0, 255, (40, 50))
    for split, names in (("train", "abc"), ("test", "d")):
        for name in names:
            mask = np.zeros((40, 50))
            current = template.copy()
            if name != "b":
                mask[3:6, 4:9] = 255
                current[3:6, 4:9] = rng.integers(0, 255, (3, 5))
            write(tmp_path / split / "current" / f"{name}.png", current)
            write(tmp_path / split / "history" / f"{name}.png", template)
            write(tmp_path / split / "mask" / f"{name}.png", mask)
    return tmp_path


def test_scan_finds_pairs_and_shares_templates(folder):
    found = scan_pairs(folder, cache=folder / "cache.sqlite")
    assert [p.key for p in found.pairs] == ["train/a", "train/b", "train/c", "test/d"]
    assert [p.is_normal for p in found.pairs] == [False, True, False, False]
    assert [p.split for p in found.pairs] == ["train"] * 3 + ["test"]
    pair = found.pairs[0]
    assert pair.current.sha256 == hashlib.sha256(pair.current.path.read_bytes()).hexdigest()
    # One template in four pairs is one image; b's current image is the template itself.
    assert len(found.images("history")) == 1
    assert len(found.images()) == 4
    assert {i.kind for i in found.images("current")} == {"good", "changed"}
    assert scan_pairs(folder, cache=folder / "cache.sqlite").hashed == 0


def test_scan_sets_aside_what_it_cannot_use_and_says_so(folder):
    (folder / "train/current/a.png").write_bytes(b"no image")
    (folder / "train/history/c.png").unlink()
    write(folder / "test/mask/d.png", np.zeros((40, 49)))
    found = scan_pairs(folder)
    assert [(p.key, p.mask) for p in found.pairs if p.split == "test"] == [("test/d", None)]
    assert [p.key for p in found.pairs] == ["train/b", "test/d"]
    assert [b.path.name for b in found.broken] == ["a.png"]
    assert any("c.png" in p and "no history" in p for p in found.problems)
    assert any("49x40" in p and "without mask" in p for p in found.problems)
    with pytest.raises(DataError, match="no pairs"):
        scan_pairs(folder / "train" / "mask")


def test_images_and_masks_reach_a_pair_source(folder):
    found = scan_pairs(folder)
    images = ImageSource(found.images(), lambda x: torch.from_numpy(x).permute(2, 0, 1), (40, 50))
    masks = PairMasks(found.pairs, lambda m: m[::2, ::2])
    pairs = [Pair(p.key, p.current.sha256, p.history.sha256) for p in found.pairs]
    source = PairSource(images, images, pairs, masks)
    for batch in source.batches(3, seed=0):
        difference = (batch["current:image"] - batch["history:image"]).abs().amax(1)
        for changed, mask in zip(difference > 0, batch["_mask"][:, 0] > 0, strict=True):
            assert not (changed[::2, ::2] & ~mask).any()
    assert source.mask(1).shape == (20, 25)
    assert not source.mask(1).any()
    bare = [found.pairs[0], found.pairs[1].__class__("k", "train", *_sides(found.pairs[1]), None)]
    with pytest.raises(DataError, match="1 of 2 pairs have no mask, the first k"):
        PairMasks(bare, lambda m: m)


def _sides(pair):
    return pair.current, pair.history


def test_crops_are_unchanged_disjoint_and_repeatable(folder, tmp_path):
    pairs = scan_pairs(folder).pairs
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
