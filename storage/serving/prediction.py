"""What inference is given and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from heads.judging.calibration import Calibration
from heads.judging.regions import pieces
from headwater.geometry import Frame
from headwater.tiles import Box

Image: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]
#: One image, or the two of a pair, current and history.
Sample: TypeAlias = Image | Sequence[Image]

#: Said where a model whose images have regions of interest of their own is given none.
ALL_LOOKED_AT = (
    "no region of interest is known of this image: all of it was looked at, and the model has "
    "learnt from regions"
)
#: Share of the picture from which on a region's rectangle says little of where it is.
WIDE = 0.25


@dataclass(frozen=True)
class Region:
    """A place that is anomalous, or changed, in the pixels of the picture that was given.

    x counts from the left and y from the top, both from 0, of the picture as it is shown: turned
    as its EXIF orientation says.

    Parameters
    ----------
    x, y, width, height
        The smallest rectangle that holds it.
    area
        Pixels of it.
    peak_x, peak_y, peak
        Where its map is highest, and that value.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    peak_x: int
    peak_y: int
    peak: float

    @property
    def box(self) -> Box:
        """The rectangle, as a part of an image."""
        return Box(self.y, self.x, self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-ready mapping."""
        return asdict(self)


def note_on(regions: Sequence[Region], size: tuple[int, ...], *, lacking: bool = False) -> str:
    """Return what is to be known of an answer; empty for nothing.

    Parameters
    ----------
    regions
        Those that it tells.
    size
        ``(height, width)`` of the picture, pixels.
    lacking
        Whether its region of interest should be known, and is not.

    Examples
    --------
    >>> note_on([Region(0, 0, 60, 50, 900, 3, 9, 1.5)], (100, 100))
    'a region covers 30 % of the picture: its peak tells better where it is'
    """
    said = [ALL_LOOKED_AT] if lacking else []
    most = max((r.width * r.height for r in regions), default=0) / (size[0] * size[1])
    if most > WIDE:
        share = f"{100 * most:.0f} %"
        said.append(f"a region covers {share} of the picture: its peak tells better where it is")
    return "; ".join(said)


def regions_of(
    heat: Any, cut: float, calibration: Calibration | None, frame: Frame
) -> tuple[Region, ...]:
    """Return the regions of a map, the largest first (`heads.judging.regions.pieces`).

    Parameters
    ----------
    heat
        ``[h, w]``; of a masked array what is masked does not count.
    cut, calibration
        A region lies in a part of the map above `cut` that is larger than those of normal images
        (`Calibration.volume_threshold`, or the area of models of before); None takes all.
    frame
        Where the map lies in the picture.
    """
    found = []
    least = calibration and calibration.volume_threshold
    larger = (calibration and calibration.area_threshold) if least is None else least
    for piece in pieces(heat, cut, larger or 0.0, volume=least is not None):
        box, (y, x) = frame.box(piece.rows, piece.columns), frame.point(*piece.at)
        area = max(1, round(piece.area * frame.cell))
        found.append(Region(box.left, box.top, box.width, box.height, area, x, y, piece.peak))
    return tuple(found)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one sample.

    Parameters
    ----------
    score
        Of the whole sample, larger is more anomalous.
    verdict
        ``"anomalous"`` where the score is above the threshold, else ``"normal"``; of a pair
        ``"changed"`` or ``"unchanged"``.
    map
        ``[H, W]`` float32 map of anomalies, or of changes, over the whole image: at the extractor's
        input size, or in the image's own aspect where that was kept (`own_map`). Of a model over
        tiles at the image's size, or smaller (`headwater.tiles.joined_size`).
    threshold
        What the score was compared with.
    pixel_threshold
        Map value that few normal pixels exceed, None where the model has none.
    looked
        ``[H, W]`` bool, which pixels of the map were looked at: not what a crop cut off, nor what
        lies outside of the region of interest, which have the map's lowest value. None for all.
    p_value
        Share of normal images that score as high, this one counted: (1 + how many of n do) /
        (n + 1). None where the model has no out-of-fold scores, or its factors are not its own.
    regions
        Where it is: about the peaks of what is connected above the pixel threshold, where that is
        larger than on normal images (`Calibration.volume_threshold`); the largest first.
    """

    score: float
    verdict: str
    map: NDArray[np.float32]
    threshold: float
    pixel_threshold: float | None = None
    looked: NDArray[np.bool_] | None = None
    p_value: float | None = None
    regions: tuple[Region, ...] = ()
