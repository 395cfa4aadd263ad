"""Shapes of made defects: how much of each pixel is covered, in a window of the picture.

All are arrays ``[h, w]`` float32 of 0 to 1, drawn by a generator alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Cover = NDArray[np.float32]


def perlin(
    shape: tuple[int, int], cell: float, rng: np.random.Generator, octaves: int = 3
) -> NDArray[np.float32]:
    """Return gradient noise of mean 0, about -1 to 1.

    Perlin, "An image synthesizer" (1985), with the fade of "Improving noise" (2002); each octave
    has half the cell and half the height of the one before.

    Parameters
    ----------
    shape
        Height and width.
    cell
        Pixels between the points of the coarsest grid.

    Examples
    --------
    >>> field = perlin((40, 60), 12, np.random.default_rng(0))
    >>> field.shape, bool(abs(field).max() < 1.5)
    ((40, 60), True)
    """
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        step = max(2.0, cell / 2**octave)
        turns = rng.uniform(0, 2 * np.pi, [int(n / step) + 2 for n in shape])
        slopes = np.sin(turns).astype(np.float32), np.cos(turns).astype(np.float32)
        at = [np.arange(n, dtype=np.float32) / step for n in shape]
        low = [a.astype(int) for a in at]
        rest = [a - b for a, b in zip(at, low, strict=True)]
        fade = [r**3 * (r * (6 * r - 15) + 10) for r in rest]

        def corner(
            y: int,
            x: int,
            low: list[NDArray[np.int_]] = low,
            rest: list[NDArray[np.float32]] = rest,
            slopes: tuple[NDArray[np.float32], ...] = slopes,
        ) -> NDArray[np.float32]:
            rows, columns = low[0] + y, low[1] + x
            found = slopes[0][rows][:, columns] * (rest[0] - y)[:, None]
            found += slopes[1][rows][:, columns] * (rest[1] - x)[None]
            return found

        across = fade[1][None]
        upper = corner(0, 0) + across * (corner(0, 1) - corner(0, 0))
        lower = corner(1, 0) + across * (corner(1, 1) - corner(1, 0))
        total += (upper + fade[0][:, None] * (lower - upper)) * np.float32(1.4 / 2**octave)
    return total / np.float32(2 - 0.5 ** (octaves - 1))


def soft(mask: Image.Image, pixels: float) -> Cover:
    """Return a drawing with its edge softened over some pixels."""
    drawn = np.asarray(mask, np.float32) / 255
    return np.asarray(gaussian_filter(drawn, pixels), np.float32)


def line(side: int, width: float, rng: np.random.Generator) -> Cover:
    """Return a scratch across a square window: bent, unsteady, thinner at its ends."""
    canvas = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(canvas)
    angle, count = rng.uniform(0, np.pi), 24
    steps = np.linspace(-0.5, 0.5, count)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    # Bent, and as unsteady as a hand or a stone that slips.
    wander = side * (0.16 * rng.uniform(-1, 1) * (4 * steps**2 - 0.5))
    wander += np.cumsum(rng.normal(0, 0.006 * side, count))
    points = side / 2 + steps[:, None] * 0.9 * side * along + wander[:, None] * across
    widths = width * rng.uniform(0.6, 1.2, count) * (1 - (2 * np.abs(steps)) ** 3 * 0.8)
    for one, two, thick in zip(points[:-1], points[1:], widths, strict=False):
        pen.line([tuple(one), tuple(two)], fill=255, width=max(1, round(thick)))
    return soft(canvas, 0.6)


def spot(side: int, rng: np.random.Generator, edge: float = 0.8) -> Cover:
    """Return one place in a square window: round, lengthy, waved along its rim."""
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    parts = [
        rng.uniform(0.4, 1) / n * np.sin(n * turn + rng.uniform(0, 2 * np.pi)) for n in range(2, 8)
    ]
    waves = np.sum(parts, axis=0)
    stretch, angle = rng.uniform(1, 1.7), rng.uniform(0, np.pi)
    reach = (1 + 0.22 * waves) * side * 0.27
    ring = np.stack([np.cos(turn) * stretch, np.sin(turn) / stretch], 1) * reach[:, None]
    return _filled(side, ring, angle, edge)


def corners(side: int, rng: np.random.Generator) -> Cover:
    """Return a piece with straight sides in a square window, from a strip to a square."""
    high = side * rng.uniform(0.12, 0.5)
    wide = side * rng.uniform(0.4, 0.6)
    ring = np.array([[-wide, -high], [wide, -high], [wide, high], [-wide, high]]) / 2
    ring += rng.uniform(-0.06, 0.06, ring.shape) * side
    return _filled(side, ring, rng.uniform(0, np.pi), 0.6)


def islands(side: int, rng: np.random.Generator) -> Cover:
    """Return scattered places in a square window: where noise is high, less towards the rim."""
    field = perlin((side, side), side / rng.uniform(2.5, 5), rng, 4)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    field -= 0.9 * np.hypot(axis[:, None], axis[None]) ** 3
    level = np.quantile(field, rng.uniform(0.72, 0.86))
    steep = max(1.0, side / 12)
    return np.clip((field - level) * steep + 0.5, 0, 1).astype(np.float32)


def _filled(side: int, ring: NDArray[np.float64], angle: float, edge: float) -> Cover:
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", (side, side), 0)
    points = (ring @ turned + side / 2).tolist()
    ImageDraw.Draw(canvas).polygon([(x, y) for x, y in points], fill=255)
    return soft(canvas, edge)
