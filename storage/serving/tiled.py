"""An image seen tile by tile: cut, scored in batches, joined; a batch is all that is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.images.places.tiles import cut, parts_seen
from features.images.preprocess import blanked
from heads.judging.joining import Part, Standard, joined_maps, settled
from heads.judging.rules import Rule
from heads.looking import seen_of
from headwater.spec import ExtractorSpec

#: From tiles and the region of each to their maps ``[n, h, w]`` and what of these is looked at.
Score = Callable[
    [Sequence[Any], Sequence[NDArray[np.bool_] | None]],
    tuple[NDArray[np.float32], NDArray[np.bool_] | None],
]


def scored_in_tiles(
    image: NDArray[Any],
    region: NDArray[np.bool_] | None,
    spec: ExtractorSpec,
    standard: Standard | None,
    rule: Rule,
    score: Score,
    batch: int,
) -> tuple[float, NDArray[np.float32], NDArray[np.bool_] | None]:
    """Return an image's score, its map, and which of its pixels were looked at, None for all.

    Parameters
    ----------
    image
        As `features.images.pixels.read_image` gives it.
    region
        ``[H, W]`` bool at the image's size, or None for all.
    spec
        How it is cut, and how tiles are placed.
    standard
        See `heads.judging.joining.standard_of`.
    rule
        Makes the joined map a score.
    score
        Scores a batch.
    batch
        Tiles of one.
    """
    height, width = image.shape[:2]
    image = blanked(image, region, spec)

    def scored() -> Iterator[Part]:
        numbers = parts_seen(height, width, spec.tiles, region)
        for start in range(0, len(numbers), batch):
            some = numbers[start : start + batch]
            regions = [None if region is None else cut(region, n, spec) for n in some]
            maps, looked = score([cut(image, n, spec) for n in some], regions)
            seen = [None] * len(some) if looked is None else looked
            yield from zip(some, maps, seen, strict=True)

    heat = settled(joined_maps(scored(), height, width, spec), standard)
    seen, (value, _) = seen_of(heat), rule.of_map(heat)
    # In the precision in which evaluation keeps scores.
    return float(np.float32(value)), np.ma.getdata(heat), None if seen.all() else seen
