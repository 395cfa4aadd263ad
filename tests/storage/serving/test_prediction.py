"""Regions are told in the pixels of the picture that was given, however it was seen."""

from dataclasses import replace

import numpy as np
import pytest

from features.images.masks import scaled
from features.images.preprocess import mask_to_input, own_map
from headwater.geometry import frame_of
from headwater.spec import ExtractorSpec, TileSpec
from headwater.tiles import joined_size
from storage.serving.prediction import regions_of

SPEC = ExtractorSpec("resnet18", "untrained:0", resize=(64, 96))
SEEN = {
    "squash": SPEC,
    "squash, cropped": replace(SPEC, crop=(48, 80)),
    "fit": replace(SPEC, fitting="fit"),
    "crop": replace(SPEC, fitting="crop"),
    "crop, cropped": replace(SPEC, fitting="crop", crop=(48, 80)),
    "tiles": replace(SPEC, tiles=TileSpec(128, 32)),
}


@pytest.mark.parametrize("how", SEEN)
@pytest.mark.parametrize("shape", [(64, 96), (300, 200), (1500, 2100)])
def test_a_place_in_the_picture_comes_back_from_the_map(how, shape):
    spec, (height, width) = SEEN[how], shape
    # In the middle, where no crop cuts, and of no size that divides a map's pixel.
    box = (height // 2 - height // 9, width // 2 - width // 7, height // 5, width // 6)
    marked = np.zeros(shape, bool)
    marked[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    if spec.tiles is not None:
        heat, looked = scaled(marked, joined_size(*shape)).astype(np.float32), None
    else:
        own = mask_to_input(marked, spec).astype(np.float32)
        heat, looked = own_map(own, None, height, width, spec)
    assert looked is None or not looked.all()
    frame = frame_of(height, width, spec)
    (region,) = regions_of(heat, 0.5, None, frame)
    cells = [n / m for n, m in zip(frame.size, frame.scaled, strict=True)]
    got = (region.y, region.x, region.y + region.height, region.x + region.width)
    want = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    for a, b, cell in zip(got, want, cells * 2, strict=True):
        assert abs(a - b) <= cell
    assert region.area == pytest.approx(marked.sum(), rel=2 * cells[0] / box[2] + 0.02)
    assert region.x <= region.peak_x < region.x + region.width
    assert region.y <= region.peak_y < region.y + region.height
    rows, columns = np.flatnonzero(heat.any(1)), np.flatnonzero(heat.any(0))
    # What is drawn lies where the map has it, but for what whole pixels of the picture add.
    there = frame.on_map(
        frame.box(slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    )
    for a, b, cell in zip(
        there, (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1), cells * 2, strict=True
    ):
        assert abs(a - b) <= 1 / cell + 1e-6


def test_regions_stay_inside_the_picture():
    for shape in ((9, 3000), (65, 97), (1, 1)):
        for spec in SEEN.values():
            frame = frame_of(*shape, spec)
            heat = np.ones(frame.scaled, np.float32)
            (region,) = regions_of(heat, 0, None, replace(frame, top=0, left=0))
            assert (region.x, region.y, region.width, region.height) == (0, 0, *shape[::-1])
            assert region.area == shape[0] * shape[1]
