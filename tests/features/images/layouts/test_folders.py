"""Public layouts and strangers' folders: understood by their looks, or refused; never misread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from features.images.layouts.catalogue import AUTO, LAYOUTS, find_layout
from features.images.masks import read_mask
from features.images.scan import ScanOptions, scan_folders, scan_images
from flows.runtime.values import LayoutName
from headwater.errors import ConfigError, DataError
from tests.features.imagekit import noise, save

SEEDS = iter(range(10**6))
SHAPE = (20, 24)


def images(place: Path, *names: str) -> None:
    for name in names:
        save(place / name, noise(next(SEEDS)))


def mask(path: Path, column: int | None = 3, value: int = 255) -> Path:
    """A mask that marks one column, or nothing."""
    pixels = np.zeros(SHAPE, np.uint8)
    if column is not None:
        pixels[:, column] = value
    return save(path, pixels)


def told(result):
    """What a scan made of each file: split, kind, and which columns its mask marks."""

    def columns(path):
        return [] if path is None else np.flatnonzero(read_mask(path).any(0)).tolist()

    return {
        str(r.path.relative_to(result.root)): (r.split, r.kind, columns(r.mask))
        for r in result.records
    }


def mvtec(root: Path) -> Path:
    images(root, *(f"train/good/{i}.png" for i in range(3)), "test/good/0.png", "test/cut/000.png")
    mask(root / "ground_truth/cut/000_mask.png")
    return root


def test_the_option_names_every_layout():
    assert set(get_args(LayoutName)) == {AUTO, *(layout.name for layout in LAYOUTS)}


def test_loco_joins_the_masks_of_a_folder_and_gives_them_to_no_other_image(tmp_path):
    images(tmp_path, "train/good/000.png", "validation/good/000.png", "test/good/000.png")
    images(tmp_path, *(f"test/logical_anomalies/00{i}.png" for i in range(3)))
    truth = tmp_path / "ground_truth/logical_anomalies"
    mask(truth / "000/000.png", 1)
    mask(truth / "000/001.png", 2, value=7)
    mask(truth / "002/000.png", 9)
    result = scan_images(tmp_path)
    assert result.layout == "mvtec"
    got = told(result)
    # 001 has no folder of masks: that 000/001.png is called as it is means nothing.
    assert [got[f"test/logical_anomalies/00{i}.png"][2] for i in range(3)] == [[1, 2], [], [9]]
    assert got["validation/good/000.png"] == ("train", "good", [])
    assert any("validation" in note for note in result.notes)
    assert result.problems == []


def test_one_unusable_mask_of_several_refuses_them_all(tmp_path):
    images(tmp_path, "train/good/0.png", "test/cut/000.png", "test/cut/001.png")
    truth = tmp_path / "ground_truth/cut"
    mask(truth / "000/0.png")
    (truth / "000/1.png").write_bytes(b"no mask")
    mask(truth / "001/0.png")
    outside = mask(tmp_path.parent / f"{tmp_path.name}-outside.png")
    (truth / "001/1.png").symlink_to(outside)
    result = scan_images(tmp_path)
    assert [r.mask for r in result.records if not r.is_normal] == [None, None]
    text = "\n".join(result.problems)
    assert "000: none of its masks is used" in text
    assert "001: not all masks in it may be read" in text
    outside.unlink()


def test_plain_folders_take_no_mask_of_another_image(tmp_path):
    images(tmp_path / "ok", *(f"{i}.png" for i in range(5)))
    images(tmp_path / "bad", "000.png", "001.png", "dent/002.png", "cut/003.png")
    mask(tmp_path / "masks/000/001.png", 1)
    mask(tmp_path / "masks/002_mask.png", 2)
    mask(tmp_path / "masks/other/003.png", 3)
    result = scan_folders(tmp_path / "ok", tmp_path / "bad", tmp_path / "masks")
    got = {r.path.stem: r.mask for r in result.records if not r.is_normal}
    assert got["000"] == tmp_path / "masks/000/001.png"
    assert got["001"] is None
    assert got["002"] == tmp_path / "masks/002_mask.png"
    assert got["003"] is None  # of another kind, as far as folders tell
    assert "other/003.png belongs to no image" in "\n".join(result.problems)


def test_mvtec_ad_2_has_its_tests_in_public_and_no_labels_in_private(tmp_path):
    images(tmp_path, "train/good/000_regular.png", "validation/good/000_regular.png")
    images(tmp_path, "test_public/good/000_regular.png", "test_public/bad/000_regular.png")
    images(tmp_path, "test_private/000_regular.png", "test_private_mixed/000_mixed.png")
    mask(tmp_path / "test_public/ground_truth/bad/000_regular_mask.png", 4)
    result = scan_images(tmp_path)
    assert result.layout == "mvtec-ad-2"
    assert told(result) == {
        "train/good/000_regular.png": ("train", "good", []),
        "validation/good/000_regular.png": ("train", "good", []),
        "test_public/good/000_regular.png": ("test", "good", []),
        "test_public/bad/000_regular.png": ("test", "bad", [4]),
    }
    assert result.left_out.counts == {
        "images without a label in test_private/": 1,
        "images without a label in test_private_mixed/": 1,
    }


def test_btad(tmp_path):
    images(tmp_path, "train/ok/0000.bmp", "test/ok/0000.bmp", "test/ko/0000.bmp")
    mask(tmp_path / "ground_truth/ko/0000.png", 5)
    result = scan_images(tmp_path)
    assert result.layout == "btad"
    assert told(result) == {
        "train/ok/0000.bmp": ("train", "good", []),
        "test/ok/0000.bmp": ("test", "good", []),
        "test/ko/0000.bmp": ("test", "ko", [5]),
    }
    # The same folder of normal test images in a set that calls its training images good.
    (tmp_path / "train/ok").rename(tmp_path / "train/good")
    again = scan_images(tmp_path)
    assert told(again)["test/ok/0000.bmp"] == ("test", "good", [])
    assert any("test/ok is taken for normal" in note for note in again.notes)


def visa(root: Path) -> Path:
    images(root, *(f"Data/Images/Normal/{i:04}.JPG" for i in range(6)))
    images(root, "Data/Images/Anomaly/000.JPG", "Data/Images/Anomaly/001.JPG")
    for i in range(2):
        mask(root / f"Data/Masks/Anomaly/{i:03}.png", i + 1, value=i + 1)
    return root


def test_visa_is_split_by_its_csv_where_that_is_there(tmp_path):
    root = visa(tmp_path / "candle")
    result = scan_images(root)
    assert result.layout == "visa"
    got = told(result)
    assert [got[f"Data/Images/Anomaly/00{i}.JPG"] for i in range(2)] == [
        ("test", "anomaly", [1]),
        ("test", "anomaly", [2]),
    ]
    assert sum(split == "test" and kind == "good" for split, kind, _ in got.values()) >= 1
    rows = ["object,split,label,image,mask"]
    rows += [f"candle,{'train' if i < 4 else 'test'},normal,candle/Data/Images/Normal/000{i}.JPG,"
             for i in range(5)]  # fmt: skip
    rows.append("candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,")
    rows.append("pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(rows))
    result = scan_images(root)
    got = told(result)
    normal = [got[f"Data/Images/Normal/000{i}.JPG"][0] for i in range(5)]
    assert normal == ["train"] * 4 + ["test"]
    assert result.left_out.counts == {"images that 1cls.csv does not list": 2}
    with pytest.raises(DataError, match="2 products"):
        scan_images(tmp_path / "split_csv/1cls.csv")
    # All products at once are no set, and the message names one that is.
    with pytest.raises(DataError, match="candle"):
        scan_images(tmp_path)


def test_kolektor_takes_labels_for_masks_and_black_ones_for_normal(tmp_path):
    for part in range(4):
        images(tmp_path, f"kos0{part}/Part0.jpg", f"kos0{part}/Part1.jpg")
        mask(tmp_path / f"kos0{part}/Part0_label.bmp", None)
        mask(tmp_path / f"kos0{part}/Part1_label.bmp", part)
    result = scan_images(tmp_path)
    assert result.layout == "kolektor"
    got = told(result)
    assert len(got) == 8
    assert {p: v for p, v in got.items() if "Part1" in p} == {
        f"kos0{part}/Part1.jpg": ("test", "defective", [part]) for part in range(4)
    }
    assert {kind for p, (_, kind, _) in got.items() if "Part0" in p} == {"good"}


def test_kolektor2_never_trains_on_what_its_masks_mark(tmp_path):
    images(tmp_path, "train/10000.png", "train/10001.png", "test/20000.png", "test/20001.png")
    for name, column in (("train/10000", None), ("train/10001", 3), ("test/20000", 3)):
        mask(tmp_path / f"{name}_GT.png", column)
    mask(tmp_path / "test/20001_GT.png", None)
    result = scan_images(tmp_path)
    assert told(result) == {
        "train/10000.png": ("train", "good", []),
        "test/20000.png": ("test", "defective", [3]),
        "test/20001.png": ("test", "good", []),
    }
    left = result.left_out.counts
    assert left["defective images for training (nothing learns from them)"] == 1


def test_dagm(tmp_path):
    images(tmp_path, "Train/0576.PNG", "Train/0577.PNG", "Test/0001.PNG", "Test/0002.PNG")
    mask(tmp_path / "Train/Label/0577_label.PNG")
    mask(tmp_path / "Test/Label/0002_label.PNG", 8)
    (tmp_path / "Test/Label/Labels.txt").write_text("1")
    result = scan_images(tmp_path)
    assert result.layout == "dagm"
    assert told(result) == {
        "Train/0576.PNG": ("train", "good", []),
        "Test/0001.PNG": ("test", "good", []),
        "Test/0002.PNG": ("test", "defective", [8]),
    }


def test_two_folders_by_their_names_with_labels_beside(tmp_path):
    images(tmp_path, *(f"ok/kos0{i}/Part0.jpg" for i in range(5)), "bad/kos09/Part1.jpg")
    for i in range(5):
        mask(tmp_path / f"ok/kos0{i}/Part0_label.bmp", None)
    mask(tmp_path / "bad/kos09/Part1_label.bmp", 6)
    result = scan_images(tmp_path)
    assert result.layout == "good-bad"
    assert told(result)["bad/kos09/Part1.jpg"] == ("test", "kos09", [6])
    assert len(result.records) == 6
    assert result.left_out.counts == {"black masks of normal images": 5}
    # What is given as normal and marked as defective is neither trained on nor tested.
    mask(tmp_path / "ok/kos00/Part0_label.bmp", 1)
    result = scan_images(tmp_path)
    assert [b.reason[:15] for b in result.broken] == ["given as normal"]
    assert len(result.records) == 5


def test_a_folder_of_images_alone_is_of_normal_ones_and_that_is_said(tmp_path):
    images(tmp_path / "bolts", "a.png", "b.png")
    result = scan_images(tmp_path / "bolts")
    assert (result.layout, {r.split for r in result.records}) == ("normal", {"train"})
    assert "all 2 images are taken for normal" in result.notes[0]
    for name in ("ng", "test", "masks"):
        images(tmp_path / name, "a.png")
        with pytest.raises(DataError, match="no other layout"):
            scan_images(tmp_path / name)
    images(tmp_path / "bolts", "monday/a.png")
    with pytest.raises(DataError, match="--layout normal"):
        scan_images(tmp_path / "bolts")
    assert len(scan_images(tmp_path / "bolts", "normal").records) == 3


def test_a_layout_that_does_not_fit_or_is_none_is_refused(tmp_path):
    images(tmp_path, "train/good/0.png")
    with pytest.raises(DataError, match="not laid out as visa"):
        find_layout(tmp_path, "visa")
    with pytest.raises(ConfigError, match="one of auto"):
        find_layout(tmp_path, "mvtek")


def test_normal_images_to_test_with_are_given_apart(tmp_path):
    for i in range(10):
        images(tmp_path / "ok", f"{i}.png")
    images(tmp_path / "bad", "0.png")
    images(tmp_path / "fresh", "0.png", "1.png")
    (tmp_path / "fresh/copy.png").write_bytes((tmp_path / "ok/3.png").read_bytes())
    options = ScanOptions(test_normal=tmp_path / "fresh")
    result = scan_folders(tmp_path / "ok", tmp_path / "bad", None, options)
    tested = {r.path for r in result.records if r.split == "test" and r.is_normal}
    assert tested == {tmp_path / f"fresh/{name}.png" for name in ("0", "1", "copy")}
    assert sum(r.split == "train" for r in result.records) == 9
    with pytest.raises(DataError, match="inside the other"):
        scan_folders(tmp_path / "ok", options=ScanOptions(test_normal=tmp_path / "ok"))
    # Beside a layout that has some of its own.
    images(tmp_path / "set", "train/good/0.png", "test/good/0.png")
    result = scan_images(tmp_path / "set", options=options)
    assert sum(r.split == "test" for r in result.records) == 4


def test_what_network_drives_systems_and_tools_leave_is_no_product(tmp_path):
    root = mvtec(tmp_path / "set")
    good = root / "train/good"
    for i in range(3):
        images(good, f"@eaDir/{i}.png/SYNOPHOTO_THUMB_M.jpg")
    images(good, ".@__thumb/s0.png", ".thumbnails/0.png", "Lightroom Previews.lrdata/0.jpg")
    images(good, ".ipynb_checkpoints/0-checkpoint.png", "$RECYCLE.BIN/0.png", ".Trash-1000/0.png")
    images(good, "lost+found/0.png", ".snapshot/0.png", "SegmentationClass/0.png")
    images(root, "__MACOSX/train/good/0.png", "test/__MACOSX/0.png")
    images(good, "._0.png", "task-3-annotation-2-by-1-tag-cut-0.png", "SYNOFILE_THUMB_M.png")
    mask(good / "0_mask.png")
    mask(good / "1_label.png")
    for name in ("Thumbs.db", "a.heic", "b.HEIC", "notes", "x.d\nnote: all is well"):
        (good / name).write_bytes(b"\0")
    os.mkfifo(good / "pipe.png")
    result = scan_images(root)
    assert len(result.records) == 5
    assert [p.name for p in (r.path for r in result.records) if p.parent == good] == [
        "0.png", "1.png", "2.png",
    ]  # fmt: skip
    counts = result.left_out.counts
    assert counts["thumbnails (@eaDir)"] == 3
    assert counts["files of type .heic"] == 2
    (advice,) = [note for note in result.problems if ".heic" in note]
    assert f"{good / 'a.heic'}; save them as PNG" in advice
    assert counts["masks beside images"] == 2
    assert counts["pipes, sockets or devices"] == 1
    assert "3 thumbnails (@eaDir)" in result.left_out.line()
    for reason in ("thumbnails (__MACOSX)", "hidden files", "of the system (lost+found)",
                   "annotation tools' files (SegmentationClass)", "files without a type",
                   "files of other types",
                   "thumbnails", "annotation tools' files"):  # fmt: skip
        assert reason in counts, reason
    # A name alone makes no mask: the image that it would be of is not there.
    images(good, "gas_mask.png")
    assert len(scan_images(root).records) == 6


def test_a_forgotten_mask_is_reported_and_the_image_counts_without(tmp_path):
    root = mvtec(tmp_path)
    mask(root / "ground_truth/cut/000_mask.png", None)
    result = scan_images(root)
    assert told(result)["test/cut/000.png"] == ("test", "cut", [])
    assert [r.mask for r in result.records if not r.is_normal] == [None]
    (problem,) = result.problems
    assert "000_mask.png is all black" in problem


def test_links_into_a_cache_are_refused_in_one_line_or_followed(tmp_path):
    root = mvtec(tmp_path / "data")
    cache = tmp_path / "cache"
    cache.mkdir()
    for n, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(cache / str(n))
        path.symlink_to(cache / str(n))
    with pytest.raises(DataError, match=r"link\(s\) out of the folder") as error:
        scan_images(root)
    assert "--links anywhere" in str(error.value)
    assert str(error.value).count("not followed") == 1
    (root / "train/again").symlink_to(root)
    followed = scan_images(root, options=ScanOptions(links="anywhere"))
    assert len(followed.records) == 5
    assert told(followed)["test/cut/000.png"] == ("test", "cut", [3])
    (cache / "0").unlink()
    with_gap = scan_images(root, options=ScanOptions(links="anywhere"))
    assert "dvc pull" in "\n".join(with_gap.problems)


def test_the_same_bytes_a_dozen_times_are_one_image_and_that_is_why(tmp_path):
    images(tmp_path, "train/good/0.png")
    for i in range(1, 12):
        (tmp_path / f"train/good/{i}.png").write_bytes((tmp_path / "train/good/0.png").read_bytes())
    result = scan_images(tmp_path)
    assert len(result.records) == 1
    assert result.why_so_few().startswith("11 have the same bytes as another and count once")
