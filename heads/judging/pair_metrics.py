"""Metrics of change maps over pairs: AnoDFDNet's seven (section IV.B, table I, figure 5), exact.

All are over the pixels of the whole set, not means over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heads.judging.metrics import Metrics, PixelRanking, pixel_counts, rank_pixels
from headwater.errors import ShapeError


def equal_error_rate(ranking: PixelRanking) -> float:
    """Return the rate at which false positives and misses are equally frequent.

    The ROC curve is taken as the straight lines between its vertices, one per distinct score; the
    rate is where it crosses ``FPR = 1 - TPR``.

    Parameters
    ----------
    ranking
        Sorted pixels (`heads.judging.metrics.rank_pixels`) with both classes among them.
    """
    normal, defect = ranking.normal, len(ranking.keys) - ranking.normal
    for fp, tp, _ in ranking.vertices():
        fpr, gap = fp / normal, fp / normal + tp / defect - 1
        above = int(np.searchsorted(gap, 0.0))  # `gap` rises from -1 to 1
        if above == len(gap):
            continue
        if above == 0 or gap[above] == 0:
            return float(fpr[above])
        low, high = gap[above - 1], gap[above]
        share = -low / (high - low)
        return float(fpr[above - 1] + share * (fpr[above] - fpr[above - 1]))
    raise AssertionError("the curve ends at (1, 1)")


def pair_metrics(
    maps: Sequence[ArrayLike] | NDArray[Any],
    masks: Sequence[ArrayLike] | NDArray[Any],
    *,
    threshold: float = 0.5,
) -> Metrics:
    """Return precision, recall, overall accuracy, F1, IoU, AUC and EER of change maps.

    Parameters
    ----------
    maps
        ``[N, H, W]`` scores; sizes may differ from pair to pair. Of a masked array what is masked
        does not count.
    masks
        Truth of the same sizes.
    threshold
        A pixel is called changed where its score is greater. 0.5 for `pair_diff`'s probabilities;
        `pair_flow`'s needs one from normal pairs (`heads.judging.calibration`).

    Returns
    -------
    Metrics
        ``precision, recall, overall_accuracy, f1, iou, auc, eer`` as far as they are defined;
        ``.omitted`` names the others with the reason.

    Raises
    ------
    ShapeError
        Not as many maps as masks, or of other sizes.
    DataError
        A score that is not finite.
    """
    if len(maps) != len(masks):
        raise ShapeError(f"{len(maps)} maps and {len(masks)} masks", expected="one each")
    truth = [np.asarray(m).astype(bool) for m in masks]
    ranking = rank_pixels(list(maps), truth)
    tp, called, bad = pixel_counts(list(maps), truth, threshold)
    total, normal = len(ranking.keys), ranking.normal
    out = Metrics()
    shares = {
        "precision": (tp, called, "no pixel is called changed"),
        "recall": (tp, bad, "no changed pixel in any mask"),
        "overall_accuracy": (total - called - bad + 2 * tp, total, "no pixels"),
        "f1": (2 * tp, called + bad, "no pixel is changed or called so"),
        "iou": (tp, called + bad - tp, "no pixel is changed or called so"),
    }
    for name, (part, whole, reason) in shares.items():
        if whole:
            out[name] = part / whole
        else:
            out.omitted[name] = reason
    if bad and normal:
        out["auc"] = ranking.figures()["pixel_auroc"]
        out["eer"] = equal_error_rate(ranking)
    else:
        out.omitted |= dict.fromkeys(("auc", "eer"), "needs changed and unchanged pixels")
    return out
