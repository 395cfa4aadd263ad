"""Where the tiles of an image lie, and how rows of features are numbered by them.

All of it follows from the image's size and the specification, so nothing of it is stored. Part 0 of
an image is the whole of it, parts 1, 2, ... are its tiles, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.errors import ConfigError
from headwater.spec import ExtractorSpec, TileSpec

#: Longer side of a joined map, at most: memory stays in bounds however large images are, and of
#: 4,096 pixels it is a step of 4, finer than the strides of nearly all maps that heads read.
MAP_SIDE = 1024
#: Rows that an image can have: their numbers are 16 bits in the store.
MOST_ROWS = 32_767


@dataclass(frozen=True)
class Box:
    """A rectangle of an image, pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def inside(self) -> tuple[slice, slice]:
        """Its rows and columns of the image."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def boxes(height: int, width: int, tiles: TileSpec) -> list[Box]:
    """Return the tiles of an image of ``height x width`` pixels, row by row.

    They begin at every ``edge - overlap`` pixels; the last row and the last column are shifted
    inwards, so that all are whole. Along a side shorter than a tile there is one, of that length.

    Examples
    --------
    >>> [(b.top, b.left) for b in boxes(100, 150, TileSpec(100, 20))]
    [(0, 0), (0, 50)]
    """
    count = len(_starts(height, tiles)) * len(_starts(width, tiles))
    return [box_of(height, width, tiles, part) for part in range(1, count + 1)]


def _starts(length: int, tiles: TileSpec) -> list[int]:
    last = max(0, length - tiles.edge)
    return [*range(0, last, tiles.edge - tiles.overlap), last]


def parts(height: int, width: int, tiles: TileSpec | None) -> range:
    """Return the numbers of an image's parts.

    Examples
    --------
    >>> parts(100, 150, None), parts(100, 150, TileSpec(100, 20, scale=True))
    (range(0, 1), range(0, 3))
    """
    if tiles is None:
        return range(1)
    count = len(_starts(height, tiles)) * len(_starts(width, tiles))
    return range(0 if tiles.scale else 1, count + 1)


def box_of(height: int, width: int, tiles: TileSpec | None, part: int) -> Box:
    """Return where a part of an image of ``height x width`` pixels lies.

    Raises
    ------
    ConfigError
        A part that the image does not have.
    """
    if part == 0:
        return Box(0, 0, height, width)
    last = parts(height, width, tiles)[-1]
    if tiles is None or not 0 < part <= last:
        raise ConfigError(
            f"part {part} of an image of {height}x{width} pixels",
            expected=f"0, the whole, to {last}, the last tile",
        )
    tops, lefts = (_starts(side, tiles) for side in (height, width))
    row, column = divmod(part - 1, len(lefts))
    return Box(tops[row], lefts[column], min(tiles.edge, height), min(tiles.edge, width))


def rows_of(part: int, spec: ExtractorSpec) -> list[int]:
    """Return the numbers under which the store keeps a part: its views', or its own.

    Examples
    --------
    >>> from headwater.spec import ViewSpec
    >>> rows_of(2, ExtractorSpec("net", "w", tiles=TileSpec(64)))
    [2]
    >>> rows_of(2, ExtractorSpec("net", "w", tiles=TileSpec(64), views=ViewSpec(count=3)))
    [7, 8, 9]
    """
    if spec.views is None:
        return [part]
    return [part * spec.views.count + k for k in range(1, spec.views.count + 1)]


def all_rows(height: int, width: int, spec: ExtractorSpec) -> list[int]:
    """Return the numbers of all rows of an image of ``height x width`` pixels."""
    return [row for part in parts(height, width, spec.tiles) for row in rows_of(part, spec)]


def part_of(row: int, spec: ExtractorSpec) -> tuple[int, int]:
    """Return the part that a number of `rows_of` is of, and its view, 0 for none."""
    if spec.views is None:
        return (row, 0) if spec.tiles is not None else (0, row)
    if row == 0:
        return 0, 0
    part, view = divmod(row - 1, spec.views.count)
    return part, view + 1


def joined_size(height: int, width: int) -> tuple[int, int]:
    """Return the size of the joined map of an image: its own, or less by one factor.

    Examples
    --------
    >>> joined_size(300, 400), joined_size(4096, 3072)
    ((300, 400), (1024, 768))
    """
    longer = max(height, width)
    if longer <= MAP_SIDE:
        return height, width
    tall, wide = (max(1, round(side * MAP_SIDE / longer)) for side in (height, width))
    return tall, wide
