"""Where images lie in what the backbone sees."""

import dataclasses

import pytest

from headwater.errors import ConfigError
from headwater.geometry import place
from headwater.spec import ExtractorSpec, LayerSpec

SPEC = ExtractorSpec("resnet18", "untrained:0", resize=(64, 96))


def placed(fitting, height, width, **more):
    return place(height, width, dataclasses.replace(SPEC, fitting=fitting, **more))


@pytest.mark.parametrize("shape", [(75, 750), (750, 75), (9, 3000), (640, 480), (63, 95)])
def test_the_aspect_is_kept_and_the_size_met(shape):
    fit, crop = placed("fit", *shape), placed("crop", *shape)
    assert fit.scaled[0] == 64 or fit.scaled[1] == 96
    assert fit.scaled[0] <= 64
    assert fit.scaled[1] <= 96
    assert crop.scaled[0] >= 64
    assert crop.scaled[1] >= 96
    assert not crop.padded
    for where in (fit, crop):
        # To half a pixel of the shorter side, but for the one pixel that there must be.
        want = shape[1] / shape[0] * where.scaled[0]
        assert (
            abs(where.scaled[1] - want) <= max(0.5, 0.5 * shape[1] / shape[0]) or 1 in where.scaled
        )
        rows, columns = where.filled
        shown = where.shown
        assert rows.stop - rows.start == shown[0].stop - shown[0].start
        assert columns.stop - columns.start == shown[1].stop - shown[1].start
    # In the middle.
    rows, columns = fit.filled
    assert abs(rows.start - (64 - rows.stop)) <= 1
    assert abs(columns.start - (96 - columns.stop)) <= 1


@pytest.mark.parametrize("shape", [(64, 96), (640, 960), (2, 3), (1001 * 2, 1001 * 3)])
def test_of_the_sizes_own_aspect_all_ways_are_one(shape):
    assert placed("fit", *shape) == placed("crop", *shape) == placed("squash", *shape)


def test_a_centre_crop_is_cut_from_what_was_fitted():
    where = placed("fit", 64, 64, crop=(32, 80))  # 64x64 in the middle of 64x96, then 32x80 of it
    assert (where.top, where.left) == (16, -8)
    assert where.filled == (slice(0, 32), slice(8, 72))
    assert where.shown == (slice(16, 48), slice(0, 64))
    with pytest.raises(ConfigError, match="crop 128x32"):
        placed("fit", 64, 64, crop=(128, 32))


def test_what_came_later_leaves_old_ids_as_they_were():
    # From before there was more than squashing.
    assert SPEC.id == "c5b11a34adc4c6a7"
    assert SPEC.extractor_id((LayerSpec(("layer2",)),)) == "de109ccc660fa6d9"
    assert "fitting" not in SPEC.to_json()
    assert "region" not in SPEC.to_json()
    other = dataclasses.replace(SPEC, fitting="fit", region="ab" * 32)
    assert other.id != SPEC.id
    assert ExtractorSpec.from_json(other.to_json()) == other
