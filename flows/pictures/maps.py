"""Pictures with images in them: the sheet of heat maps, one prediction, the overview."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

from flows.pictures.style import (
    BLUE,
    DPI,
    FAINT,
    GREEN,
    INK,
    MUTED,
    VERMILION,
    bare_figure,
    heat_colours,
    pixel_board,
    save,
)
from headwater.errors import DataError, ShapeError

Pixels = NDArray[np.uint8]
_CONTOUR = (0, 255, 200)


@dataclass(frozen=True)
class Cell:
    """One image of a sheet.

    Parameters
    ----------
    image
        ``[H, W, 3]`` uint8.
    heat
        ``[h, w]`` anomaly map; drawn over the whole image.
    caption
        What the image is called.
    score
        Image score.
    mask
        ``[h, w]`` bool, true where defective, or None where there is none.
    defective
        The truth; None where unknown.
    flagged
        Whether the model calls it anomalous.
    """

    image: Pixels
    heat: NDArray[np.float32]
    caption: str
    score: float
    mask: NDArray[np.bool_] | None = None
    defective: bool | None = None
    flagged: bool = False

    @property
    def verdict(self) -> str:
        """In a word: ``missed``, ``false alarm``, ``found``, ``passed``; without truth the call."""
        if self.defective is None:
            return "anomalous" if self.flagged else "normal"
        if self.defective:
            return "found" if self.flagged else "missed"
        return "false alarm" if self.flagged else "passed"

    @property
    def mistaken(self) -> bool:
        """Whether the model is wrong about it."""
        return self.defective is not None and self.defective != self.flagged


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
    # The darkest third of the colours would look like shadows in the picture.
    colour = heat_colours()(0.35 + 0.62 * part)[..., :3].astype(np.float32) * 255
    alpha = 0.85 * part[..., None] ** 0.6
    alpha = ndimage.gaussian_filter(alpha, (1.2, 1.2, 0))
    return np.clip(grey * (1 - alpha) + colour * alpha, 0, 255).astype(np.uint8)


def contour_over(image: Pixels, mask: NDArray[np.bool_], width: int = 2) -> Pixels:
    """Return the image with the outline of `mask` (any size) drawn around, not over, the defect."""
    size = (image.shape[1], image.shape[0])
    grown = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    inside = np.asarray(grown) > 0
    outer = ndimage.binary_dilation(inside, iterations=width + 1)
    line = outer & ~ndimage.binary_dilation(inside)
    # A dark seam on the far side keeps the line visible on light ground.
    seam = ndimage.binary_dilation(outer) & ~outer
    made = image.copy()
    made[seam] = (made[seam] * 0.35).astype(np.uint8)
    made[line] = _CONTOUR
    return made


def fit(image: Pixels, size: int) -> Pixels:
    """Return the image scaled so that its longer side is `size` pixels."""
    factor = size / max(image.shape[:2])
    shape = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.LANCZOS))


def strip(cell: Cell, scale: tuple[float, float], size: int) -> Pixels:
    """Return input, input with the mask's outline, heat map over the input, side by side."""
    image = fit(cell.image, size)
    marked = contour_over(image, cell.mask) if cell.mask is not None else image
    panels = [image, marked, heat_over(image, cell.heat, scale)]
    gap = np.full((image.shape[0], 5, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def heat_map_sheet(
    cells: Sequence[Cell],
    threshold: float,
    path: Path,
    title: str = "",
    *,
    pixel_threshold: float | None = None,
) -> Path:
    """Draw a sheet of images, each as input | mask outline | heat map, in the order given.

    Parameters
    ----------
    cells
        1 to 24 images; worst mistakes first, if they are given so.
    threshold
        Image threshold, named in the footer.
    path
        PNG to write.
    title
        Above it.
    pixel_threshold
        Where colour begins; see `heat_scale`.

    Raises
    ------
    DataError
        For no or too many images.
    """
    if not 1 <= len(cells) <= 24:
        raise DataError(f"a sheet of {len(cells)} images", expected="1 to 24")
    columns = 1 if len(cells) <= 3 else 2 if len(cells) <= 12 else 3
    lines = math.ceil(len(cells) / columns)
    size = 200 if columns < 3 else 170
    scale = heat_scale([c.heat for c in cells], pixel_threshold)
    strips = [strip(c, scale, size) for c in cells]
    tall = max(s.shape[0] for s in strips)
    wide = max(s.shape[1] for s in strips)
    caption, margin, head, foot = 40, 16, 52 if title else 14, 40
    width = margin + columns * (wide + margin)
    height = head + lines * (tall + caption + 8) + foot
    made = bare_figure(width / DPI, height / DPI)
    board = pixel_board(made, width, height)
    if title:
        board.text(margin, 17, title, fontsize=12, color=INK, va="top", weight="bold")
    for at, (cell, picture) in enumerate(zip(cells, strips, strict=True)):
        x = margin + (at % columns) * (wide + margin)
        y = head + (at // columns) * (tall + caption + 8)
        colour = VERMILION if cell.mistaken else GREEN if cell.defective is not None else BLUE
        room = int(picture.shape[1] / 5.6 - 26)
        board.text(x, y + 6, _short(cell.caption, room), fontsize=8.5, color=INK, va="top")
        board.text(
            x + picture.shape[1],
            y + 6,
            f"{cell.verdict}, score {cell.score:.4g}",
            fontsize=8.5,
            color=colour,
            va="top",
            ha="right",
            weight="bold" if cell.mistaken else "normal",
        )
        top = y + caption - 14
        board.imshow(
            picture,
            extent=(x, x + picture.shape[1], top + picture.shape[0], top),
            interpolation="none",
            zorder=2,
        )
        board.add_patch(Rectangle((x, top - 4), picture.shape[1], 2.5, color=colour, lw=0))
    start = "near the pixel threshold" if pixel_threshold is not None else "the top 5 % of pixels"
    legend = f"input | mask | heat map, from {start} up; anomalous above {threshold:.4g}"
    board.text(margin, height - 12, legend, fontsize=8.5, color=MUTED)
    board.set_xlim(0, width)
    board.set_ylim(height, 0)
    return save(made, path)


def _short(text: str, room: int) -> str:
    """Cut in the middle: the end of a file name tells more than its middle."""
    if len(text) <= room or room < 8:
        return text
    keep = (room - 1) // 2
    return f"{text[:keep]}…{text[-keep:]}"


def prediction_overlay(
    image: Pixels,
    heat: ArrayLike,
    score: float,
    verdict: str,
    threshold: float,
    path: Path,
    *,
    pixel_threshold: float | None = None,
) -> Path:
    """Draw one prediction: the image beside its heat map, with score and verdict above.

    Parameters
    ----------
    image
        ``[H, W, 3]`` uint8, of any size.
    heat
        ``[h, w]`` anomaly map.
    score, verdict, threshold
        What the model says.
    path
        PNG to write.
    pixel_threshold
        Where colour begins; see `heat_scale`.
    """
    size = int(np.clip(max(image.shape[:2]), 256, 640))
    shown = fit(image, size)
    scale = heat_scale([heat], pixel_threshold)
    gap = np.full((shown.shape[0], 8, 3), 255, np.uint8)
    both = np.concatenate([shown, gap, heat_over(shown, heat, scale)], axis=1)
    margin, head = 12, 44
    width, height = max(both.shape[1] + 2 * margin, 420), both.shape[0] + head + margin
    made = bare_figure(width / DPI, height / DPI)
    board = pixel_board(made, width, height)
    colour = VERMILION if verdict == "anomalous" else GREEN
    board.add_patch(Rectangle((margin, 12), 7, 22, color=colour, lw=0))
    board.text(margin + 15, 24, verdict, fontsize=12, color=colour, weight="bold", va="center")
    text = f"score {score:.4g}, threshold {threshold:.4g}"
    board.text(width - margin, 24, text, fontsize=9.5, color=INK, va="center", ha="right")
    left = (width - both.shape[1]) / 2
    board.imshow(
        both,
        extent=(left, left + both.shape[1], head + both.shape[0], head),
        interpolation="none",
    )
    board.set_xlim(0, width)
    board.set_ylim(height, 0)
    return save(made, path)


def overview(
    cells: Sequence[Cell],
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    title: str = "",
    note: str = "",
    *,
    pixel_threshold: float | None = None,
) -> Path:
    """Draw what a run gave at a glance: a few images with their heat maps over the leaderboard.

    Parameters
    ----------
    cells
        1 to 6 images.
    rows
        As from `storage.registry.registry.Registry.leaderboard`.
    path
        PNG to write.
    title, note
        Above and below.
    pixel_threshold
        Where colour begins; see `heat_scale`.
    """
    from flows.pictures.charts import draw_leaderboard

    if not 1 <= len(cells) <= 6:
        raise DataError(f"an overview of {len(cells)} images", expected="1 to 6")
    size, gap, margin, head = 190, 10, 16, 56 if title else 16
    scale = heat_scale([c.heat for c in cells], pixel_threshold)
    columns = []
    for cell in cells:
        image = fit(cell.image, size)
        marked = contour_over(image, cell.mask) if cell.mask is not None else image
        columns.append((cell, marked, heat_over(image, cell.heat, scale)))
    tall = max(c[1].shape[0] for c in columns)
    width = max(2 * margin + len(columns) * (size + gap) - gap, 640)
    bars = 72 + 66 * len(rows)
    below = 40 if note else 10
    height = head + 2 * tall + 8 + 44 + bars + 30 + below
    made = bare_figure(width / DPI, height / DPI)
    board = pixel_board(made, width, height)
    if title:
        board.text(margin, 18, title, fontsize=13, color=INK, weight="bold", va="top")
    for at, (cell, marked, heat) in enumerate(columns):
        x = margin + at * (size + gap)
        for line, picture in enumerate((marked, heat)):
            y = head + line * (tall + 8)
            board.imshow(
                picture,
                extent=(x, x + picture.shape[1], y + picture.shape[0], y),
                interpolation="none",
            )
        below_pictures = head + 2 * tall + 18
        board.text(x, below_pictures, _short(cell.caption, 26), fontsize=8.5, color=INK, va="top")
        colour = VERMILION if cell.mistaken else GREEN
        verdict = f"{cell.verdict}, score {cell.score:.4g}"
        board.text(x, below_pictures + 17, verdict, fontsize=8.5, color=colour, va="top")
    board.set_xlim(0, width)
    board.set_ylim(height, 0)
    bottom = (below + 62) / height
    axes = made.add_axes((150 / width, bottom, (width - 190) / width, (bars - 52) / height))
    draw_leaderboard(axes, rows)
    board.plot([margin, width - margin], [height - below - bars - 20] * 2, color=FAINT, lw=1)
    if note:
        board.text(margin, height - 12, note, fontsize=8.5, color=MUTED)
    return save(made, path)
