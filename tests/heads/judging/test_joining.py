"""Maps of tiles join to one map without seams."""

import numpy as np
import pytest

from heads.judging.joining import Canvas, join, joined_maps, limit_of, settled, standard_of
from headwater.spec import ExtractorSpec, TileSpec
from headwater.tiles import boxes, joined_size, parts

SHAPES = [(100, 150), (64, 64), (40, 200), (9, 11), (131, 67)]


def ramp(height, width):
    """A map that rises evenly over an image, at the centres of its pixels."""
    y, x = np.mgrid[:height, :width] + 0.5
    return (0.3 * y - 0.7 * x + 5).astype(np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0, 5, 32])
def test_a_constant_map_joins_to_the_constant(shape, overlap):
    places = boxes(*shape, TileSpec(64, overlap))
    maps = [np.full((17, 23), 3.7, np.float32)] * len(places)  # whatever the net's size
    for size in (shape, (33, 50)):
        assert np.allclose(join(maps, places, shape, size), np.float32(3.7), rtol=1e-7, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [2, 13, 40])
def test_a_linear_ramp_joins_to_that_of_the_whole(shape, overlap):
    whole = ramp(*shape)
    places = boxes(*shape, TileSpec(64, overlap))
    got = join([whole[b.inside].astype(np.float32) for b in places], places, shape, shape)
    assert np.abs(got - whole).max() < 1e-6 * np.abs(whole).max()


@pytest.mark.parametrize("factor", [2, 4])
def test_a_joined_map_of_less_than_the_image_is_the_mean_over_its_pixels(factor):
    shape, size = (256, 192), (256 // factor, 192 // factor)
    whole = ramp(*shape)
    want = whole.reshape(size[0], factor, size[1], factor).mean((1, 3))
    for edge, overlap in ((64, 20), (100, 37)):
        places = boxes(*shape, TileSpec(edge, overlap))
        got = join([whole[b.inside].astype(np.float32) for b in places], places, shape, size)
        assert np.abs(got - want).max() < 1e-6 * np.abs(want).max()


def test_two_tiles_pass_into_each_other_without_a_seam():
    places = boxes(64, 100, TileSpec(64, 28))
    got = join([np.full((64, 64), v, np.float32) for v in (0.0, 1.0)], places, (64, 100), (64, 100))
    row = got[30]
    assert (row[:36] == 0).all()
    assert (row[64:] == 1).all()
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() < 2 / 28  # no step where a tile begins or ends
    assert np.allclose(got, row)


def test_what_is_not_looked_at_changes_nothing_beside_it():
    shape, tiles = (100, 100), TileSpec(64, 20)
    region = np.zeros(shape, bool)
    region[:37] = True
    found = []
    for outside in (0.0, 1e6):
        canvas = Canvas(shape, shape)
        for box in boxes(*shape, tiles):
            if region[box.inside].any():
                heat = np.where(region[box.inside], 2.0, outside).astype(np.float32)
                canvas.add(heat, box, region[box.inside])
        found.append(canvas.joined())
    for got in found:
        assert (~got.mask == region).all()
        assert (got.data == 2).all()


def test_padding_is_cut_off_and_the_whole_is_joined_in_by_standardised_maps():
    spec = ExtractorSpec("net", "w", resize=(32, 32), fitting="fit", tiles=TileSpec(50, 0, True))
    height, width = 100, 50  # of the whole half the input is padding
    rows = []
    for part in parts(height, width, spec.tiles):
        heat, looked = np.full((32, 32), 5.0 if part else 1.0, np.float32), np.ones((32, 32), bool)
        if not part:
            looked[:, :8] = looked[:, 24:] = False
            heat[~looked] = 99
        rows.append((part, heat, looked))
    tiles, whole = joined_maps(rows, height, width, spec)
    assert tiles.shape == whole.shape == joined_size(height, width)
    assert np.allclose(tiles, 5)
    assert np.allclose(whole, 1)
    normal = np.random.default_rng(0).normal(size=(4, 2, 20, 20)) * 3 + 4
    standard = standard_of(normal)
    heat = settled([normal[0, 0], normal[0, 1]], standard)
    (m1, s1), (m2, s2) = standard
    want = ((normal[0, 0] - m1) / s1 + (normal[0, 1] - m2) / s2) / 2
    assert np.allclose(heat, want, atol=1e-5)
    assert limit_of(7.0, standard) == pytest.approx(((7 - m1) / s1 + (7 - m2) / s2) / 2)
    assert standard_of(normal[:, :1]) is None
    assert (limit_of(7.0, None), limit_of(None, standard)) == (7.0, None)
