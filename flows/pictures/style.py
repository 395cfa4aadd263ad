"""One look for all pictures: colours that colour-blind people tell apart, quiet axes, no pyplot.

Only matplotlib's object interface is used and no global setting is changed, so pictures may be
drawn in several threads at once.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from headwater.files import replacing

# Okabe and Ito's palette.
BLUE, ORANGE, VERMILION, GREEN, SKY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#56B4E9"
INK, MUTED, FAINT = "#222222", "#6b6b6b", "#dddddd"
DPI = 120


def heat_colours() -> Colormap:
    """Return the colour map of heat maps: dark to light, even to the eye."""
    return mpl.colormaps["inferno"]


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width x height`` inches, laid out by itself."""
    made = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    made.get_layout_engine().set(w_pad=0.1, h_pad=0.09)  # type: ignore[union-attr, call-arg]
    FigureCanvasAgg(made)
    return made


def bare_figure(width: float, height: float) -> Figure:
    """Return an empty figure whose axes are placed by hand."""
    made = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(made)
    return made


def pixel_board(made: Figure, width: float, height: float) -> Axes:
    """Return axes that cover the figure, in pixels from the upper left."""
    board = made.add_axes((0, 0, 1, 1))
    board.set_axis_off()
    pixel_limits(board, width, height)
    return board


def pixel_limits(board: Axes, width: float, height: float) -> None:
    """Set a board's limits, which pictures put on it have changed."""
    board.set_xlim(0, width)
    board.set_ylim(height, 0)
    board.set_aspect("auto")


def quiet(axes: Axes, title: str = "", x: str = "", y: str = "") -> Axes:
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
    return axes


def save(made: Figure, path: Path) -> Path:
    """Write a figure as PNG under a temporary name and move it into place."""
    with replacing(path) as new:
        made.savefig(new, format="png", dpi=DPI, metadata={"Software": None})
    return path
