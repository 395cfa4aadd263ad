"""Folders of images: what each is, which cannot be used and why."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.images.pixels import sha256_of
from features.images.scan import list_images, scan_folders, scan_mvtec
from headwater.errors import DataError
from tests.features.imagekit import bomb, noise, save


def test_mvtec_layout(tiny_set):
    result = scan_mvtec(tiny_set)
    got = [(r.split, r.kind, r.path.name, r.mask and r.mask.name) for r in result.records]
    assert [g for g in got if g[0] == "train"] == [
        ("train", "good", f"{i:03}.png", None) for i in range(6)
    ]
    assert [g[1:] for g in got if g[0] == "test"] == [
        ("good", "000.png", None),
        ("good", "001.png", None),
        ("dent", "000.png", None),
        ("dent", "001.png", None),
        ("spot", "000.png", "000_mask.png"),
        ("spot", "001.png", "001_mask.png"),
        ("spot", "002.png", "002_mask.png"),
    ]
    first = result.records[0]
    assert (first.width, first.height) == (40, 32)
    assert first.sha256 == sha256_of(first.path)
    assert first.bytes == first.path.stat().st_size
    assert first.is_normal
    assert not result.records[-1].is_normal
    assert (result.broken, result.duplicates, result.problems) == ([], [], [])
    assert result.hashed == 13 + 3


def test_every_kind_of_broken_image_is_set_aside_with_its_reason(tiny_set):
    good = tiny_set / "train/good"
    (good / "empty.png").write_bytes(b"")
    (good / "text.png").write_text("not an image")
    whole = (good / "000.png").read_bytes()
    (good / "cut.png").write_bytes(whole[: len(whole) // 2])
    buffer = io.BytesIO()
    Image.fromarray(noise(3, (64, 64, 3))).save(buffer, "JPEG")
    (good / "cut.jpg").write_bytes(buffer.getvalue()[:-400])
    bomb(good / "bomb.png", 20_000)
    save(good / "thin.png", noise(4, (7, 40, 3)))
    (good / "notes.txt").write_text("ignored")
    result = scan_mvtec(tiny_set)
    reasons = {b.path.name: b.reason for b in result.broken}
    assert set(reasons) == {"empty.png", "text.png", "cut.png", "cut.jpg", "bomb.png", "thin.png"}
    assert "truncated" in reasons["cut.png"]
    assert "truncated" in reasons["cut.jpg"]
    assert "too many pixels" in reasons["bomb.png"]
    assert "40x7" in reasons["thin.png"]
    assert "not an image" in reasons["text.png"]
    assert str(tiny_set) not in "".join(reasons.values())
    assert result.left_out.counts == {"files of type .txt": 1}
    assert len(result.records) == 13


def test_wrong_masks_are_reported_and_the_image_stays(tiny_set):
    truth = tiny_set / "ground_truth"
    save(truth / "spot/001_mask.png", np.zeros((9, 9), np.uint8))
    (truth / "spot/002_mask.png").write_bytes(b"broken")
    save(truth / "spot/777_mask.png", np.zeros((32, 40), np.uint8))
    save(truth / "dent/000.png", np.full((32, 40), 255, np.uint8))
    result = scan_mvtec(tiny_set)
    masks = {f"{r.kind}/{r.path.stem}": r.mask for r in result.records if not r.is_normal}
    assert masks["spot/000"] is not None
    assert masks["spot/001"] is None
    assert masks["spot/002"] is None
    assert masks["dent/000"] == truth / "dent/000.png"
    text = "\n".join(result.problems)
    assert len(result.problems) == 3
    assert "001_mask.png is 9x9, its image 40x32" in text
    assert "002_mask.png" in text
    assert "777_mask.png belongs to no image" in text


def test_scaled_and_soft_masks_are_counted(tiny_set):
    for name, size in (("000", (80, 64)), ("001", (20, 16))):
        path = tiny_set / f"ground_truth/spot/{name}_mask.png"
        mask = Image.open(path).resize(size, Image.Resampling.BILINEAR)
        mask.save(path)
    result = scan_mvtec(tiny_set)
    assert sum(r.mask is not None for r in result.records) == 3
    told = [line for line in result.told() if "mask" in line]
    assert len(told) == 2
    assert "2 files" in told[0]
    assert "scaled" in told[0]
    assert "soft" in told[1]


def test_how_images_are_read_is_told_once_a_kind(tiny_set):
    for i in range(2):
        path = tiny_set / f"train/good/{i:03}.png"
        pixels = np.asarray(Image.open(path))
        save(path, np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)]))
    (said,) = scan_mvtec(tiny_set).told()
    assert said.startswith("2 files, first ")
    assert "alpha is 0 everywhere" in said


def test_same_bytes_are_one_image_and_never_in_train_and_test(tiny_set):
    def copy(source: str, target: str) -> None:
        (tiny_set / target).write_bytes((tiny_set / source).read_bytes())

    copy("train/good/000.png", "train/good/900.png")
    copy("test/good/000.png", "train/good/901.png")
    copy("test/spot/000.png", "train/good/902.png")
    copy("test/spot/001.png", "test/good/903.png")
    result = scan_mvtec(tiny_set)
    names = sorted((k.name, d.name) for k, d in result.duplicates)
    assert names == [
        ("000.png", "900.png"),
        ("000.png", "901.png"),
        ("000.png", "902.png"),
        ("001.png", "903.png"),
    ]
    assert len({r.sha256 for r in result.records}) == len(result.records) == 13
    assert not [r for r in result.records if r.path.stem.startswith("90")]
    text = "\n".join(result.problems)
    assert "900.png" not in text
    assert all(name in text for name in ("901.png", "902.png", "903.png"))
    assert text.count("normal or defective") == 2


def test_a_folder_without_normal_images_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        scan_mvtec(tmp_path / "absent")
    with pytest.raises(DataError, match="train/good"):
        scan_mvtec(tmp_path)
    (tmp_path / "train/good").mkdir(parents=True)
    with pytest.raises(DataError, match="no usable normal image"):
        scan_mvtec(tmp_path)
    (tmp_path / "train/good/a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 set aside.*a\.png"):
        scan_mvtec(tmp_path)


def test_plain_folders(tmp_path):
    for i in range(40):
        save(tmp_path / f"ok/{i}.png", noise(i))
    for seed, name in enumerate(("a", "scratch/b", "hole/b", "c")):
        save(tmp_path / f"bad/{name}.png", noise(1000 + seed))
    for name in ("a_mask", "scratch/b", "hole/b_mask", "orphan"):
        save(tmp_path / f"masks/{name}.png", np.full((20, 24), 255, np.uint8))
    assert {r.split for r in scan_folders(tmp_path / "ok").records} == {"train"}

    result = scan_folders(tmp_path / "ok", tmp_path / "bad", tmp_path / "masks")
    tests = {r.sha256 for r in result.records if r.split == "test" and r.is_normal}
    assert 2 <= len(tests) <= 14
    bad = {
        str(r.path.relative_to(tmp_path / "bad")): (r.kind, r.mask and r.mask.stem)
        for r in result.records
        if not r.is_normal
    }
    assert bad == {
        "a.png": ("defective", "a_mask"),
        "c.png": ("defective", None),
        "scratch/b.png": ("scratch", "b"),
        "hole/b.png": ("hole", "b_mask"),
    }
    assert [p for p in result.problems if "orphan" in p]
    assert len(result.problems) == 1

    # The share for testing is by content: more images move none of the earlier ones.
    for i in range(40, 60):
        save(tmp_path / f"ok/{i}.png", noise(i))
    later = scan_folders(tmp_path / "ok", tmp_path / "bad")
    assert tests <= {r.sha256 for r in later.records if r.split == "test"}
    with pytest.raises(DataError, match="inside the other"):
        scan_folders(tmp_path, tmp_path / "bad")


def test_list_images(tiny_set, monkeypatch):
    one = tiny_set / "train/good/000.png"
    assert list_images(one) == [one]
    assert len(list_images(tiny_set / "test")) == 7
    monkeypatch.chdir(tiny_set)
    # As a file's own name stays: below the folder as it was given.
    assert list_images(Path("test/../train"))[0] == Path("test/../train/good/000.png")
    (tiny_set / "none").mkdir()
    with pytest.raises(DataError, match="no images"):
        list_images(tiny_set / "none")
