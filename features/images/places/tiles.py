"""The pixels behind a row of features: an image, a tile of it, or a view of either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from features.images.preprocess import make_view
from headwater.errors import ConfigError
from headwater.spec import ExtractorSpec, TileSpec
from headwater.tiles import MOST_ROWS, box_of, part_of, parts


def parts_seen(
    height: int, width: int, tiles: TileSpec | None, region: np.ndarray | None = None
) -> list[int]:
    """Return the parts of an image that are looked at: not those wholly outside of its region.

    Parameters
    ----------
    height, width
        Of the image, pixels.
    tiles
        How it is cut; None for not at all.
    region
        ``[height, width]`` bool, or None for all.
    """
    found = parts(height, width, tiles)
    if region is None:
        return list(found)
    return [n for n in found if region[box_of(height, width, tiles, n).inside].any()]


def cut(image: np.ndarray, part: int, spec: ExtractorSpec) -> np.ndarray:
    """Return a part of an image or a region, ``[H, W]`` or ``[H, W, 3]``; a view, not a copy."""
    return image[box_of(image.shape[0], image.shape[1], spec.tiles, part).inside]


def row_of(image: np.ndarray, sha256: str, row: int, spec: ExtractorSpec) -> np.ndarray:
    """Return what a row of features shows of an image, before it is preprocessed.

    A tile is turned as an image of its own would be, by angles of its own.
    """
    part, view = part_of(row, spec)
    shown = cut(image, part, spec)
    if not view or spec.views is None:
        return shown
    return make_view(shown, name_of(sha256, part), view, spec.views)


def name_of(sha256: str, part: int) -> str:
    """Return what the angles of a part's views are drawn by; of the whole its image's hash."""
    return f"{sha256}#{part}" if part else sha256


def seen_shapes(shapes: Sequence[tuple[int, int]], tiles: TileSpec | None) -> list[tuple[int, int]]:
    """Return ``(height, width)`` of what is brought to one size: the images, or their tiles.

    The tiles of an image count once, and the whole once where that is seen, too.
    """
    if tiles is None:
        return list(shapes)
    found = []
    for height, width in shapes:
        box = box_of(height, width, tiles, 1)
        found += [(box.height, box.width)] + [(height, width)] * tiles.scale
    return found


def about_tiles(
    shapes: Sequence[tuple[int, int]], spec: ExtractorSpec, tiles: TileSpec, views: int = 1
) -> str:
    """Return in a sentence how many tiles images have; `views` are those of each.

    Raises
    ------
    ConfigError
        Where an image has more than the store can number.

    Examples
    --------
    >>> spec = ExtractorSpec("resnet18", "untrained:0", resize=(256, 256))
    >>> about_tiles([(600, 900)] * 2, spec, TileSpec(512, 64))
    '8 tiles of 512 pixels, neighbours share 64: 4 an image, each seen at 256x256'
    """
    counted = Counter(shapes)
    count = {shape: len(parts(*shape, tiles)) - tiles.scale for shape in counted}
    large = max(count, key=lambda shape: count[shape])
    if (count[large] + 2) * views > MOST_ROWS:
        each = f", and {views} views of each" if views > 1 else ""
        raise ConfigError(
            f"an image of {large[0]}x{large[1]} pixels has {count[large]:,} tiles of {tiles.edge} "
            f"pixels{each}",
            expected=f"at most {MOST_ROWS:,} rows an image",
            remedy="a larger --tile, or a smaller --overlap",
        )
    low, high = min(count.values()), max(count.values())
    if high == 1:
        return (
            f"no image is larger than a tile of {tiles.edge} pixels: each is seen whole, as "
            "--tile 0 does without holding images out for the thresholds"
        )
    total = sum(count[shape] * number for shape, number in counted.items())
    return (
        f"{total:,} tiles of {tiles.edge} pixels, neighbours share {tiles.overlap}: {low}"
        + (f" to {high}" if high > low else "")
        + f" an image, each seen at {'x'.join(map(str, spec.input_size))}"
        + (", as is the whole of it" if tiles.scale else "")
    )
