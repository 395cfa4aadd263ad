import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.images.folders import inside
from features.images.pixels import PIXEL_LIMIT, decode_image, read_image, read_mask, sha256_of
from features.images.scan import list_images, scan_folders, scan_mvtec
from headwater.errors import DataError, ImageError


def save(path: Path, pixels: np.ndarray, **kw: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kw)
    return path


def noise(seed: int, shape: tuple[int, ...] = (20, 24, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bomb(path: Path, side: int) -> None:
    """A PNG whose header claims side x side pixels; a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    )


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


def test_unchanged_files_are_not_read_again(tiny_set, tmp_path):
    cache = tmp_path / "cache" / "files.db"
    (tiny_set / "train/good/broken.png").write_bytes(b"no image")
    first = scan_mvtec(tiny_set, cache=cache)
    assert first.hashed == 17
    again = scan_mvtec(tiny_set, cache=cache)
    assert again.hashed == 0
    assert again.records == first.records
    assert again.broken == first.broken
    assert len(again.broken) == 1

    changed = tiny_set / "train/good/000.png"
    status = changed.stat()
    save(changed, noise(1, (32, 40, 3)))
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (tiny_set / "test/good/001.png").rename(tiny_set / "test/good/009.png")
    third = scan_mvtec(tiny_set, cache=cache)
    assert third.hashed == 2
    assert scan_mvtec(tiny_set, cache=cache, rehash=True).hashed == 17


def test_a_damaged_cache_is_begun_anew(tiny_set, tmp_path):
    cache = tmp_path / "files.db"
    cache.write_bytes(b"SQLite format 3\0" + b"rubbish" * 999)
    assert scan_mvtec(tiny_set, cache=cache).hashed == 16
    assert scan_mvtec(tiny_set, cache=cache).hashed == 0


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
    assert result.ignored == 1
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


def test_nothing_outside_the_folder_is_read(tiny_set, tmp_path):
    outside = tmp_path / "outside"
    save(outside / "secret.png", noise(5))
    (tiny_set / "train/good/link.png").symlink_to(outside / "secret.png")
    (tiny_set / "test/kind").symlink_to(outside)
    (tiny_set / "train/good/loop").symlink_to(tiny_set)
    (tiny_set / "train/good/near.png").symlink_to(tiny_set / "train/good/000.png")
    result = scan_mvtec(tiny_set)
    assert len(result.records) == 13
    assert len(result.duplicates) == 1  # the link inside is followed
    assert sum("not followed" in p for p in result.problems) == 3
    assert inside(tiny_set, "train/good/000.png") == tiny_set / "train/good/000.png"
    for path in ("../outside/secret.png", "train/good/link.png", "/etc/passwd"):
        with pytest.raises(DataError, match="leads to"):
            inside(tiny_set, path)


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
        save(tmp_path / f"masks/{name}.png", np.zeros((20, 24), np.uint8))
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


def test_list_images(tiny_set):
    one = tiny_set / "train/good/000.png"
    assert list_images(one) == [one]
    assert len(list_images(tiny_set / "test")) == 7
    (tiny_set / "none").mkdir()
    with pytest.raises(DataError, match="no images"):
        list_images(tiny_set / "none")


def test_every_pixel_format_becomes_8_bit_rgb(tmp_path):
    grey = noise(0, (20, 24))
    grey16 = grey.astype(np.uint16) * 257
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    files = {
        "grey.png": Image.fromarray(grey),
        "grey16.png": Image.fromarray(grey16),
        "grey16.tif": Image.fromarray(grey16),
        "grey32.tif": Image.fromarray(grey16.astype(np.int32)),
        "rgb.png": Image.fromarray(expected),
        "palette.png": Image.fromarray(grey).convert("P"),
        "opaque.png": Image.fromarray(np.dstack([expected, np.full_like(grey, 255)])),
        "grey.bmp": Image.fromarray(grey),
        "grey.pgm": Image.fromarray(grey),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        got = read_image(tmp_path / name)
        assert got.dtype == np.uint8, name
        assert np.array_equal(got, expected), name
    bits = Image.fromarray(np.eye(16, dtype=bool))
    bits.save(tmp_path / "bits.png")
    assert np.array_equal(
        read_image(tmp_path / "bits.png")[..., 0], np.eye(16, dtype=np.uint8) * 255
    )

    # What is invisible does not matter.
    clear = np.dstack([expected, np.zeros_like(grey)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert not read_image(tmp_path / "clear.png").any()
    for bad in (grey.astype(np.float32), np.full((20, 24), 70_000, np.int32)):
        Image.fromarray(bad).save(tmp_path / "bad.tif")
        with pytest.raises(ImageError, match=r"bit|floating"):
            read_image(tmp_path / "bad.tif")


def test_exif_orientation_is_applied(tmp_path):
    pixels = noise(7, (10, 30, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    save(tmp_path / "turned.png", pixels, exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


def test_limits(tmp_path):
    side = int(PIXEL_LIMIT**0.5) + 1
    bomb(tmp_path / "bomb.png", side)
    with pytest.raises(ImageError, match="too many pixels"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="upload: not an image"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "upload")
    save(tmp_path / "small.png", noise(0, (8, 8, 3)))
    assert read_image(tmp_path / "small.png").shape == (8, 8, 3)


def test_masks(tmp_path):
    truth = np.zeros((20, 24), np.uint8)
    truth[4:9, 6:12] = 1
    for name, value in (("one.png", 1), ("full.png", 255), ("soft.jpg", 255), ("deep.tif", 300)):
        pixels = (truth.astype(np.uint16) * value).astype(np.uint16 if value > 255 else np.uint8)
        save(tmp_path / name, pixels)
        got = read_mask(tmp_path / name, (20, 24))
        assert got.dtype == bool
        wrong = (got != truth.astype(bool)).mean()
        assert wrong == 0 if name != "soft.jpg" else wrong < 0.05, name
    with pytest.raises(DataError, match="24x20"):
        read_mask(tmp_path / "one.png", (20, 25))


def test_rescan_of_many_files_takes_seconds_and_little_memory(tmp_path):
    import time
    import tracemalloc

    cache, folder = tmp_path / "c.db", tmp_path / "many"
    folder.mkdir()
    data = io.BytesIO()
    Image.fromarray(noise(0, (8, 8, 3))).save(data, "BMP")
    head, body = data.getvalue()[:54], bytearray(data.getvalue()[54:])
    count = 1500
    for i in range(count):
        body[:4] = i.to_bytes(4, "little")
        (folder / f"{i}.bmp").write_bytes(head + body)
    assert scan_folders(folder, cache=cache).hashed == count
    start = time.perf_counter()
    assert scan_folders(folder, cache=cache).hashed == 0
    took = time.perf_counter() - start
    tracemalloc.start()
    result = scan_folders(folder, cache=cache)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(result.records) == count
    assert took * 100_000 / count < 60, "100,000 files would take more than a minute"
    assert peak < 3 * kept
