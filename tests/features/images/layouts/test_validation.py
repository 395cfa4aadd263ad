"""Known defects are neither trained on nor tested, wherever a layout or a list has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.images.scan import ScanOptions, scan_folders, scan_images
from headwater.errors import DataError
from tests.features.imagekit import noise, save
from tests.features.images.layouts.test_folders import images, mask, mvtec, told


def test_kinds_of_val_are_known_defects_with_the_masks_that_no_test_image_has(tmp_path):
    root = mvtec(tmp_path)  # with test/cut/000 and its mask in column 3
    images(root, "val/cut/000.png", "val/cut/007.png", "val/dent/1.png", "validation/hole/2.png")
    mask(root / "ground_truth/cut/007_mask.png", 7)
    mask(root / "ground_truth/dent/1_mask.png", 5)
    mask(root / "ground_truth/dent/9_mask.png", 5)
    mask(root / "val/ground_truth/dent/1.png", 6)
    result = scan_images(root)
    got = told(result)
    assert {k: v for k, v in got.items() if k.startswith("val")} == {
        "val/cut/000.png": ("val", "cut", []),  # that mask is the test image's
        "val/cut/007.png": ("val", "cut", [7]),
        "val/dent/1.png": ("val", "dent", [6]),  # its own comes first
        "validation/hole/2.png": ("val", "hole", []),
    }
    assert got["test/cut/000.png"] == ("test", "cut", [3])
    (problem,) = result.problems  # two masks of dents that nobody has
    assert problem.startswith(f"2 masks in {root}/ground_truth/dent belong to no image")
    assert "(1_mask.png, 9_mask.png)" in problem
    splits = [r.split for r in result.records]
    assert splits == sorted(splits, key=("train", "val", "test").index)


def test_a_kind_of_val_without_its_images_is_one_line_not_one_a_mask(tmp_path):
    root = mvtec(tmp_path)
    images(root, *(f"val/{kind}/{i}.png" for kind in ("dent", "hole") for i in range(5)))
    for i in range(5):
        mask(root / f"ground_truth/dent/{i}_mask.png")
        mask(root / f"val/ground_truth/hole/{i}/{i}.png")  # a folder of masks an image
    assert scan_images(root).problems == []
    for kind in ("dent", "hole"):
        for image in (root / "val" / kind).iterdir():
            image.unlink()
    hole, dent = scan_images(root).problems
    told = "5 masks in {} belong to no image: there are no such images ({} and 2 more)"
    assert dent == told.format(root / "ground_truth/dent", "0_mask.png, 1_mask.png, 2_mask.png")
    assert hole == told.format(root / "val/ground_truth/hole", "0/0.png, 1/1.png, 2/2.png")
    images(root, *(f"val/dent/{i}.png" for i in range(4)))
    left = root / "ground_truth/dent/4_mask.png"
    assert f"mask {left} belongs to no image: there is no such image" in scan_images(root).problems


@pytest.mark.parametrize("layout", ["mvtec", "mvtec-ad-2", "btad"])
def test_normal_images_of_validation_stay_what_they_were(tmp_path, layout):
    good, test = {"btad": ("ok", "test"), "mvtec-ad-2": ("good", "test_public")}.get(
        layout, ("good", "test")
    )
    images(tmp_path, f"train/{good}/0.png", f"validation/{good}/1.png", f"{test}/{good}/2.png")
    images(tmp_path, "validation/normal/3.png" if good == "ok" else "validation/ok/3.png")
    images(tmp_path, "val/good/4.png", "val/cut/5.png", "validation/6.png")
    result = scan_images(tmp_path, layout)
    got = {k: v[:2] for k, v in told(result).items()}
    assert got.pop("val/cut/5.png") == ("val", "cut")
    assert got.pop(f"validation/{good}/1.png") == ("train", "good")
    three = "validation/normal/3.png" if good == "ok" else "validation/ok/3.png"
    if layout == "btad":  # where ok and normal both are names of the normal ones
        assert got.pop(three) == ("train", "good")
    assert set(got) == {f"train/{good}/0.png", f"{test}/{good}/2.png"}
    assert "normal images in val/good/" in result.left_out.counts
    assert any("val/good: 1 normal images are not read" in note for note in result.notes)
    assert result.left_out.counts["images beside the folders in validation/"] == 1


def test_a_folder_of_known_defects_is_given_beside_any_layout(tmp_path):
    images(tmp_path / "set/ok", *(f"{i}.png" for i in range(6)))
    images(tmp_path / "set/bad", "0.png")
    images(tmp_path / "known", "cut/0.png", "good/1.png")
    mask(tmp_path / "known/cut/0_mask.png", 4)
    images(tmp_path / "flat", "0.png")
    options = ScanOptions(validation=tmp_path / "known")
    for result in (
        scan_images(tmp_path / "set", options=options),
        scan_folders(tmp_path / "set/ok", tmp_path / "set/bad", options=options),
    ):
        (record,) = [r for r in result.records if r.split == "val"]
        assert (record.path, record.kind) == (tmp_path / "known/cut/0.png", "cut")
        assert record.mask == tmp_path / "known/cut/0_mask.png"
        assert sum(r.split == "test" for r in result.records) >= 2
    flat = scan_images(tmp_path / "set", options=ScanOptions(validation=tmp_path / "flat"))
    assert [r.kind for r in flat.records if r.split == "val"] == ["defective"]
    for inside in ("set/bad", "set", "."):
        with pytest.raises(DataError, match="inside the other"):
            scan_images(tmp_path / "set", options=ScanOptions(validation=tmp_path / inside))


@pytest.mark.parametrize("word", ["val", "valid", "Validation"])
def test_defects_that_a_list_names_for_validation(tmp_path, word):
    images(tmp_path, *(f"{i}.png" for i in range(5)))
    (tmp_path / "list.csv").write_text(
        f"path,label,split\n0.png,ok,train\n1.png,ok,{word}\n2.png,cut,{word}\n3.png,cut,train\n"
        "4.png,cut,\n"
    )
    result = scan_images(tmp_path / "list.csv")
    assert {k: v[:2] for k, v in told(result).items()} == {
        "0.png": ("train", "good"),
        "1.png": ("train", "good"),
        "2.png": ("val", "cut"),
        "4.png": ("test", "cut"),
    }


def copy(one: Path, other: Path, saved_again: bool) -> None:
    """The same bytes, or the same pixels in other bytes."""
    other.parent.mkdir(parents=True, exist_ok=True)
    if saved_again:
        Image.open(one).save(other.with_suffix(".bmp"))
    else:
        other.write_bytes(one.read_bytes())


@pytest.mark.parametrize("saved_again", [False, True])
def test_what_stands_in_two_splits_is_tested_before_it_chooses_and_chooses_before_it_teaches(
    tmp_path, saved_again
):
    root = mvtec(tmp_path)
    images(root, "val/cut/1.png", "val/cut/2.png", "val/cut/3.png", "test/dent/9.png")
    copy(root / "test/cut/000.png", root / "val/a/0.png", saved_again)  # sorts before cut
    copy(root / "val/cut/1.png", root / "train/good/9.png", saved_again)
    copy(root / "val/cut/2.png", root / "test/good/8.png", saved_again)
    result = scan_images(root)
    by_split = {s: {r.path.stem for r in result.records if r.split == s} for s in ("train", "val")}
    assert "9" not in by_split["train"]
    assert by_split["val"] == {"1", "3"} if not saved_again else {"1", "3"} <= by_split["val"]
    tested = {(r.path.parent.name, r.path.stem) for r in result.records if r.split == "test"}
    assert ("cut", "000") in tested
    assert len(result.duplicates) == 3
    said = "\n".join(result.problems)
    assert "it is tested and not chosen by" in said
    assert "it counts as defective" in said
    pixels = [Image.open(r.path).tobytes() for r in result.records]
    assert len(set(pixels)) == len(pixels)


def coarse(seed: int) -> np.ndarray:
    return np.kron(noise(seed, (16, 16, 3)), np.ones((4, 4, 1), np.uint8))


def test_a_test_image_that_nearly_shows_a_known_defect_is_named(tmp_path):
    root = mvtec(tmp_path)
    for i in range(10):
        save(root / f"train/good/more{i}.png", coarse(900 + i))
    picture = coarse(77)
    save(root / "val/cut/5.png", picture)
    save(root / "test/cut/5.png", np.clip(picture.astype(int) + 2, 0, 255).astype(np.uint8))
    assert [
        tuple(Path(p).parent.parent.name for p in pair) for pair in scan_images(root).copies
    ] == [("test", "val")]


def test_a_folder_without_known_defects_is_no_wish(tmp_path):
    images(tmp_path / "set", "train/good/0.png", "train/good/1.png")
    (tmp_path / "empty/crack").mkdir(parents=True)
    with pytest.raises(DataError, match="empty: no known defect in it"):
        scan_images(tmp_path / "set", options=ScanOptions(validation=tmp_path / "empty"))
