"""Pictures with images in them: the sheet of maps that a training leaves, and one prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.pictures.panels import (
    Pixels,
    boxes_over,
    contour_over,
    fit,
    heat_over,
    heat_scale,
    map_picture,
    side_by_side,
    truth_picture,
)
from flows.pictures.style import BLUE, GREEN, MUTED, VERMILION, Board, text_width
from headwater.errors import DataError
from headwater.samples import IMAGE, PAIR, SampleKind


@dataclass(frozen=True)
class Cell:
    """One sample of a sheet.

    Parameters
    ----------
    images
        ``[H, W, 3]`` uint8: one, or current and history of one size.
    heat
        ``[h, w]`` map of the whole image, of a pair at its images' size.
    caption
        What the sample is called.
    said
        What is told of it, on the right.
    mask
        ``[h, w]`` bool, true where defective or changed, or None where that is not known.
    mistaken
        Whether the model is wrong about the sample as a whole; None where that is not known.
    """

    images: tuple[Pixels, ...]
    heat: NDArray[np.float32]
    caption: str
    said: str
    mask: NDArray[np.bool_] | None = None
    mistaken: bool | None = None


def outcome(flagged: bool, defective: bool | None) -> str:
    """Return ``missed``, ``false alarm``, ``found`` or ``passed``; without truth the verdict."""
    if defective is None:
        return IMAGE.verdicts[flagged]
    return (("passed", "false alarm"), ("missed", "found"))[defective][flagged]


@dataclass(frozen=True)
class _Layout:
    """How a sheet is laid out: ``(most cells, columns, pixels of a panel)``, in this order."""

    columns: tuple[tuple[int, int, int], ...]
    below: int
    foot: int
    unknown: str


_LAYOUTS = {
    IMAGE: _Layout(((3, 1, 200), (12, 2, 200), (24, 3, 170)), below=8, foot=40, unknown=BLUE),
    PAIR: _Layout(((4, 1, 170), (24, 2, 170)), below=0, foot=44, unknown=MUTED),
}


def map_sheet(
    kind: SampleKind,
    cells: Sequence[Cell],
    path: Path,
    title: str,
    *,
    threshold: float,
    cut: float,
    probabilities: bool = False,
) -> Path:
    """Draw a sheet of samples in the order given: worst mistakes first, if they are given so.

    An image is shown as input | mask outline | heat map, a pair as current | history | change map |
    mask.

    Parameters
    ----------
    kind
        Of the samples.
    cells
        1 to 24 samples.
    path
        PNG to write.
    title
        Above it.
    threshold
        A sample is called anomalous, or changed, where its score is greater.
    cut
        The same for a pixel and its map value; colour begins near it, see `heat_scale`.
    probabilities
        Whether map values are: then colours go from 0 to 1.

    Raises
    ------
    DataError
        For no or too many samples.
    """
    if not 1 <= len(cells) <= 24:
        raise DataError(f"a sheet of {len(cells)} {kind.name}s", expected="1 to 24")
    layout = _LAYOUTS[kind]
    columns, size = next(x[1:] for x in layout.columns if len(cells) <= x[0])
    scale = (0.0, 1.0) if probabilities else heat_scale([c.heat for c in cells], cut)
    strips = [side_by_side(_panels(kind, c, scale, size, cut), framed=kind.paired) for c in cells]
    # Strips of narrow images still need room for what is said above them.
    tall, wide = max(s.shape[0] for s in strips), max(260, *(s.shape[1] for s in strips))
    caption, margin, head = 40, 16, 52
    lines, pitch = math.ceil(len(cells) / columns), tall + caption + layout.below
    legend = _legend(kind, threshold, cut)
    width = max(margin + columns * (wide + margin), margin + text_width(legend))
    board = Board(width, head + lines * pitch + layout.foot)
    board.text(margin, 17, title, 12, va="top", weight="bold")
    for at, (cell, strip) in enumerate(zip(cells, strips, strict=True)):
        x, y = margin + (at % columns) * (wide + margin), head + (at // columns) * pitch
        colour = layout.unknown
        if cell.mistaken is not None:
            colour = VERMILION if cell.mistaken else GREEN
        right = x + wide
        board.text(x, y + 6, _short(cell.caption, int(wide / 5.6 - 26)), va="top")
        weight = "bold" if cell.mistaken and not kind.paired else "normal"
        board.text(right, y + 6, cell.said, colour=colour, va="top", ha="right", weight=weight)
        top = y + caption - 14
        board.pixels(strip, x, top)
        board.bar(x, top - 4, wide, 2.5, colour)
    board.text(margin, board.height - 12, legend, colour=MUTED)
    return board.save(path)


def _panels(
    kind: SampleKind, cell: Cell, scale: tuple[float, float], size: int, cut: float
) -> list[Pixels]:
    images = [fit(image, size) for image in cell.images]
    if kind.paired:
        truth = truth_picture(cell.heat > cut, cell.mask, size)
        return [*images, map_picture(cell.heat, scale, size), truth]
    marked = images[0] if cell.mask is None else contour_over(images[0], cell.mask)
    return [images[0], marked, heat_over(images[0], cell.heat, scale)]


def _legend(kind: SampleKind, threshold: float, cut: float) -> str:
    if kind.paired:
        return (
            f"current | history | change map, called above {cut:.4g}"
            " | mask: white found, orange missed, blue falsely called"
        )
    start = "input | mask | heat map, from near the pixel threshold up"
    return f"{start}; anomalous above {threshold:.4g}"


def _short(text: str, room: int) -> str:
    """Cut in the middle: the end of a file name tells more than its middle."""
    if len(text) <= room or room < 8:
        return text
    keep = (room - 1) // 2
    return f"{text[:keep]}…{text[-keep:]}"


def prediction_overlay(
    kind: SampleKind,
    images: Sequence[Pixels],
    heat: NDArray[np.float32],
    verdict: str,
    text: str,
    path: Path,
    *,
    cut: float | None = None,
    boxes: Sequence[tuple[float, float, float, float]] = (),
    probabilities: bool = False,
) -> Path:
    """Draw one prediction: the sample's images and the map over the first of them.

    Parameters
    ----------
    kind
        Of the sample.
    images
        ``[H, W, 3]`` uint8: one, or current and history of one size.
    heat
        ``[h, w]`` map.
    verdict, text
        What the model says, above the picture.
    path
        PNG to write.
    cut
        Map value above which a pixel is called anomalous or changed; colour begins near it, see
        `heat_scale`. Of pairs the pixels above it are outlined.
    boxes
        ``(top, left, bottom, right)`` of its regions, in pixels of the map.
    probabilities
        Whether map values are: then colour begins shortly below the cut and is full at 1.
    """
    size = int(np.clip(max(images[0].shape[:2]), 256, 640))
    shown = [fit(image, size) for image in images]
    scale = heat_scale([heat], cut) if cut is None or not probabilities else (0.8 * cut, 1.0)
    over = heat_over(shown[0], heat, scale)
    legend = ""
    if kind.paired and cut is not None:
        legend = f"current | history | change map over current, outlined above {cut:.4g}"
        if (changed := heat > cut).any():
            over = contour_over(over, changed, width=1)
    if boxes:
        scaled = np.array(boxes) * np.tile(np.divide(over.shape[:2], heat.shape), 2)
        over = boxes_over(over, [tuple(box) for box in scaled.tolist()])
    both = side_by_side([*shown, over], 5 if kind.paired else 8, framed=kind.paired)
    margin, head, foot = 12, 44, 34 if legend else 12
    width = max(both.shape[1] + 2 * margin, 420, margin + text_width(legend))
    board = Board(width, both.shape[0] + head + foot)
    colour = VERMILION if verdict == kind.verdicts[1] else GREEN
    board.bar(margin, 12, 7, 22, colour)
    board.text(margin + 15, 24, verdict, 12, colour, weight="bold", va="center")
    board.text(board.width - margin, 24, text, 9.5, va="center", ha="right")
    board.pixels(both, (board.width - both.shape[1]) / 2, head)
    board.text(margin, board.height - 12, legend, colour=MUTED)
    return board.save(path)
