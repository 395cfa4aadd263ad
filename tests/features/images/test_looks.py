"""The same picture under other bytes: exact copies, nearly exact ones, and what is none."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.images.looks import look_of, near_copies, pixels_digest
from features.images.pairs import scan_pairs
from features.images.scan import ScanOptions, scan_folders, scan_mvtec
from tests.features.imagekit import save


def part(seed, size=(240, 300)):
    """A smooth picture of its own over what all have in common."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(90, 160, (6, 8, 3), dtype=np.uint8))
    own = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC), int)
    common = 40 * np.sin(np.arange(size[1]) / 7)[None, :, None]
    return (own + common).clip(0, 255).astype(np.uint8)


def as_jpeg(pixels, quality=60, size=None):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if size is None else image.resize(size)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_the_look_is_the_mean_over_a_grid_of_any_size_and_depth():
    wide = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48) * 16
    want = wide.reshape(16, 2, 16, 3).mean((1, 3)) / 256 - 128
    assert np.frombuffer(look_of(wide), np.float16).reshape(16, 16) == pytest.approx(want, rel=1e-3)
    deep = np.full((50, 9, 3), 60_000, np.uint16)
    assert np.frombuffer(look_of(deep), np.float16) == pytest.approx(60_000 / 256 - 128, rel=1e-3)


def test_copies_are_found_and_other_pictures_are_not():
    trained = [part(seed) for seed in range(12)]
    tested = [as_jpeg(trained[4]), part(50), as_jpeg(trained[9], 85, (150, 120)), part(51)]
    found = near_copies(*([look_of(x) for x in side] for side in (tested, trained)))
    assert [(i, j) for i, j, _ in sorted(found)] == [(0, 4), (2, 9)]
    assert near_copies([look_of(tested[0])], [look_of(x) for x in trained[:5]]) == []


@pytest.fixture
def product(tmp_path):
    """Twelve normals, four of them tested as well under other bytes, in MVTec's layout."""
    for seed in range(12):
        save(tmp_path / "train" / "good" / f"{seed:02}.png", part(seed))
    test = tmp_path / "test"
    save(test / "good" / "same.bmp", part(3))
    save(test / "good" / "new.png", part(60))
    save(test / "good" / "compressed.jpg", part(5))
    save(test / "hole" / "new.png", part(61))
    save(test / "hole" / "called normal.tif", part(7))
    return tmp_path


def test_what_is_tested_under_other_bytes_is_not_trained_on(product):
    found = scan_mvtec(product)
    train = {r.path.name for r in found.records if r.split == "train"}
    assert {"03.png", "07.png"}.isdisjoint(train)
    assert len(train) == 10
    assert any("same.bmp (test) and" in p and "show the same pixels" in p for p in found.problems)
    assert any("called normal.tif (hole) and" in p for p in found.problems)
    # What is only nearly the same stays, and is told by name.
    assert [tuple(x.rsplit("/", 1)[1] for x in c) for c in found.copies] == [
        ("compressed.jpg", "05.png")
    ]
    (said,) = [s for s in found.told() if "nearly" in s]
    assert "compressed.jpg" in said


def test_the_same_picture_twice_is_not_torn_apart_by_the_shares_of_a_scan(tmp_path):
    for seed in range(15):
        save(tmp_path / "good" / f"{seed}.png", part(seed))
        save(tmp_path / "good" / f"{seed}.bmp", part(seed))
    save(tmp_path / "bad" / "x.png", part(99))
    found = scan_folders(tmp_path / "good", tmp_path / "bad")
    splits = {r.path.name: r.split for r in found.records}
    assert all(splits[f"{seed}.png"] == splits[f"{seed}.bmp"] for seed in range(15))
    assert set(splits.values()) == {"train", "test"}


def test_a_pair_of_both_splits_is_tested_alone(tmp_path):
    for seed in range(8):
        for side, shift in (("current", 0), ("history", 100)):
            save(tmp_path / "train" / side / f"{seed}.png", part(seed + shift))
    for name, seed, kind in (("again", 2, "bmp"), ("near", 5, "jpg"), ("new", 70, "png")):
        for side, shift in (("current", 0), ("history", 100)):
            save(tmp_path / "test" / side / f"{name}.{kind}", part(seed + shift))
    found = scan_pairs(tmp_path)
    assert "train/2" not in [p.key for p in found.pairs]
    assert len(found.pairs) == 10
    assert any("train/2 = test/again" in p for p in found.problems)
    assert found.copies == [("test/near", "train/5")]


def test_the_digest_is_of_shape_depth_and_values():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    others = [grey.T, grey.reshape(4, 3), grey.astype(np.uint16), grey + 1]
    assert pixels_digest(grey) == pixels_digest(grey.T.copy().T)
    assert pixels_digest(grey) not in [pixels_digest(x) for x in others]


def test_images_are_compared_once_until_one_is_new(product, tmp_path_factory, monkeypatch):
    options, called = ScanOptions(cache=tmp_path_factory.mktemp("cache") / "files.db"), []

    def counted(*sides):
        called.append([len(side) for side in sides])
        return near_copies(*sides)

    monkeypatch.setattr("features.images.cache.near_copies", counted)
    first = scan_mvtec(product, options)
    assert first.copies
    assert scan_mvtec(product, options).copies == first.copies
    assert len(called) == 1
    save(product / "test" / "good" / "another.jpg", part(9))
    more = scan_mvtec(product, options).copies
    assert len(called) == 2
    assert {Path(a).name for a, _ in more} == {
        "another.jpg",
        *(Path(a).name for a, _ in first.copies),
    }
