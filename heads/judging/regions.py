"""Regions of a map: the connected pieces above the pixel threshold, and how large one must be.

Some pixels of normal images are above the pixel threshold, too, and they lie together. A piece is
therefore told only where it is larger than those of normal images are (`area_threshold`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from heads.judging.metrics import EIGHT
from heads.looking import seen_of

Map = NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """A connected piece of a map above a value, in the map's pixels.

    Parameters
    ----------
    rows, columns
        The smallest rectangle that holds it.
    area
        Number of its pixels.
    at
        ``(row, column)`` of its largest value.
    peak
        That value.
    """

    rows: slice
    columns: slice
    area: int
    at: tuple[int, int]
    peak: float


def pieces(heat: ArrayLike, cut: float, larger: float = 0.0) -> list[Piece]:
    """Return the pieces of a map above `cut`, the largest first.

    Pixels that touch at a corner are connected, as in the metrics.

    Parameters
    ----------
    heat
        ``[h, w]``; of a masked array what is masked does not count.
    cut
        Pixels with a greater value belong to a piece.
    larger
        Pieces of more pixels than this alone.

    Examples
    --------
    >>> heat = np.array([[0, 3, 0, 0], [2, 0, 0, 5]], np.float32)
    >>> [(p.rows, p.columns, p.area, p.at, p.peak) for p in pieces(heat, 1)][0]
    (slice(0, 2, None), slice(0, 2, None), 2, (0, 1), 3.0)
    >>> len(pieces(heat, 1)), len(pieces(heat, 1, larger=1))
    (2, 1)
    """
    values = np.ma.getdata(heat)
    numbers, areas = _numbered(heat, cut)
    wanted = np.flatnonzero(areas > larger)
    if not len(wanted):
        return []
    places = ndimage.find_objects(numbers)
    tops = ndimage.maximum_position(values, numbers, wanted + 1)
    found = []
    for i, (top, left) in zip(wanted.tolist(), tops, strict=True):
        rows, columns = places[i]
        at, peak = (int(top), int(left)), float(values[top, left])
        found.append(Piece(rows, columns, int(areas[i]), at, peak))
    return sorted(found, key=lambda p: (-p.area, -p.peak, p.at))


def largest_area(heat: ArrayLike, cut: float) -> int:
    """Return the pixels of the largest of `pieces`; 0 where there is none."""
    _, areas = _numbered(heat, cut)
    return int(areas.max(initial=0))


def _numbered(heat: ArrayLike, cut: float) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return each pixel's piece, counted from 1, 0 for none; and the pieces' areas."""
    numbers, count = ndimage.label((np.ma.getdata(heat) > cut) & seen_of(heat), EIGHT)
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)[1:]


def area_threshold(maps: Iterable[ArrayLike], cut: float, rank: int) -> float:
    """Return the area that the largest pieces of few normal images exceed, in pixels of the maps.

    Parameters
    ----------
    maps
        ``[h, w]`` each, of normal images that the head has not learnt from, one at least.
    cut
        The pixel threshold.
    rank
        Which of the images' largest areas it is, 1 the smallest; more than there are is the last.

    Examples
    --------
    >>> maps = np.zeros((20, 5, 5), np.float32)
    >>> maps[:2, 1, :3] = maps[2:, 0, 0] = 1
    >>> area_threshold(maps, 0.5, 18), area_threshold(maps, 0.5, 21)
    (1.0, 3.0)
    """
    areas = sorted(largest_area(heat, cut) for heat in maps)
    return float(areas[min(rank, len(areas)) - 1])
