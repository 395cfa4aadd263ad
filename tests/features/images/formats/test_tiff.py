"""TIFF pages of any depth: planes, tiles, bytes' order, compression, packed bits, turns."""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from features.images.pixels import decode_image, look_at
from headwater.errors import ImageError
from tests.features.imagekit import pixel_bits, tiff

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 65536, (37, 53), dtype=np.uint16)
COLOUR = RNG.integers(0, 65536, (37, 53, 3), dtype=np.uint16)
FLOATS = RNG.normal(size=(37, 53)).astype(np.float32)


def by_hand(rows: bytes, width: int, height: int, bits: int, **more: int) -> bytes:
    """A grey TIFF of one strip whose bytes are `rows`; `more` are other tags, as ``t274``."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height}
    tags |= {273: 0, 279: len(rows)} | {int(k[1:]): v for k, v in more.items()}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4) + rows


def test_containers_and_orders_do_not_matter():
    moved = np.moveaxis(COLOUR, 2, 0)
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    for big, order, tile in itertools.product((False, True), "<>", (None, (16, 16))):
        how = {"bigtiff": big, "byteorder": order, "tile": tile}
        for pixels, expected, more in (
            (GREY, GREY, {}),
            (GREY, GREY, {"compression": "zlib"}),
            (65535 - GREY, GREY, {"photometric": "miniswhite"}),
            (COLOUR, COLOUR, {"photometric": "rgb"}),
            (moved, COLOUR, planes),
            (moved.astype(np.uint8), COLOUR.astype(np.uint8), planes),
            (FLOATS, FLOATS, {}),
        ):
            got = decode_image(tiff(pixels, **how, **more))
            assert got.dtype == expected.dtype
            assert np.array_equal(got, expected), (how, more)


@pytest.mark.parametrize("name", ["tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma", "packbits"])
def test_compressed_with_and_without_differences(name):
    for pixels in (GREY, FLOATS):
        for predictor in (1, 2, 3):
            if predictor > (1 if name == "packbits" else 2 if pixels is GREY else 3):
                continue
            file = io.BytesIO()
            more = {"tiffinfo": {317: predictor}} if predictor > 1 else {}
            Image.fromarray(pixels).save(file, "TIFF", compression=name, **more)
            assert np.array_equal(decode_image(file.getvalue()), pixels), predictor


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_are_shares_of_white(bits):
    values = RNG.integers(0, 1 << bits, (20, 25))
    values[0, :2] = 0, (1 << bits) - 1
    got = decode_image(by_hand(pixel_bits(values, bits).tobytes(), 25, 20, bits))
    assert got.dtype == np.uint16
    assert got[0, :2].tolist() == [0, 65535]
    assert np.array_equal(got, np.rint(values * (65535 / ((1 << bits) - 1))))


def test_turned_as_8_bits_are():
    small = (GREY >> 8).astype(np.uint8)
    for orientation in range(1, 9):
        deep = decode_image(by_hand(GREY.tobytes(), 53, 37, 16, t274=orientation))
        flat = decode_image(by_hand(small.tobytes(), 53, 37, 8, t274=orientation))
        assert np.array_equal(deep >> 8, flat[..., 0]), orientation


def test_alpha_and_channels_that_are_none():
    pixels = np.dstack([COLOUR, RNG.choice(np.array([0, 65535], np.uint16), (37, 53))])
    got = decode_image(tiff(pixels, photometric="rgb", extrasamples=["unassalpha"]))
    assert np.array_equal(got, COLOUR * (pixels[..., 3:] > 0))
    pixels[..., 3] = 0
    decoded = look_at(tiff(pixels, photometric="rgb", extrasamples=["unassalpha"]), "rgbx")
    assert np.array_equal(decoded.pixels, COLOUR)
    assert decoded.notes
    for extra in (2, 5):
        many = np.dstack([COLOUR, *[GREY] * extra])
        for some in (many, many.astype(np.uint8)):
            with pytest.raises(ImageError, match=f"five\\.tif: {3 + extra} channels"):
                decode_image(tiff(some, photometric="rgb", extrasamples=[0] * extra), "five.tif")


def test_what_cannot_be_read_is_said():
    cut = tiff(GREY)[:-2000]
    with pytest.raises(ImageError, match=r"cut\.tif"):
        decode_image(cut, "cut.tif")
    with pytest.raises(ImageError, match="24-bit"):
        decode_image(by_hand(bytes(3 * 24 * 20), 24, 20, 24), "odd.tif")
    with pytest.raises(ImageError, match="too many pixels"):
        decode_image(by_hand(b"", 1 << 20, 1 << 20, 16), "bomb.tif")
