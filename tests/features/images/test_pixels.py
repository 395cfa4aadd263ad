"""What is read of one file: every pixel format, orientation, limits, masks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from features.images.pixels import PIXEL_LIMIT, decode_image, read_image, read_mask
from headwater.errors import ImageError
from tests.features.imagekit import bomb, noise, save


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
        got = read_mask(tmp_path / name)
        assert got.dtype == bool
        wrong = (got != truth.astype(bool)).mean()
        assert wrong == 0 if name != "soft.jpg" else wrong < 0.05, name
