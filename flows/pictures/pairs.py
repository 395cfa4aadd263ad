"""Pictures of pairs: current, history and what a model says has changed between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from flows.pictures.maps import Pixels, contour_over, fit, heat_over, heat_scale
from flows.pictures.style import (
    BLUE,
    DPI,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    VERMILION,
    bare_figure,
    heat_colours,
    pixel_board,
    pixel_limits,
    save,
)
from headwater.errors import DataError

_GAP = 5


@dataclass(frozen=True)
class PairCell:
    """One pair of a sheet.

    Parameters
    ----------
    current, history
        ``[h, w, 3]`` uint8 of one size.
    heat
        ``[h, w]`` change map.
    caption
        What the pair is called.
    said
        What is told of it, on the right.
    mask
        ``[h, w]`` bool, true where it changed, or None where that is not known.
    mistaken
        Whether the model is wrong about the pair as a whole; None where that is not known.
    """

    current: Pixels
    history: Pixels
    heat: NDArray[np.float32]
    caption: str
    said: str
    mask: NDArray[np.bool_] | None = None
    mistaken: bool | None = None


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
        (mask & ~called, _rgb(ORANGE)),
        (~mask & called, _rgb(BLUE)),
    ):
        shown[where] = colour
    factor = size / max(shown.shape[:2])
    shape = (round(shown.shape[1] * factor), round(shown.shape[0] * factor))
    return np.asarray(Image.fromarray(shown).resize(shape, Image.Resampling.NEAREST))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _side_by_side(panels: Sequence[Pixels]) -> Pixels:
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    parts: list[Pixels] = []
    for panel in panels:
        # White boards would run into the page and into each other.
        framed = np.pad(panel[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0)), constant_values=190)
        parts += [gap, framed] if parts else [framed]
    return np.concatenate(parts, axis=1)


def change_map_sheet(
    cells: Sequence[PairCell],
    cut: float,
    path: Path,
    title: str = "",
    *,
    probabilities: bool = False,
) -> Path:
    """Draw a sheet of pairs, each as current | history | change map | mask, in the order given.

    Parameters
    ----------
    cells
        1 to 24 pairs; worst mistakes first, if they are given so.
    cut
        A pixel is called changed where its map value is greater.
    path
        PNG to write.
    title
        Above it.
    probabilities
        Whether map values are: then colours go from 0 to 1, else as in `heat_scale`.

    Raises
    ------
    DataError
        For no or too many pairs.
    """
    if not 1 <= len(cells) <= 24:
        raise DataError(f"a sheet of {len(cells)} pairs", expected="1 to 24")
    columns = 1 if len(cells) <= 4 else 2
    lines = math.ceil(len(cells) / columns)
    size = 170
    scale = (0.0, 1.0) if probabilities else heat_scale([c.heat for c in cells], cut)
    strips = [
        _side_by_side(
            [
                fit(c.current, size),
                fit(c.history, size),
                map_picture(c.heat, scale, size),
                truth_picture(c.heat > cut, c.mask, size),
            ]
        )
        for c in cells
    ]
    tall, wide = max(s.shape[0] for s in strips), max(s.shape[1] for s in strips)
    caption, margin, head, foot = 40, 16, 52 if title else 14, 44
    width = margin + columns * (wide + margin)
    height = head + lines * (tall + caption) + foot
    made = bare_figure(width / DPI, height / DPI)
    board = pixel_board(made, width, height)
    if title:
        board.text(margin, 17, title, fontsize=12, color=INK, va="top", weight="bold")
    for at, (cell, picture) in enumerate(zip(cells, strips, strict=True)):
        x = margin + (at % columns) * (wide + margin)
        y = head + (at // columns) * (tall + caption)
        colour = MUTED if cell.mistaken is None else VERMILION if cell.mistaken else GREEN
        right = x + picture.shape[1]
        board.text(x, y + 6, cell.caption, fontsize=8.5, color=INK, va="top")
        board.text(right, y + 6, cell.said, fontsize=8.5, color=colour, va="top", ha="right")
        top = y + caption - 14
        extent = (x, right, top + picture.shape[0], top)
        board.imshow(picture, extent=extent, interpolation="none", zorder=2)
        board.add_patch(Rectangle((x, top - 4), picture.shape[1], 2.5, color=colour, lw=0))
    legend = (
        f"current | history | change map, called above {cut:.4g} | mask: white found, "
        "orange missed, blue falsely called"
    )
    board.text(margin, height - 12, legend, fontsize=8.5, color=MUTED)
    pixel_limits(board, width, height)
    return save(made, path)


def pair_overlay(
    current: Pixels,
    history: Pixels,
    heat: NDArray[np.float32],
    verdict: str,
    text: str,
    cut: float,
    path: Path,
    *,
    probabilities: bool = False,
) -> Path:
    """Draw one prediction: current, history, and the change map over the current image.

    Parameters
    ----------
    current, history
        ``[h, w, 3]`` uint8 of one size.
    heat
        ``[h, w]`` change map.
    verdict, text
        What the model says, above the picture.
    cut
        What is called changed, the pixels above it, is outlined.
    path
        PNG to write.
    probabilities
        Whether map values are: then colour begins shortly below the cut and is full at 1, else as
        in `heat_scale`.
    """
    size = int(np.clip(max(current.shape[:2]), 256, 640))
    scale = (0.8 * cut, 1.0) if probabilities else heat_scale([heat], cut)
    shown, before = fit(current, size), fit(history, size)
    changed = heat > cut
    over = heat_over(shown, heat, scale)
    if changed.any():
        over = contour_over(over, changed, width=1)
    both = _side_by_side([shown, before, over])
    margin, head, foot = 12, 44, 34
    width, height = both.shape[1] + 2 * margin, both.shape[0] + head + foot
    made = bare_figure(width / DPI, height / DPI)
    board = pixel_board(made, width, height)
    colour = VERMILION if verdict == "changed" else GREEN
    board.add_patch(Rectangle((margin, 12), 7, 22, color=colour, lw=0))
    board.text(margin + 15, 24, verdict, fontsize=12, color=colour, weight="bold", va="center")
    board.text(width - margin, 24, text, fontsize=9.5, color=INK, va="center", ha="right")
    extent = (margin, margin + both.shape[1], head + both.shape[0], head)
    board.imshow(both, extent=extent, interpolation="none")
    legend = f"current | history | change map over current, outlined above {cut:.4g}"
    board.text(margin, height - 12, legend, fontsize=8.5, color=MUTED)
    pixel_limits(board, width, height)
    return save(made, path)
