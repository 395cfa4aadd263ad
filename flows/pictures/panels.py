"""The panels of pictures: images, maps and masks as pixels, each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor
from scipy import ndimage

from flows.pictures.style import BLUE, CONTOUR, ORANGE, heat_colours
from headwater.errors import ShapeError

Pixels = NDArray[np.uint8]


def heat_scale(
    maps: Sequence[ArrayLike], pixel_threshold: float | None = None
) -> tuple[float, float]:
    """Return the map values at which colour begins and is full, one pair for all maps.

    Where the pixel threshold is known, colour begins faintly three quarters of the way from the
    median to it, so that normal images stay grey and a near miss still shows; otherwise above what
    19 of 20 pixels have. It is full at the highest values but for a few, and never nearer to the
    threshold than that is to the median.
    """
    values = np.concatenate([np.asarray(m, np.float32).ravel()[::7] for m in maps])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    median, usual, high = (float(v) for v in np.quantile(values, (0.5, 0.95, 0.998)))
    if pixel_threshold is None:
        low, full = usual, high
    else:
        above = max(pixel_threshold - median, 0.0)
        low, full = pixel_threshold - 0.25 * above, max(high, pixel_threshold + above)
    return low, full if full > low else low + 1.0


def heat_over(image: Pixels, heat: ArrayLike, scale: tuple[float, float]) -> Pixels:
    """Return the image in grey with the map's colours over it, from the scale's low value up.

    Parameters
    ----------
    image
        ``[H, W, 3]`` uint8.
    heat
        ``[h, w]``, resized to the image bilinearly.
    scale
        From `heat_scale`.
    """
    values = np.asarray(heat, np.float32)
    if values.ndim != 2 or image.ndim != 3:
        raise ShapeError(
            f"image {image.shape} with map {values.shape}", expected="[H, W, 3] and [h, w]"
        )
    low, high = scale
    part = np.clip((values - low) / (high - low), 0, 1)
    size = (image.shape[1], image.shape[0])
    part = np.asarray(
        Image.fromarray(part.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    )
    grey = image.astype(np.float32).mean(axis=2, keepdims=True) * 0.8 + 25
    colour, alpha = heat_layer(part)
    alpha = ndimage.gaussian_filter(alpha, 1.2)[..., None]
    return np.clip(grey * (1 - alpha) + colour * alpha, 0, 255).astype(np.uint8)


def heat_layer(
    part: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return colours ``[h, w, 3]``, 0 to 255, and opacities ``[h, w]`` of values from 0 to 1."""
    # The darkest third of the colours would look like shadows in the picture.
    colour = heat_colours()(0.35 + 0.62 * part)[..., :3].astype(np.float32) * 255
    return colour, (0.85 * part**0.6).astype(np.float32)


def contour_over(image: Pixels, mask: NDArray[np.bool_], width: int = 2) -> Pixels:
    """Return the image with the outline of `mask` (any size) drawn around, not over, the defect."""
    size = (image.shape[1], image.shape[0])
    grown = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    line, seam = outline(np.asarray(grown) > 0, width)
    made = image.copy()
    made[seam] = (made[seam] * 0.35).astype(np.uint8)
    made[line] = CONTOUR
    return made


def outline(
    inside: NDArray[np.bool_], width: int = 2
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the line of `width` pixels around what is inside, and a seam around the line."""
    outer = ndimage.binary_dilation(inside, iterations=width + 1)
    line = outer & ~ndimage.binary_dilation(inside)
    # A dark seam on the far side keeps the line visible on light ground.
    return line, ndimage.binary_dilation(outer) & ~outer


def boxes_over(image: Pixels, boxes: Sequence[tuple[float, float, float, float]]) -> Pixels:
    """Return the image with rectangles, ``(top, left, bottom, right)`` each in its pixels.

    They are drawn around what they hold, as far as the image reaches.
    """
    made = image.copy()
    height, width = made.shape[:2]
    for grow, line in ((3, False), (2, True)):
        for top, left, bottom, right in boxes:
            y, x = max(0, math.floor(top) - grow), max(0, math.floor(left) - grow)
            low, far = min(height, math.ceil(bottom) + grow), min(width, math.ceil(right) + grow)
            # A dark seam on the far side keeps the line visible on light ground.
            thick = grow
            ring = np.ones((max(low - y, 1), max(far - x, 1)), bool)
            ring[thick:-thick, thick:-thick] = False
            part = made[y:low, x:far]
            part[ring] = CONTOUR if line else (part[ring] * 0.35).astype(np.uint8)
    return made


def faded(image: Pixels, looked: NDArray[np.bool_] | None) -> Pixels:
    """Return the image, pale where it was not looked at (``[H, W]`` bool, None for everywhere)."""
    if looked is None or looked.all():
        return image
    pale = (image * 0.25 + 255 * 0.72).astype(np.uint8)
    return np.where(looked[..., None], image, pale)


def fit(image: Pixels, size: int, how: Image.Resampling = Image.Resampling.LANCZOS) -> Pixels:
    """Return the image scaled so that its longer side is `size` pixels."""
    factor = size / max(image.shape[:2])
    shape = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(Image.fromarray(image).resize(shape, how))


def map_picture(heat: NDArray[np.float32], scale: tuple[float, float], size: int) -> Pixels:
    """Return a map in the colours of heat maps between the scale's ends, `size` pixels a side."""
    low, high = scale
    part = np.clip((heat - low) / ((high - low) or 1.0), 0, 1)
    return fit((heat_colours()(part)[..., :3] * 255).astype(np.uint8), size)


def truth_picture(called: NDArray[np.bool_], mask: NDArray[np.bool_] | None, size: int) -> Pixels:
    """Return the mask: white where found, orange where missed, blue where falsely called."""
    if mask is None:
        return fit(np.full((*called.shape, 3), 225, np.uint8), size)
    shown = np.full((*mask.shape, 3), 25, np.uint8)
    for where, colour in (
        (mask & called, (255, 255, 255)),
        (mask & ~called, ImageColor.getrgb(ORANGE)),
        (~mask & called, ImageColor.getrgb(BLUE)),
    ):
        shown[where] = colour
    return fit(shown, size, Image.Resampling.NEAREST)


def side_by_side(panels: Sequence[Pixels], gap: int = 5, *, framed: bool = False) -> Pixels:
    """Return panels of one height beside each other on white, with a grey frame where `framed`."""
    white = np.full((panels[0].shape[0], gap, 3), 255, np.uint8)
    parts: list[Pixels] = []
    for panel in panels:
        if framed:
            # White boards would run into the page and into each other.
            panel = np.pad(panel[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0)), constant_values=190)
        parts += [white, panel] if parts else [panel]
    return np.concatenate(parts, axis=1)
