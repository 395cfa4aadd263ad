"""Values of more than 8 bits: which are black and which white, found once and kept.

A camera of 10 bits fills a sixty-fourth of a 16-bit file, a height map is in millimetres: what is
black and what is white is not in the file. It is found on the normal training images, or given,
and belongs to the extractor (`ExtractorSpec.value_range`). Images of 8 bits say it themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from headwater.errors import ImageError

#: Values that are black and white.
Range = tuple[float, float]

#: Of an image's values so many are below its `Depth.low`, and above its `Depth.high`.
TAIL = 0.001
#: An image that reaches so many usual spans beyond the others has no say in the range.
_BEYOND = 4.0
#: Room that is left on either side for defects darker or brighter than anything normal.
_ROOM = 0.1
#: Values looked at in an image; more only take longer.
_LOOKED_AT = 1 << 20


@dataclass(frozen=True, slots=True)
class Depth:
    """The values of one image of more than 8 bits.

    Parameters
    ----------
    kind
        ``uint16`` or ``float32``.
    low, high
        Between them lie all finite values but one in a thousand on either side.
    """

    kind: str
    low: float
    high: float

    @classmethod
    def of(cls, pixels: np.ndarray) -> Depth | None:
        """Return that of decoded pixels; None for those of 8 bits."""
        if pixels.dtype == np.uint8:
            return None
        values = pixels.reshape(-1)[:: -(-pixels.size // _LOOKED_AT)]
        low, high = np.quantile(values[np.isfinite(values)], (TAIL, 1 - TAIL), method="nearest")
        return cls(str(pixels.dtype), float(low), float(high))


def find_range(depths: Iterable[Depth | None]) -> Range | None:
    """Return what is black and white in a set, from its normal training images.

    The lowest `low` and the highest `high` of the images, and a tenth of what is between them on
    either side. An image whose end lies more than four usual spans (from the median `low` to
    the median `high`) away from the median of that end, a saturated one among thousands say, has
    no say. Counts never begin below 0 nor end above 65535.

    Returns
    -------
    tuple
        Low and high; whole numbers for counts, four digits for measurements. None where no image
        has more than 8 bits.

    Examples
    --------
    >>> find_range([Depth("uint16", 180, 800), Depth("uint16", 200, 820), None])
    (116.0, 884.0)
    >>> find_range([None])
    """
    deep = [d for d in depths if d is not None]
    if not deep:
        return None
    lows, highs = (np.array([getattr(d, end) for d in deep]) for end in ("low", "high"))
    middle = float(np.median(lows)), float(np.median(highs))
    far = _BEYOND * ((middle[1] - middle[0]) or max(abs(middle[0]), 1.0))
    low = float(lows[lows >= middle[0] - far].min())
    high = float(highs[highs <= middle[1] + far].max())
    room = _ROOM * (high - low)
    if all(d.kind == "uint16" for d in deep):
        low, high = math.floor(low - room), math.ceil(high + room)
        # Floats, as a range that is given: an extractor's id knows 116 from 116.0.
        low, high = float(max(0, low)), float(min(65535, high))
        return low, max(high, low + 1.0)
    # To four digits of the span, outwards: finding again gives the same.
    step = 10.0 ** (math.floor(math.log10((high - low) or abs(high) or 1.0)) - 3)
    low, high = math.floor((low - room) / step) * step, math.ceil((high + room) / step) * step
    low, high = float(f"{low:.12g}"), float(f"{high:.12g}")
    return low, high if high > low else low + 1.0


def outside(depth: Depth | None, value_range: Range) -> bool:
    """Return whether an image lies largely outside a range: half of its span, or more, is cut."""
    if depth is None:
        return False
    low, high = value_range
    kept = min(depth.high, high) - max(depth.low, low)
    return kept < (depth.high - depth.low) / 2 or kept < 0


def levels(pixels: np.ndarray, value_range: Range | None) -> np.ndarray:
    """Return decoded pixels between black, 0, and white, 255.

    Parameters
    ----------
    pixels
        ``[H, W, 3]`` uint8, returned as it is: 8 bits know black and white themselves. ``[H, W]``
        or ``[H, W, 3]`` uint16 or float32, as `features.images.pixels.read_image` gives them.
    value_range
        Values that are black and white; what lies beyond is cut, what is not finite is black.
        None is the reading before there were ranges: 16 bits become 8, 65535 being white.

    Returns
    -------
    numpy.ndarray
        ``[H, W, 3]``: float32 of more than 8 bits with a range, otherwise uint8.

    Raises
    ------
    ImageError
        Measurements (float32) without a range.

    Examples
    --------
    >>> deep = np.array([[116, 500, 884]], np.uint16)
    >>> levels(deep, (116, 884))[..., 0].tolist(), levels(deep, None)[..., 0].tolist()
    ([[0.0, 127.5, 255.0]], [[0, 2, 3]])
    """
    if pixels.dtype == np.uint8:
        return pixels
    if value_range is not None:
        low, high = value_range
        scaled = (pixels.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return in_colour(np.nan_to_num(scaled, copy=False, nan=0.0).clip(0, 255))
    if pixels.dtype != np.uint16:
        raise ImageError(
            "floating-point pixels, or more than 16 bits",
            expected="8 or 16 bits a channel where no range of values is known",
            remedy="--range LO:HI says which values are black and white",
        )
    if pixels.ndim == 2:
        return in_colour(((pixels.astype(np.int64) + 128) // 257).astype(np.uint8))
    return (pixels >> 8).astype(np.uint8)


def in_colour(pixels: np.ndarray) -> np.ndarray:
    """Return grey ``[H, W]`` as ``[H, W, 3]``; what has colour as it is."""
    if pixels.ndim == 3:
        return pixels
    # A quarter faster than numpy's repeat.
    rgb = np.empty((*pixels.shape, 3), pixels.dtype)
    for channel in range(3):
        rgb[..., channel] = pixels
    return rgb


def written(value_range: Range) -> str:
    """Return a range as ``--range`` takes it.

    >>> written((0.0, 1023.0)), written((-0.5, 2.25))
    ('0:1023', '-0.5:2.25')
    """
    return ":".join(f"{value:.12g}" for value in value_range)


def about_depths(
    depths: Sequence[Depth | None], value_range: Range | None, what: str = "image"
) -> list[str]:
    """Return sentences on images of another depth than a range is for, or far outside of it.

    Examples
    --------
    >>> about_depths([None, Depth("uint16", 0, 900)], None)
    ['1 image(s) have more than 8 bits and 1 have not: 65535 is white in the former, 255 in others']
    """
    deep = [d for d in depths if d is not None]
    said, flat = [], len(depths) - len(deep)
    if value_range is None and deep:
        rest = f" and {flat} have not: 65535 is white in the former, 255 in others" if flat else ""
        said.append(f"{len(deep)} {what}(s) have more than 8 bits{rest or '; 65535 is white'}")
    if value_range is not None and flat:
        low, high = written(value_range).split(":")
        rest = f"in the other {len(deep)} {low} and {high} are" if deep else f"not {low} and {high}"
        said.append(f"{flat} {what}(s) have 8 bits: 0 is black and 255 white in them, {rest}")
    if value_range is not None and (beyond := sum(outside(d, value_range) for d in deep)):
        said.append(
            f"half or more of the values of {beyond} {what}(s) lie outside of "
            f"{written(value_range)} and are cut"
        )
    return said
