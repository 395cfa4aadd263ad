"""What is read of one file: every pixel format, orientation, limits, masks."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from features.images.depth import levels
from features.images.pixels import PIXEL_LIMIT, decode_image, read_decoded, read_image
from headwater.errors import ImageError
from tests.features.imagekit import bomb, noise, png16, png_of_bits, save, tiff


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
        # Without a range of values 16 bits are read as 8, as they always were.
        got = levels(read_image(tmp_path / name), None)
        assert got.dtype == np.uint8, name
        assert np.array_equal(got, expected), name
    bits = Image.fromarray(np.eye(16, dtype=bool))
    bits.save(tmp_path / "bits.png")
    assert np.array_equal(
        read_image(tmp_path / "bits.png")[..., 0], np.eye(16, dtype=np.uint8) * 255
    )

    # What is invisible does not matter; an alpha that is 0 everywhere is none.
    half = np.dstack([expected, np.full_like(grey, 255)])
    half[:10, :, 3] = 0
    Image.fromarray(half).save(tmp_path / "half.png")
    seen = read_image(tmp_path / "half.png")
    assert not seen[:10].any()
    assert np.array_equal(seen[10:], expected[10:])
    for name, mode in (("clear.png", None), ("clear.tif", None), ("clear-grey.png", "LA")):
        clear = Image.fromarray(np.dstack([expected, np.zeros_like(grey)]))
        (clear.convert(mode) if mode else clear).save(tmp_path / name)
        decoded = read_decoded(tmp_path / name)
        assert np.abs(decoded.pixels.astype(int) - expected).max() <= 1, name
        assert "alpha is 0 everywhere" in decoded.notes[0], name
    for bad in (grey.astype(np.float32), np.full((20, 24), 70_000, np.int32)):
        Image.fromarray(bad).save(tmp_path / "bad.tif")
        with pytest.raises(ImageError, match=r"bit|floating"):
            levels(read_image(tmp_path / "bad.tif"), None)


def test_more_than_8_bits_are_kept(tmp_path):
    """Grey and colour, whole numbers and floats, with alpha: the values of the file."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 1024, (20, 24), dtype=np.uint16)
    colour = rng.integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    height = rng.normal(3, 1, (20, 24)).astype(np.float32)
    half = rng.choice(np.array([0, 65535], np.uint16), (20, 24, 1))
    for name, data, expected in (
        ("grey16.png", png16(grey), grey),
        ("colour16.png", png16(colour), colour),
        ("alpha16.png", png16(np.dstack([colour, half])), colour * (half > 0)),
        ("clear16.png", png16(np.dstack([colour, half * 0])), colour),
        ("1023.pgm", b"P5\n# 10 bits\n24 20 1023\n" + grey.astype(">u2").tobytes(), None),
        ("colour.ppm", b"P6 24 20 65535\n" + colour.astype(">u2").tobytes(), colour),
        ("height.tif", tiff(height), height),
        ("signed.tif", tiff(grey.astype(np.int16) - 500), grey.astype(np.float32) - 500),
        ("double.tif", tiff(height.astype(np.float64)), height),
        ("counts.tif", tiff(grey.astype(np.uint32) * 1000), grey * np.float32(1000)),
    ):
        (tmp_path / name).write_bytes(data)
        got = read_image(tmp_path / name)
        if expected is None:  # a PNM says what is white
            expected = np.rint(grey / 1023 * 65535).astype(np.uint16)
        assert got.dtype in (np.uint16, np.float32), name
        assert np.array_equal(got, expected), name
    with pytest.raises(ImageError, match="no finite value"):
        decode_image(tiff(np.full((20, 24), np.nan, np.float32)), "empty.tif")


def test_fewer_than_8_bits_are_shares_of_white():
    rng = np.random.default_rng(1)
    for bits in (1, 2, 4):
        values = rng.integers(0, 1 << bits, (20, 24))
        got = decode_image(png_of_bits(values, bits), f"{bits} bits")
        assert np.array_equal(got[..., 0], values * 255 // ((1 << bits) - 1))


def test_palette_and_cmyk(tmp_path):
    pixels = np.kron(noise(2, (5, 6, 3)), np.ones((8, 8, 1), np.uint8))
    indexed = Image.fromarray(pixels).quantize(64)
    indexed.save(tmp_path / "palette.png", transparency=0)
    shown = np.array(indexed.convert("RGB"))
    shown[np.asarray(indexed) == 0] = 0
    assert np.array_equal(read_image(tmp_path / "palette.png"), shown)
    for name in ("cmyk.jpg", "cmyk.tif"):  # Pillow writes Adobe's inverted JPEGs
        Image.fromarray(pixels).convert("CMYK").save(tmp_path / name, quality=95)
        assert np.abs(read_image(tmp_path / name).astype(int) - pixels).mean() < 3, name


def test_of_pages_the_largest_of_frames_the_first(tmp_path):
    pixels, small = noise(3, (40, 48, 3)), Image.fromarray(noise(4, (10, 12, 3)))
    large = Image.fromarray(pixels)
    small.save(tmp_path / "pages.tif", save_all=True, append_images=[large, small])
    decoded = read_decoded(tmp_path / "pages.tif")
    assert np.array_equal(decoded.pixels, pixels)
    assert decoded.notes == ("has 3 pages; page 2, 48x40, is used",)
    other = Image.fromarray(noise(5, (40, 48, 3)))
    for name in ("frames.webp", "frames.png"):
        large.save(tmp_path / name, save_all=True, append_images=[other], lossless=True)
        decoded = read_decoded(tmp_path / name)
        assert np.array_equal(decoded.pixels, pixels), name
        assert decoded.notes == ("has 2 frames; the first is used",), name
    flat, dark = (Image.fromarray(np.full((40, 48, 3), v, np.uint8)) for v in (200, 20))
    flat.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[dark])
    assert read_image(tmp_path / "phone.jpg").min() > 190


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
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="no regular file"):
        read_image(tmp_path / "pipe.png")
    save(tmp_path / "small.png", noise(0, (8, 8, 3)))
    assert read_image(tmp_path / "small.png").shape == (8, 8, 3)
