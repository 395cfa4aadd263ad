"""Tiles cover an image, follow from its size alone, and leave what had none as it was."""

import itertools

import numpy as np
import pytest

from headwater.errors import ConfigError
from headwater.spec import ExtractorSpec, TileSpec, ViewSpec
from headwater.tiles import box_of, boxes, joined_size, part_of, parts, rows_of

SPEC = ExtractorSpec("resnet18", "untrained:0", resize=(256, 256))


@pytest.mark.parametrize("shape", [(64, 64), (65, 200), (40, 300), (9, 11), (191, 64)])
@pytest.mark.parametrize("overlap", [0, 1, 16, 63])
def test_every_pixel_is_covered_by_whole_tiles_that_share_what_was_asked(shape, overlap):
    tiles, covered = TileSpec(64, overlap), np.zeros(shape, int)
    found = boxes(*shape, tiles)
    for box in found:
        assert (box.height, box.width) == (min(64, shape[0]), min(64, shape[1]))
        assert covered[box.inside].shape == (box.height, box.width)
        covered[box.inside] += 1
    assert covered.min() >= 1
    for tops in ({b.top for b in found}, {b.left for b in found}):
        for one, other in itertools.pairwise(sorted(tops)):
            assert other - one <= 64 - overlap
    assert [box_of(*shape, tiles, part) for part in parts(*shape, tiles)] == found


def test_the_whole_is_part_0_where_it_is_seen_too():
    assert list(parts(100, 100, TileSpec(64))) == [1, 2, 3, 4]
    assert list(parts(100, 100, TileSpec(64, scale=True))) == [0, 1, 2, 3, 4]
    assert box_of(70, 90, TileSpec(64), 0).inside == (slice(0, 70), slice(0, 90))
    with pytest.raises(ConfigError, match="part 5 of an image of 100x100 pixels"):
        box_of(100, 100, TileSpec(64), 5)


def test_rows_of_parts_and_views_never_meet_and_lead_back():
    for views in (None, ViewSpec(count=3)):
        spec = ExtractorSpec("net", "w", tiles=TileSpec(8), views=views)
        numbers = [(row, part) for part in range(50) for row in rows_of(part, spec)]
        assert len({row for row, _ in numbers}) == 50 * (views.count if views else 1)
        assert [part_of(row, spec)[0] for row, _ in numbers] == [part for _, part in numbers]
    plain = ExtractorSpec("net", "w", views=ViewSpec(count=2))
    assert rows_of(0, plain) == [1, 2]  # as stores have them that know no tiles
    assert [part_of(row, plain) for row in (0, 1, 2)] == [(0, 0), (0, 1), (0, 2)]


def test_extractors_without_tiles_keep_their_ids_and_those_with_have_their_own():
    assert SPEC.id == ExtractorSpec.from_json(SPEC.to_json()).id
    assert "tiles" not in SPEC.to_json()
    # As it was before there were tiles.
    assert ExtractorSpec("resnet18", "untrained:0", (), (256, 256), (224, 224)).id == (
        "aa344f100e93296b"
    )
    made = ExtractorSpec("resnet18", "untrained:0", tiles=TileSpec(512, 64))
    assert ExtractorSpec.from_json(made.to_json()) == made
    other = ExtractorSpec("resnet18", "untrained:0", tiles=TileSpec(512, 64, scale=True))
    assert len({SPEC.id, made.id, other.id}) == 3


@pytest.mark.parametrize(("edge", "overlap"), [(0, 0), (64, 64), (64, -1)])
def test_tiles_that_do_not_move_on_are_none(edge, overlap):
    with pytest.raises(ConfigError, match=f"tiles of {edge} pixels"):
        TileSpec(edge, overlap)


def test_joined_maps_keep_the_aspect_and_stay_in_bounds():
    assert joined_size(1024, 100) == (1024, 100)
    assert joined_size(8192, 2048) == (1024, 256)
    assert joined_size(20000, 3) == (1024, 1)
