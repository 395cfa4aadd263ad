"""JPEGs of which a part is missing are found; whole ones of any encoder's habits are not."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from features.images.formats.jpeg import what_is_missing
from features.images.pixels import decode_image
from headwater.errors import ImageError

WAYS = [
    {"progressive": progressive, "optimize": optimize, "restart_marker_blocks": restart}
    for progressive, optimize, restart in itertools.product((False, True), (False, True), (0, 5))
]


def jpeg(mode: str = "RGB", **how: object) -> bytes:
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.normal(128, 30, (16, 16, 3)), np.ones((8, 8, 1)))
    pixels = (coarse + rng.normal(0, 6, coarse.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **how)
    return file.getvalue()


def test_whole_ones_of_every_kind():
    for way, quality, mode in itertools.product(WAYS, (10, 75, 100), ("RGB", "L", "CMYK")):
        for subsampling in (0, 2) if mode == "RGB" else (-1,):
            data = jpeg(mode, quality=quality, subsampling=subsampling, **way)
            assert what_is_missing(data) == "", (way, quality, mode)
            # A camera's byte too many, a preview or text behind the end: nothing is missing.
            assert what_is_missing(data[:-2] + b"\0\xff\xd9") == ""
            assert what_is_missing(data + data[:500]) == ""


@pytest.mark.parametrize("share", [0.4, 0.8])
def test_missing_parts_whatever_takes_their_place(share):
    for way in WAYS:
        data = jpeg(quality=90, **way)
        keep = int(len(data) * share)
        gap = len(data) - keep - 2
        for name, rest in (
            ("zeros", bytes(gap) + b"\xff\xd9"),
            ("end", b"\xff\xd9"),
            ("ones", b"\xff" * gap + b"\xff\xd9"),
            ("nothing", b""),
        ):
            with pytest.raises(ImageError, match=r"cut.jpg: .*(missing|scans|truncated)"):
                decode_image(data[:keep] + rest, f"cut.jpg: {name}: {way}")


def test_first_scans_alone_are_not_the_picture():
    data = jpeg(progressive=True, quality=90)
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(starts) > 5
    for start in starts[1:]:
        # Complete scans and the end: libjpeg has nothing to warn of.
        assert "scans" in what_is_missing(data[:start] + b"\xff\xd9")
