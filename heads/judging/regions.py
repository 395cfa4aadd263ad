"""Regions of a map: where it rises above the pixel threshold, and how large that must be.

Some pixels of normal images are above the pixel threshold, too, and they lie together. A connected
part above it is therefore told only where it is larger than those of normal images are: by its
volume, the sum over its pixels of how far they are above the threshold, so that a small part that
is high counts as a wide one that is low (`volume_threshold`). Models of before know an area.

Such a part may be far larger than the defect, up to most of the picture where the threshold is low
for it. What is told of it is therefore what lies above a share of the way from the threshold to its
peak (as a peak's width is taken at a share of its prominence), and each further peak of its own is
told apart. The share was chosen on several sets at once: docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from heads.judging.metrics import EIGHT
from heads.looking import seen_of

Map = NDArray[np.float32]
#: Of the way from the threshold to a peak: above it is the peak's region.
SHARE = 0.3
#: Further peaks of a part that are looked at, the highest.
_MOST_PEAKS = 16
#: Pixels a side in which a peak is the highest.
_APART = 5


@dataclass(frozen=True)
class Piece:
    """The region of a peak of a map, in the map's pixels.

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


def pieces(
    heat: ArrayLike,
    cut: float,
    larger: float = 0.0,
    share: float = SHARE,
    *,
    volume: bool = False,
) -> list[Piece]:
    """Return the regions of a map's peaks, the largest first.

    A part is what is connected above `cut` (pixels that touch at a corner are, as in the metrics).
    The region of a peak is what of its part is connected with it at `share` of the way from `cut`
    to it, or higher. Where something in that is higher, it is what is connected with the peak at
    the share of the way to the highest of it; a peak that is lower than that is part of a slope and
    has none. The highest peak of a part is always told, another (of the `_MOST_PEAKS` next) where
    its region, too, is larger than `larger`. Regions do not overlap.

    Parameters
    ----------
    heat
        ``[h, w]``; of a masked array what is masked does not count.
    cut
        Pixels with a greater value belong to a part.
    larger
        Of parts that are larger than this alone.
    share
        0 to 1; 0 gives the parts themselves.
    volume
        Whether that is a volume; else it is a number of pixels.

    Examples
    --------
    >>> heat = np.array([[0, 3, 2, 0, 0], [2, 0, 0, 0, 5]], np.float32)
    >>> [(p.rows, p.columns, p.area, p.at, p.peak) for p in pieces(heat, 1, share=0)][0]
    (slice(0, 2, None), slice(0, 3, None), 3, (0, 1), 3.0)
    >>> len(pieces(heat, 1)), len(pieces(heat, 1, larger=1))
    (2, 1)
    >>> heat = np.array([[2, 9, 8, 3, 3, 6, 2]], np.float32)
    >>> [(p.columns, p.peak) for p in pieces(heat, 1, share=0.5)]
    [(slice(1, 3, None), 9.0), (slice(5, 6, None), 6.0)]
    """
    values = np.ma.getdata(heat)
    numbers, sizes = _numbered(heat, cut, volume)
    places = ndimage.find_objects(numbers)
    found: list[Piece] = []
    for i in np.flatnonzero(sizes > larger).tolist():
        rows, columns = places[i]
        inside = np.where(numbers[rows, columns] == i + 1, values[rows, columns], -np.inf)
        for region, at in _regions(inside, cut, larger, share, volume):
            high, wide = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
            found.append(
                Piece(
                    slice(rows.start + int(high[0]), rows.start + int(high[-1]) + 1),
                    slice(columns.start + int(wide[0]), columns.start + int(wide[-1]) + 1),
                    int(region.sum()),
                    (rows.start + at[0], columns.start + at[1]),
                    float(inside[at]),
                )
            )
    return sorted(found, key=lambda p: (-p.area, -p.peak, p.at))


def _regions(
    inside: NDArray[np.floating], cut: float, larger: float, share: float, volume: bool
) -> Iterator[tuple[NDArray[np.bool_], tuple[int, int]]]:
    """Yield the regions of a part's peaks and the peaks' places, the highest first.

    `inside` is the part's rectangle of the map, with -inf where the part is not.
    """
    left = np.where(ndimage.maximum_filter(inside, _APART) == inside, inside, -np.inf)
    for looked_at in range(1 + _MOST_PEAKS):
        row, column = divmod(int(left.argmax()), inside.shape[1])
        peak = left[row, column]
        if peak == -np.inf:
            return
        region = _about(inside, (row, column), cut + share * (peak - cut))
        highest = inside[region].max()
        if highest > peak:
            level = cut + share * (highest - cut)
            if peak < level:  # what else is in it lies on the same slope
                left[region] = -np.inf
                continue
            region = _about(inside, (row, column), level)
        left[region] = -np.inf
        own = inside[region]
        size = float((own - cut).sum()) if volume else own.size
        if not looked_at or size > larger:
            yield region, (row, column)


def _about(inside: NDArray[np.floating], at: tuple[int, int], level: float) -> NDArray[np.bool_]:
    """Return what is connected with a place at a level or above it."""
    numbers, _ = ndimage.label((inside >= level) & (inside > -np.inf), EIGHT)
    return np.asarray(numbers == numbers[at])


def largest(heat: ArrayLike, cut: float, *, volume: bool = False) -> float:
    """Return the size of the largest part above `cut`, as `pieces` takes it; 0 where is none."""
    return float(_numbered(heat, cut, volume)[1].max(initial=0))


def _numbered(
    heat: ArrayLike, cut: float, volume: bool
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return each pixel's part, counted from 1, 0 for none; and the parts' sizes."""
    values = np.ma.getdata(heat)
    numbers, count = ndimage.label((values > cut) & seen_of(heat), EIGHT)
    above = (values.ravel() - cut).astype(np.float64) if volume else None
    return numbers, np.bincount(numbers.ravel(), above, minlength=count + 1)[1:].astype(float)


def volume_threshold(maps: Iterable[ArrayLike], cut: float, rank: int) -> float:
    """Return the volume that the largest parts of few normal images exceed.

    In pixels of the maps times their values.

    Parameters
    ----------
    maps
        ``[h, w]`` each, of normal images that the head has not learnt from, one at least.
    cut
        The pixel threshold.
    rank
        Which of the images' largest volumes it is, 1 the smallest; more than there are is the last.

    Examples
    --------
    >>> maps = np.zeros((20, 5, 5), np.float32)
    >>> maps[:2, 1, :3] = maps[2:, 0, 0] = 1
    >>> volume_threshold(maps, 0.5, 18), volume_threshold(maps, 0.5, 21)
    (0.5, 1.5)
    """
    sizes = sorted(largest(heat, cut, volume=True) for heat in maps)
    return sizes[min(rank, len(sizes)) - 1]
