"""Where the region of interest of an image is looked for, and what is no image because of it."""

from pathlib import Path

from features.images.folders import Walker
from features.images.places.beside import region_of


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_beside_an_image_or_in_a_folder_that_mirrors(tmp_path):
    image = tmp_path / "images/test/x/30.jpg"
    folder = tmp_path / "roi"
    assert region_of(image, tmp_path / "images") is None
    assert region_of(image, tmp_path / "images", folder) is None
    beside = made(image.with_name("30_roi.png"))
    assert region_of(image, tmp_path / "images") == beside
    assert region_of(image, tmp_path / "images", folder) is None  # one place, not both
    mirrored = made(folder / "test/x/30.png")
    assert region_of(image, tmp_path / "images", folder) == mirrored
    named = made(folder / "test/x/30_roi.png")
    assert region_of(image, tmp_path / "images", folder) == named
    assert region_of(Path("/elsewhere/30.png"), tmp_path / "images", folder) is None
    assert region_of(made(folder / "9.png"), tmp_path / "images", folder) == folder / "9.png"


def test_a_region_is_no_image_and_a_product_of_that_name_is(tmp_path):
    for name in ("a.jpg", "a_roi.png", "b_roi.png", "a_mask.png"):
        made(tmp_path / name)
    walker = Walker(tmp_path)
    assert [Path(p).name for p in walker.files(tmp_path)] == ["a.jpg", "b_roi.png"]
    assert walker.left_out.counts == {
        "regions of interest beside images": 1, "masks beside images": 1
    }  # fmt: skip
