"""The picture of a grid over two factors: one heat map a metric, the chosen points marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from flows.pictures.style import INK, MUTED, figure, heat_colours, quiet, save

Point = tuple[float, float]


def grid_heat_maps(
    maps: Mapping[str, NDArray[np.float64]],
    alphas: NDArray[np.float64],
    betas: NDArray[np.float64],
    marks: Mapping[str, Point],
    title: str,
    path: Path,
) -> Path:
    """Draw ``[alphas, betas]`` maps side by side, each with its own scale and its best point.

    Parameters
    ----------
    maps
        Metric's name to its values, NaN where a point is missing.
    alphas, betas
        Ascending.
    marks
        Points to mark in every map: legend text to ``(alpha, beta)``.
    title
        Over the picture.
    path
        PNG to write.
    """
    made = figure(4.9 * len(maps) + 0.4, 5.6)
    made.suptitle(title, fontsize=10.5, color=INK, x=0.012, ha="left")
    steps = [float(np.diff(v).min()) / 2 if len(v) > 1 else 0.5 for v in (betas, alphas)]
    extent = (
        betas[0] - steps[0], betas[-1] + steps[0], alphas[0] - steps[1], alphas[-1] + steps[1],
    )  # fmt: skip
    shapes = "os^D"
    outline = [withStroke(linewidth=2.5, foreground="black")]
    for axes, (name, values) in zip(
        np.atleast_1d(made.subplots(1, len(maps))), maps.items(), strict=True
    ):
        # (0, 0) makes all features one and the same: its 0.5 must not use up the colours
        low = np.nanquantile(values, 0.05, method="higher")
        shown = axes.imshow(
            values, origin="lower", extent=extent, cmap=heat_colours(), aspect="equal", vmin=low
        )
        bar = made.colorbar(shown, ax=axes, shrink=0.72, pad=0.02, extend="min")
        bar.ax.tick_params(labelsize=8.5, colors=MUTED, labelcolor=INK)
        bar.outline.set_visible(False)  # type: ignore[operator]
        best = np.unravel_index(np.nanargmax(values), values.shape)
        top = float(values[best])
        quiet(axes, f"{name}: {np.nanmin(values):.3f} to {top:.3f}", "β, global", "α, local")
        axes.set_xticks(betas[::2])
        axes.set_yticks(alphas[::2])
        points = {
            **marks,
            f"oracle, best on the test labels: {top:.3f}": (alphas[best[0]], betas[best[1]]),
        }
        for shape, (text, (alpha, beta)) in zip(shapes, points.items(), strict=False):
            axes.plot(
                [beta], [alpha], shape, ms=9, mfc="none", mec="white", mew=1.6, label=text,
                path_effects=outline, ls="none",
            )  # fmt: skip
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8.5, frameon=False,
            labelcolor=INK, handletextpad=0.4,
        )  # fmt: skip
        for handle in axes.get_legend().legend_handles:  # type: ignore[union-attr]
            handle.set_markeredgecolor(INK)  # type: ignore[union-attr]
            handle.set_path_effects([])  # type: ignore[union-attr]
    made.supxlabel(" ", fontsize=5)  # room below the legends
    return save(made, path)
