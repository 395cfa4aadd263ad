"""One look for all pictures: colours that colour-blind people tell apart, quiet axes, no pyplot.

Only matplotlib's object interface is used and no global setting is changed, so pictures may be
drawn in several threads at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from headwater.files import replacing
from headwater.text import shown

# Okabe and Ito's palette.
BLUE, ORANGE, VERMILION, GREEN, SKY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#56B4E9"
INK, MUTED, FAINT = "#222222", "#6b6b6b", "#dddddd"
#: Of a mask's outline.
CONTOUR = (0, 255, 200)
DPI = 120


def heat_colours() -> Colormap:
    """Return the colour map of heat maps: dark to light, even to the eye."""
    return mpl.colormaps["inferno"]


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width x height`` inches, laid out by itself."""
    made = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    made.get_layout_engine().set(w_pad=0.1, h_pad=0.09)  # type: ignore[union-attr, call-arg]
    return made


def text_width(text: str) -> int:
    """Return the room, in pixels, that a line of a board's usual text needs."""
    return round(7.2 * len(text))


class Board:
    """A picture laid out by hand, in pixels from the upper left.

    Parameters
    ----------
    width, height
        In pixels.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()

    def text(
        self, x: float, y: float, text: str, size: float = 8.5, colour: str = INK, **how: Any
    ) -> None:
        """Write; `how` is what `matplotlib.text.Text` takes besides."""
        # A name with dollars is no formula.
        self._axes.text(x, y, shown(text), fontsize=size, color=colour, parse_math=False, **how)

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Fill a rectangle."""
        self._axes.add_patch(Rectangle((x, y), width, height, color=colour, lw=0))

    def pixels(self, image: NDArray[np.uint8], x: float, y: float) -> None:
        """Put an image ``[h, w, 3]``, pixel for pixel."""
        extent = (x, x + image.shape[1], y + image.shape[0], y)
        self._axes.imshow(image, extent=extent, interpolation="none")

    def save(self, path: Path) -> Path:
        """Write the board as PNG; see `save`."""
        # Set last: pictures put on it have changed them.
        self._axes.set(xlim=(0, self.width), ylim=(self.height, 0), aspect="auto")
        return save(self._figure, path)


def quiet(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Give axes a title, labels and the shared look."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9, labelcolor=INK)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)


def save(made: Figure, path: Path) -> Path:
    """Write a figure as PNG under a temporary name and move it into place."""
    with replacing(path) as new:
        made.savefig(new, format="png", dpi=DPI, metadata={"Software": None})
    return path
