"""The maps of an image's tiles as one map without seams.

Tiles are weighed by a ramp that falls linearly from their middle to nothing at their edges, so that
one passes into the next. What is constant joins to the same constant, and what rises evenly over
the image does so in the joined map: each of its pixels is the mean of points of a tile's map that
lie evenly about its centre.

The joined map has the image's own size, or at most `headwater.tiles.MAP_SIDE` pixels a side: then a
pixel is the mean over what it covers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.geometry import place
from headwater.spec import ExtractorSpec
from headwater.tiles import Box, box_of, joined_size

Map = NDArray[np.float32]
#: A part's number, its map at the net's input size, and what of that is looked at, None for all.
Part = tuple[int, Map, NDArray[np.bool_] | None]
#: Mean and deviation of the maps of tiles, and of whole images.
Standard = tuple[tuple[float, float], tuple[float, float]]

#: Weight of a tile at its very edge: what no other tile covers still has its value from there.
_LEAST = 1e-9


class Canvas:
    """Takes an image's maps one by one and holds no more than their sum.

    Parameters
    ----------
    shape
        ``(height, width)`` of the image, pixels.
    size
        ``(height, width)`` of the joined map.
    """

    def __init__(self, shape: tuple[int, int], size: tuple[int, int]) -> None:
        self.shape, self.size = shape, size
        self._sum, self._seen, self._all = (np.zeros(size) for _ in range(3))

    def add(self, heat: Map, box: Box, looked: NDArray[np.bool_] | None = None) -> None:
        """Lay the map ``[h, w]`` of a tile, of whatever size, over the tile's place."""
        axes = zip(
            (box.top, box.left), (box.height, box.width), heat.shape, self.shape, self.size,
            strict=True,
        )  # fmt: skip
        (rows, down, tall), (columns, across, wide) = (_sampling(*axis) for axis in axes)
        weight = tall[:, None] * wide[None, :]
        seen, values = weight, heat.astype(np.float64)
        if looked is not None and not looked.all():
            # What is not looked at has no say in what is beside it.
            values = np.where(looked, values, 0.0)
            seen = weight * (down @ looked.astype(np.float64) @ across.T)
        self._sum[rows, columns] += weight * (down @ values @ across.T)
        self._seen[rows, columns] += seen
        self._all[rows, columns] += weight

    def joined(self) -> Any:
        """Return the map ``[H, W]`` float32, a masked array where not all of it is looked at.

        A pixel is looked at where at least half of what covers it is; where that is so nowhere,
        those of which most is. The others have the lowest value.
        """
        share = np.divide(self._seen, self._all, out=np.zeros(self.size), where=self._all > 0)
        seen = (share >= min(0.5, float(share.max())) - 1e-9) & (self._seen > 0)
        made = np.divide(self._sum, self._seen, out=np.zeros(self.size), where=seen)
        made = made.astype(np.float32)
        if seen.all():
            return made
        made[~seen] = made[seen].min()
        return np.ma.masked_array(made, ~seen)


def _sampling(
    start: int, length: int, count: int, whole: int, size: int
) -> tuple[slice, NDArray[np.float64], NDArray[np.float64]]:
    """Return how a tile's map becomes a part of the joined map, along one axis.

    Parameters
    ----------
    start, length
        Of the tile, pixels of the image.
    count
        Positions of its map.
    whole, size
        Pixels of the image, and of the joined map.

    Returns
    -------
    tuple
        The joined map's pixels whose centres the tile covers, the matrix ``[n, count]`` of what
        each is made of, and the tile's weight at each, ``[n]``.
    """
    pixel, cell = whole / size, length / count
    first = math.ceil(start / pixel - 0.5)
    last = min(size, math.ceil((start + length) / pixel - 0.5))
    at = (np.arange(first, last) + 0.5) * pixel
    # So many points of a pixel that none of the map's positions in it is passed over.
    points = max(1, math.ceil(pixel / cell))
    offsets = ((np.arange(points) + 0.5) / points - 0.5) * pixel
    place_ = ((at[:, None] + offsets) - start) / cell - 0.5
    place_ = place_.clip(0, count - 1)
    low = np.minimum(place_.astype(np.int64), max(0, count - 2))
    part = place_ - low
    matrix = np.zeros((len(at), count))
    number = np.broadcast_to(np.arange(len(at))[:, None], low.shape)
    np.add.at(matrix, (number, low), (1 - part) / points)
    np.add.at(matrix, (number, np.minimum(low + 1, count - 1)), part / points)
    # Nothing where a point lies beyond the outermost positions, from which there is no way on.
    margin = cell / 2 + abs(offsets[0])
    edge = np.minimum(at - start, start + length - at) - margin
    return slice(first, last), matrix, np.maximum(edge / length, _LEAST)


def join(
    maps: Sequence[Map], places: Sequence[Box], shape: tuple[int, int], size: tuple[int, int]
) -> Any:
    """Return the joined map of tiles' maps, as of `Canvas.joined`.

    Parameters
    ----------
    maps
        ``[h, w]`` each, of the tiles alone, without padding.
    places
        Where each lies in the image.
    shape, size
        ``(height, width)`` of the image and of the joined map.

    Examples
    --------
    >>> from headwater.spec import TileSpec
    >>> from headwater.tiles import boxes
    >>> places = boxes(6, 9, TileSpec(4, 2))
    >>> float(np.ptp(join([np.ones((4, 4), np.float32)] * len(places), places, (6, 9), (6, 9))))
    0.0
    """
    canvas = Canvas(shape, size)
    for heat, box in zip(maps, places, strict=True):
        canvas.add(heat, box)
    return canvas.joined()


def joined_maps(parts: Iterable[Part], height: int, width: int, spec: ExtractorSpec) -> list[Any]:
    """Return an image's map from its tiles, and behind it that of the whole where that is seen.

    Parameters
    ----------
    parts
        What the head gave of each, in the order of their numbers.
    height, width
        Of the image, pixels.
    spec
        How it was cut, and how each part was placed.
    """
    size = joined_size(height, width)
    tiles, whole = (Canvas((height, width), size) for _ in range(2))
    for number, heat, looked in parts:
        box = box_of(height, width, spec.tiles, number)
        filled = place(box.height, box.width, spec).filled
        seen = None if looked is None else looked[filled]
        (tiles if number else whole).add(heat[filled], box, seen)
    both = spec.tiles is not None and spec.tiles.scale
    return [canvas.joined() for canvas in ((tiles, whole) if both else (tiles,))]


def standard_of(maps: Sequence[Sequence[Any]]) -> Standard | None:
    """Return what makes maps of tiles and of whole images comparable, from those of normal images.

    `maps` are of `joined_maps`; None where there are none of whole images.
    """
    if len(maps) == 0 or len(maps[0]) < 2:
        return None
    values = (np.concatenate([np.ma.compressed(one[k]) for one in maps]) for k in (0, 1))
    tiles, whole = (
        (float(x.mean(dtype=np.float64)), max(float(x.std(dtype=np.float64)), 1e-12))
        for x in values
    )
    return tiles, whole


def settled(maps: Sequence[Any], standard: Standard | None) -> Any:
    """Return an image's map: the mean of its standardised maps, or its only one."""
    heat = maps[0]
    if standard is not None:
        both = zip(maps, standard, strict=True)
        heat = sum((x - mean) / deviation for x, (mean, deviation) in both) / 2
        heat = heat.astype(np.float32)
        if isinstance(heat, np.ma.MaskedArray):
            heat.data[heat.mask] = heat.min()
    return heat


def limit_of(limit: float | None, standard: Standard | None) -> float | None:
    """Return what no score of `settled` exceeds, from what no map of the head does."""
    if limit is None or standard is None:
        return limit
    return sum((limit - mean) / deviation for mean, deviation in standard) / 2
