"""Pictures of figures: curves, score histogram, drift.

Each function takes plain numbers, writes one PNG and returns its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from flows.pictures.style import BLUE, FAINT, INK, MUTED, VERMILION, figure, quiet, save
from heads.judging.metrics import auroc, average_precision, precision_recall_curve, roc_curve
from headwater.errors import DataError


def curves(scores: ArrayLike, labels: ArrayLike, threshold: float, path: Path) -> Path:
    """Draw the ROC and the precision-recall curve, with the operating point of the threshold.

    Parameters
    ----------
    scores, labels
        ``[N]`` image scores and whether each image is defective; both classes are needed.
    threshold
        The model's; images above it are called anomalous.
    path
        PNG to write.

    Raises
    ------
    DataError
        Where one class is missing.
    """
    values, truth = np.asarray(scores, float).ravel(), np.asarray(labels).ravel().astype(bool)
    fpr, tpr, _ = roc_curve(values, truth)
    precision, recall, _ = precision_recall_curve(values, truth)
    # The curve proper has no point at recall 0; the picture begins at the first one's height.
    precision, recall = np.append(precision[:1], precision), np.append(0.0, recall)
    flagged = values > threshold
    hit, alarm = flagged[truth].mean(), flagged[~truth].mean()
    made = figure(8.6, 4.1)
    left, right = made.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=FAINT, lw=1.2, ls="--")
    left.fill_between(fpr, tpr, color=BLUE, alpha=0.08, lw=0)
    left.plot(fpr, tpr, color=BLUE, lw=2, drawstyle="default", solid_joinstyle="miter")
    _point(left, alarm, hit, f"threshold: {hit:.0%} found,\n{alarm:.0%} false alarms")
    quiet(
        left, f"ROC, area {auroc(values, truth):.3f}", "false-positive rate", "true-positive rate"
    )
    base = truth.mean()
    right.axhline(base, color=FAINT, lw=1.2, ls="--")
    right.fill_between(recall, precision, color=BLUE, alpha=0.08, lw=0, step="pre")
    right.plot(recall, precision, color=BLUE, lw=2, drawstyle="steps-pre")
    if flagged.any():
        at = truth[flagged].mean()
        _point(right, hit, at, f"threshold: precision {at:.0%},\nrecall {hit:.0%}")
    right.text(0.02, base + 0.012, "share of defective images", fontsize=8, color=MUTED)
    area = average_precision(values, truth)
    quiet(right, f"Precision over recall, average {area:.3f}", "recall", "precision")
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), aspect="equal")
    note = f"{truth.sum()} defective and {(~truth).sum()} normal test images"
    made.supxlabel(note, fontsize=8.5, color=MUTED)
    return save(made, path)


def _point(axes: Axes, x: float, y: float, text: str) -> None:
    """Mark the operating point; the text goes to the side with room for it."""
    axes.plot([x], [y], "o", color=VERMILION, ms=7, mec="white", mew=1.2, zorder=5)
    right, up = x < 0.5, y < 0.5
    axes.annotate(
        text,
        (x, y),
        xytext=(11 if right else -11, 9 if up else -9),
        textcoords="offset points",
        ha="left" if right else "right",
        va="bottom" if up else "top",
        fontsize=8.5,
        color=VERMILION,
    )


def score_histogram(
    held_out: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float,
    path: Path,
    name: str = "held-out normal",
) -> Path:
    """Draw the scores of held-out normals, test normals and anomalies, and the threshold.

    Parameters
    ----------
    held_out
        ``[M]`` scores of the normal images the threshold was set on.
    scores, labels
        ``[N]`` test scores and whether each image is defective; N may be 0.
    threshold
        The model's.
    path
        PNG to write.
    name
        What the first are.

    Raises
    ------
    DataError
        Where there is no score at all.
    """
    test, truth = np.asarray(scores, float).ravel(), np.asarray(labels).ravel().astype(bool)
    groups = [
        (name, np.asarray(held_out, float).ravel(), MUTED),
        ("test normal", test[~truth], BLUE),
        ("test defective", test[truth], VERMILION),
    ]
    groups = [g for g in groups if len(g[1])]
    if not groups:
        raise DataError("no scores to draw", expected="at least one image")
    every = np.concatenate([g[1] for g in groups])
    low, high = _range(every, threshold)
    bins = np.linspace(low, high, 41)
    made = figure(7.6, 1.0 + 1.05 * len(groups))
    rows = np.atleast_1d(made.subplots(len(groups), 1, sharex=True))
    for axes, (name, values, colour) in zip(rows, groups, strict=True):
        axes.hist(np.clip(values, low, high), bins=bins, color=colour, alpha=0.85)
        axes.axvline(threshold, color=INK, lw=1.2, ls="--")
        above = int((values > threshold).sum())
        quiet(axes, y="images")
        text = f"{name}: {above} of {len(values)} above the threshold"
        axes.set_title(text, fontsize=9.5, color=colour, loc="left", pad=3)
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=3)
        axes.set_xlim(low, high)
    outside = int((every > high).sum())
    beyond = f"; {outside} larger score{'s' * (outside > 1)} in the last bar" if outside else ""
    rows[-1].set_xlabel(f"anomaly score (threshold {threshold:.4g}{beyond})", fontsize=9.5)
    return save(made, path)


def _range(values: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return limits that show the bulk and the threshold; a few far outliers do not flatten it."""
    low, high = float(min(values.min(), threshold)), float(max(values.max(), threshold))
    bulk = float(np.quantile(values, 0.98))
    wide = max(bulk, threshold) + 0.6 * (max(bulk, threshold) - low)
    high = min(high, wide)
    pad = 0.02 * (high - low) or max(abs(high), 1.0) * 0.02
    return low - pad, high + pad


def drift(
    distances: Mapping[str, float],
    limits: Mapping[str, float],
    reference: ArrayLike,
    recent: ArrayLike,
    path: Path,
    title: str,
) -> Path:
    """Draw how far recent images are from the reference, layer by layer and image by image.

    Parameters
    ----------
    distances
        Per layer, how far the recent features' statistics are from the reference's.
    limits
        Per layer, the distance beyond which it counts as drift; layers may be absent.
    reference, recent
        ``[N]`` and ``[M]`` nearest-neighbour distances of images to the normal ones.
    path
        PNG to write.
    title
        Above it.
    """
    made = figure(8.6, max(3.2, 1.4 + 0.42 * len(distances)))
    left, right = made.subplots(1, 2)
    names = list(distances)
    for at, name in enumerate(reversed(names)):
        limit = limits.get(name)
        beyond = limit is not None and distances[name] > limit
        left.barh(at, distances[name], 0.6, color=VERMILION if beyond else BLUE)
        if limit is not None:
            left.plot([limit, limit], [at - 0.4, at + 0.4], color=INK, lw=1.6)
    left.set_yticks(range(len(names)), [*reversed(names)])
    quiet(left, "Layers: distance from the reference", "distance (black: limit)")
    left.tick_params(axis="y", length=0)
    groups = [np.asarray(reference, float).ravel(), np.asarray(recent, float).ravel()]
    every = np.concatenate(groups)
    if len(every):
        low, high = _range(every, float(np.median(every)))
        bins = np.linspace(low, high, 31)
        for values, colour, name in zip(
            groups, (MUTED, VERMILION), ("reference", "recent"), strict=True
        ):
            if not len(values):
                continue
            share = np.full(len(values), 1 / len(values))
            label = f"{name} ({len(values)})"
            clipped = np.clip(values, low, high)
            right.hist(clipped, bins, weights=share, color=colour, alpha=0.3, histtype="stepfilled")
            right.hist(
                clipped, bins, weights=share, color=colour, lw=1.6, histtype="step", label=label
            )
        right.legend(
            frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.21), ncols=2
        )
    quiet(right, "Images: distance to the nearest normal", "distance", "share of images")
    made.suptitle(title, fontsize=12, color=INK)
    return save(made, path)
