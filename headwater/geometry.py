"""Where an image lies in what the backbone sees: resized, cut, padded."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.errors import ConfigError
from headwater.spec import ExtractorSpec

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
