"""The pictures of a page, each a few kilobytes of text that stands in the page itself.

A picture is kept once; the maps of heads and the outline of its mask are transparent layers over
it, which the browser scales and lays together.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flows.pictures.panels import Pixels, fit, heat_layer, outline
from flows.pictures.style import CONTOUR

#: Up to so many pictures on a page: longer side of each, pixels.
_EDGES = ((120, 320), (320, 256), (1000, 200))
_LEAST = 160


def edge_for(count: int) -> int:
    """Return the longer side of pictures, of which there are so many on a page.

    Examples
    --------
    >>> edge_for(38), edge_for(500), edge_for(5000)
    (320, 200, 160)
    """
    return next((edge for most, edge in _EDGES if count <= most), _LEAST)


def picture_address(pixels: Pixels, edge: int) -> str:
    """Return an image ``[H, W, 3]`` uint8, at most `edge` pixels a side, as a ``data:`` address."""
    if max(pixels.shape[:2]) > edge:
        pixels = fit(pixels, edge)
    return _address(pixels, quality=72)


def heat_address(values: NDArray[np.uint8]) -> str | None:
    """Return a small map's colours as a transparent layer; None where there is nothing to show.

    Parameters
    ----------
    values
        Of `flows.training.small_maps.SmallMap`: what is not looked at gets a pale veil.
    """
    part = ((values.astype(np.float32) - 1).clip(0) / 254).astype(np.float32)
    colour, alpha = heat_layer(part)
    made = np.dstack([colour, np.rint(255 * alpha)]).astype(np.uint8)
    made[values == 0] = (255, 255, 255, 170)
    return _address(made, quality=60) if made[..., 3].any() else None


def outline_address(mask: NDArray[np.bool_], height: int, width: int, edge: int) -> str | None:
    """Return the outline of a mask over an image of ``height x width`` as a transparent layer."""
    factor = min(1.0, edge / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    # The largest of what a pixel stands for: thin scratches stay.
    small = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(size, Image.Resampling.BOX)
    line, seam = outline(np.asarray(small) > 0, width=1 + (edge >= 300))
    if not line.any():
        return None
    made = np.zeros((*line.shape, 4), np.uint8)
    made[seam] = (0, 0, 0, 165)
    made[line] = (*CONTOUR, 255)
    return _address(made, lossless=True)


def _address(pixels: NDArray[np.uint8], **how: Any) -> str:
    file = io.BytesIO()
    # More effort takes twice the time for a twentieth of the bytes.
    Image.fromarray(pixels).save(file, "WEBP", method=2, **how)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
