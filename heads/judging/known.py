"""What a few known defects choose: a threshold for a wanted recall, or the cheapest one.

They are no test images: nothing is learnt from them, and no figure of a test counts them. Against
them stand the normals by which thresholds are set, each scored by a head that has not learnt from
it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from heads.judging.calibration import Calibration
from heads.judging.metrics import auroc
from heads.judging.odd import finite, standing_out
from headwater.errors import ConfigError
from headwater.prices import Prices


def thresholds_between(normals: ArrayLike, defects: ArrayLike) -> NDArray[np.float64]:
    """Return every threshold that tells the scores apart in another way, ascending.

    Half way between neighbours, so that a score that comes out a rounding error away is judged
    alike; the first is below all scores, the last is the largest one, which nothing exceeds.

    Examples
    --------
    >>> thresholds_between([1, 2], [2, 4])[1:].tolist()
    [1.5, 3.0, 4.0]
    """
    values = np.unique(np.concatenate([finite(normals), finite(defects)]))
    below = np.nextafter(np.float32(values[0]), np.float32(-np.inf)).astype(np.float64)
    return np.concatenate([[below], (values[:-1] + values[1:]) / 2, values[-1:]])


def threshold_for_recall(normals: ArrayLike, defects: ArrayLike, recall: float) -> float:
    """Return the highest threshold at which the wanted share of the known defects is found.

    Of n defects ⌈n · recall⌉ are. Where several score alike, all of them are found or none.

    Parameters
    ----------
    normals, defects
        Scores; a defect is found where its score is greater than the threshold.
    recall
        Wanted share, above 0 and at most 1.

    Raises
    ------
    ConfigError
        A share that is none.
    DataError
        No scores, or scores that are not finite.

    Examples
    --------
    >>> threshold_for_recall([1, 2, 3], [2.5, 5, 6, 7], 0.75)
    4.0
    """
    if not 0 < recall <= 1:
        raise ConfigError(f"target recall {recall}", expected="above 0, at most 1")
    known = np.sort(finite(defects))[::-1]
    # The small term keeps products such as 20 * 0.95 = 19.000000000000004 from rounding up.
    last = known[math.ceil(known.size * recall - 1e-9) - 1]
    every = thresholds_between(normals, defects)
    return float(every[every < last].max())


def threshold_for_costs(normals: ArrayLike, defects: ArrayLike, prices: Prices) -> float:
    """Return the threshold whose mistakes on these images cost least; of several the lowest.

    Parameters
    ----------
    normals, defects
        Scores. Each image counts once: as `headwater compare --costs` counts test images.
    prices
        Of a mistake.

    Examples
    --------
    >>> threshold_for_costs([1, 2, 3], [2.5, 5], Prices(10, 1))
    2.25
    >>> threshold_for_costs([1, 2, 3], [2.5, 5], Prices(1, 10))
    4.0
    """
    good, bad = np.sort(finite(normals)), np.sort(finite(defects))
    every = thresholds_between(good, bad)
    alarms = good.size - np.searchsorted(good, every, side="right")
    misses = np.searchsorted(bad, every, side="right")
    return float(every[np.argmin(prices.miss * misses + prices.false_alarm * alarms)])


def choose_threshold(
    found: Calibration,
    normals: ArrayLike,
    defects: ArrayLike,
    *,
    recall: float | None = None,
    prices: Prices | None = None,
) -> Calibration:
    """Return a calibration with the image threshold that known defects choose.

    Its promised false-positive rate is that of the new threshold, by all normals, those that stand
    out included. Pixel and area thresholds stay: they are of normal images alone.

    Parameters
    ----------
    found
        As normals alone set it.
    normals, defects
        Scores, those of the normals out of fold or held out.
    recall, prices
        One of the two: what the threshold is to reach.
    """
    good, bad = np.sort(finite(normals)), finite(defects)
    by: Literal["recall", "costs"] = "recall" if recall is not None else "costs"
    if recall is not None:
        threshold = threshold_for_recall(good, bad, recall)
    else:
        assert prices is not None
        threshold = threshold_for_costs(good, bad, prices)
    passed = int(np.searchsorted(good, threshold, side="right"))
    told: dict[str, Any] = {
        "by": by,
        "wanted": recall if recall is not None else str(prices),
        "defects": bad.size,
        "found": int((bad > threshold).sum()),
        "normals": good.size,
        "false_alarms": good.size - passed,
        "odd": int(standing_out(good).sum()),
    }
    if prices is not None:
        misses = told["defects"] - told["found"]
        told["cost"] = prices.cost(misses, told["false_alarms"], bad.size + good.size)
    return dataclasses.replace(
        found,
        threshold=threshold,
        attained_fpr=(good.size + 1 - passed) / (good.size + 1),
        rule=by,
        spread=_spread(good.size - passed + 1, good.size),
        known={**told, "told": in_words(told)},
    )


def _spread(rank: int, n: int) -> tuple[float, float]:
    """Return between which shares nine of ten true ones lie, of a mean of rank / (n + 1).

    The share above the k-th smallest of n is Beta(n + 1 - k, k): see `heads.judging.calibration`.
    """
    if not 0 < rank <= n:
        return (0.0, 0.0) if rank <= 0 else (1.0, 1.0)
    low, high = (float(betaincinv(rank, n + 1 - rank, q)) for q in (0.05, 0.95))
    return low, high


def in_words(told: dict[str, Any]) -> str:
    """Return what known defects chose, what that costs, and what it says of new ones, in words.

    Of n known defects that are like the new ones, those found promise a recall of found / (n + 1)
    on average of such sets: the argument of the false-positive rate, on the other side.

    Examples
    --------
    >>> print(in_words({"by": "recall", "wanted": 0.9, "defects": 9, "found": 9, "normals": 40,
    ...     "false_alarms": 3, "odd": 0}))
    the threshold was chosen by 9 known defects, to find 90.0% of them: it finds 9 and calls 3 of 40
    normals (7.5%). Of new defects like these that promises a recall of 90.0% on average of such
    sets, 71.7% to 99.4% for nine in ten
    """
    n, found = told["defects"], told["found"]
    aim = f"at prices of {told['wanted']}"
    if told["by"] == "recall":
        aim = f"to find {told['wanted']:.1%} of them"
    low, high = _spread(found, n)
    odd = f", {told['odd']} of which stand out" if told["odd"] else ""
    said = (
        f"the threshold was chosen by {n} known defects, {aim}: it finds {found} and calls "
        f"{told['false_alarms']} of {told['normals']} normals "
        f"({told['false_alarms'] / told['normals']:.1%}{odd})"
    )
    if "cost" in told:
        # Chosen by the very images that it is counted on: no promise follows.
        return f"{said}, which cost {told['cost']:.4g} an image"
    said += (
        f". Of new defects like these that promises a recall of {found / (n + 1):.1%} on average "
        f"of such sets, {low:.1%} to {high:.1%} for nine in ten"
    )
    if told["wanted"] > n / (n + 1):
        need = math.ceil(told["wanted"] / (1 - told["wanted"]) - 1e-9) if told["wanted"] < 1 else 0
        takes = f"; {told['wanted']:.1%} takes {need}" if need else ""
        said += f". {n} known defects can promise {n / (n + 1):.1%} at best{takes}"
    return said


def best_rule(
    normals: Mapping[str, ArrayLike], defects: Mapping[str, ArrayLike]
) -> tuple[str, dict[str, float]]:
    """Return the rule that ranks known defects best above normals, and the image AUROC of each.

    Of several that rank alike the first.

    Parameters
    ----------
    normals, defects
        Scores by rule, the default rule first.

    Examples
    --------
    >>> best_rule({"pooled": [1, 2], "max": [1, 5]}, {"pooled": [3, 4], "max": [6, 7]})
    ('pooled', {'pooled': 1.0, 'max': 1.0})
    """
    found = {}
    for name, scores in normals.items():
        good, bad = finite(scores), finite(defects[name])
        labels = np.arange(good.size + bad.size) >= good.size
        found[name] = auroc(np.concatenate([good, bad]), labels)
    # Areas of equal rankings are equal but for the order of a sum.
    return max(found, key=lambda name: round(found[name], 12)), found
