"""Where an image lies in what the backbone sees, and its map in the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headwater.errors import ConfigError
from headwater.spec import ExtractorSpec
from headwater.tiles import Box, joined_size

Size = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """How an image becomes an input: resized to `scaled`, of which the input is a window.

    Parameters
    ----------
    scaled
        ``(height, width)`` that the whole image is resized to.
    top, left
        The window's corner in the resized image; negative where the window reaches beyond it.
    size
        ``(height, width)`` of the window, the input.
    """

    scaled: Size
    top: int
    left: int
    size: Size

    @property
    def shown(self) -> tuple[slice, slice]:
        """Rows and columns of the resized image that the input shows."""
        return _within(self.top, self.size[0], self.scaled[0]), _within(
            self.left, self.size[1], self.scaled[1]
        )

    @property
    def filled(self) -> tuple[slice, slice]:
        """Rows and columns of the input that the image fills; the rest is padding."""
        return _within(-self.top, self.scaled[0], self.size[0]), _within(
            -self.left, self.scaled[1], self.size[1]
        )

    @property
    def padded(self) -> bool:
        """Whether there is padding."""
        return any(s.stop - s.start < n for s, n in zip(self.filled, self.size, strict=True))


def _within(start: int, length: int, room: int) -> slice:
    return slice(max(0, start), min(room, start + length))


def place(height: int, width: int, spec: ExtractorSpec) -> Placement:
    """Return where an image of ``height x width`` pixels lies in the input of a specification.

    ``squash`` gives both sides their size, whatever the aspect. ``fit`` keeps the aspect, so that
    the whole image is seen, in the middle of the size; what is left is padding. ``crop`` keeps it,
    too, and covers the size: of the longer side the middle is seen. The centre crop
    (`ExtractorSpec.crop`) is cut from that.

    Raises
    ------
    ConfigError
        A centre crop larger than the size.

    Examples
    --------
    >>> spec = ExtractorSpec("resnet18", "untrained:0", resize=(64, 64), fitting="fit")
    >>> where = place(100, 200, spec)
    >>> where.scaled, where.filled
    ((32, 64), (slice(16, 48, None), slice(0, 64, None)))
    """
    (rows, columns), (inner_rows, inner_columns) = spec.resize, spec.input_size
    if inner_rows > rows or inner_columns > columns:
        raise ConfigError(
            f"crop {inner_rows}x{inner_columns}",
            expected=f"at most the resized image, {rows}x{columns}",
        )
    scaled = spec.resize
    # In whole numbers: an image of the size's aspect is resized to the size exactly.
    if spec.fitting != "squash" and height * columns != width * rows:
        by_height = (height * columns > width * rows) == (spec.fitting == "fit")
        if by_height:
            scaled = rows, _least(round(width * rows / height), columns, spec.fitting)
        else:
            scaled = _least(round(height * columns / width), rows, spec.fitting), columns
    top = (scaled[0] - rows) // 2 + (rows - inner_rows) // 2
    left = (scaled[1] - columns) // 2 + (columns - inner_columns) // 2
    return Placement(scaled, top, left, spec.input_size)


def _least(side: int, room: int, fitting: str) -> int:
    """Return a side that rounding did not carry beyond its room, or leave short of it."""
    return max(1, min(side, room)) if fitting == "fit" else max(side, room)


@dataclass(frozen=True)
class Frame:
    """Where the map of an image lies in the image.

    Parameters
    ----------
    size
        ``(height, width)`` of the image, pixels.
    scaled
        The same of the whole image in pixels of the map.
    top, left
        The map's corner in that.
    """

    size: Size
    scaled: Size
    top: int = 0
    left: int = 0

    @property
    def cell(self) -> float:
        """How many pixels of the image one of the map stands for."""
        (height, width), (rows, columns) = self.size, self.scaled
        return height * width / (rows * columns)

    def box(self, rows: slice, columns: slice) -> Box:
        """Return the pixels of the image that a rectangle of the map covers, even in part."""
        top, bottom = self._covered(rows, 0)
        left, right = self._covered(columns, 1)
        return Box(top, left, bottom - top, right - left)

    def point(self, row: int, column: int) -> tuple[int, int]:
        """Return ``(y, x)``, the pixel of the image at the middle of one of the map."""
        at = (row + self.top + 0.5, column + self.left + 0.5)
        y, x = (int(p * n / m) for p, n, m in zip(at, self.size, self.scaled, strict=True))
        return min(y, self.size[0] - 1), min(x, self.size[1] - 1)

    def on_map(self, box: Box) -> tuple[float, float, float, float]:
        """Return top, left, bottom and right of a rectangle of the image, in pixels of the map."""
        tall, wide = (m / n for m, n in zip(self.scaled, self.size, strict=True))
        return (
            box.top * tall - self.top,
            box.left * wide - self.left,
            (box.top + box.height) * tall - self.top,
            (box.left + box.width) * wide - self.left,
        )

    def _covered(self, part: slice, axis: int) -> tuple[int, int]:
        start, stop = (p + (self.top, self.left)[axis] for p in (part.start, part.stop))
        pixel = self.size[axis] / self.scaled[axis]
        # Whole pixels, but none for what is only rounding.
        first, last = math.floor(start * pixel + 1e-6), math.ceil(stop * pixel - 1e-6)
        first = max(0, min(first, self.size[axis] - 1))
        return first, max(first + 1, min(last, self.size[axis]))


def frame_of(height: int, width: int, spec: ExtractorSpec) -> Frame:
    """Return where the map that a model gives of an image lies in it.

    Parameters
    ----------
    height, width
        Of the image, pixels.
    spec
        How it was seen. Of a squashed one the map is of the input, that is of the centre crop if
        there is one; else it is of the whole image (`features.images.preprocess.own_map`).

    Examples
    --------
    >>> spec = ExtractorSpec("resnet18", "untrained:0", resize=(64, 64), crop=(56, 56))
    >>> frame_of(128, 640, spec).box(slice(0, 1), slice(0, 2))
    Box(top=8, left=40, height=2, width=20)
    """
    if spec.tiles is not None:
        return Frame((height, width), joined_size(height, width))
    where = place(height, width, spec)
    if spec.fitting != "squash":
        return Frame((height, width), where.scaled)
    return Frame((height, width), where.scaled, where.top, where.left)
