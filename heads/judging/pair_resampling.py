"""How sure the figures of pairs are: `heads.judging.resampling` over pairs instead of images.

A pair is drawn with all its pixels: those of one pair are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heads.judging.metrics import Metrics
from heads.judging.resampling import (
    DRAWS,
    Floats,
    PixelCounts,
    Resamples,
    count_pixels,
    draw,
    resample,
)
from heads.looking import seen_of


def resample_pairs(
    scores: ArrayLike,
    changed: ArrayLike,
    maps: Sequence[ArrayLike],
    masks: Sequence[NDArray[np.bool_]],
    threshold: float,
    *,
    exact: Metrics,
    count: int = DRAWS,
    seed: int = 0,
) -> Resamples | None:
    """Return the figures of `heads.judging.pair_metrics` over draws of the pairs.

    Parameters
    ----------
    scores, changed
        ``[N]`` scores of pairs, and whether anything changed in each.
    maps, masks
        N change maps and their truths.
    threshold
        A pixel is called changed where its score is greater.
    exact
        The figures of the set itself, on which those of curves are centred; others are left out.

    Returns
    -------
    Resamples or None
        None where no mask marks a pixel.
    """
    pixels = count_pixels(maps, masks, threshold)
    if pixels is None:
        return None
    truth = np.asarray(changed, bool)
    strata = np.where(truth, "changed", "good").tolist()
    times = draw(strata, count, seed)
    total = np.array([seen_of(heat).sum() for heat in maps], float)
    once = _figures(pixels, total, np.ones((1, len(total))))
    found = dict(resample(scores, truth, strata, threshold, exact=exact, count=count).figures)
    found = {k: v for k, v in found.items() if k == "image_auroc"}
    for name, drawn in _figures(pixels, total, times).items():
        if name in exact:
            found[name] = np.clip(drawn + (exact[name] - once[name]), 0, 1)
    return Resamples(seed, found)


def _figures(pixels: PixelCounts, total: Floats, times: Floats) -> dict[str, Floats]:
    called, right, bad = times @ pixels.called, times @ pixels.right, times @ pixels.bad
    every = times @ total
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "precision": right / np.maximum(called, 1),
            "recall": right / bad,
            "overall_accuracy": (every - called - bad + 2 * right) / every,
            "f1": 2 * right / (called + bad),
            "iou": right / (called + bad - right),
            "eer": _equal_error(times @ pixels.fp, times @ pixels.tp),
        }
    curves = pixels.figures(times)
    if "pixel_auroc" in curves:
        found["auc"] = curves["pixel_auroc"]
    return {k: v for k, v in found.items() if np.isfinite(v).all()}


def _equal_error(fp: Floats, tp: Floats) -> Floats:
    """Return where each row's curve crosses ``FPR = 1 - TPR``, along straight lines."""
    start = np.zeros((len(fp), 1))
    rate = np.concatenate([start, fp / fp[:, -1:]], 1)
    gap = rate + np.concatenate([start, tp / tp[:, -1:]], 1) - 1
    rows = np.arange(len(gap))
    above = np.maximum((gap >= 0).argmax(1), 1)
    low, high = gap[rows, above - 1], gap[rows, above]
    share = -low / (high - low)
    step = rate[rows, above] - rate[rows, above - 1]
    return np.asarray(rate[rows, above - 1] + share * step)
