"""Thresholds from normal scores alone, for a target false-positive rate.

Split conformal prediction (Vovk et al. 2005; Lei et al. 2018, Theorem 2.2): of n scores that are
exchangeable with a new normal one, the k-th smallest with k = ⌈(n + 1)(1 − a)⌉ is exceeded by the
new one with probability at most a. No anomalous image and no test image is looked at.

The scores are out-of-fold scores of all normals, or those of a few held-out ones (`calibrate`).
Out of fold every normal counts, each scored by a head that has not learnt from its fold: Vovk,
"Cross-conformal predictors" (2015); Barber, Candès, Ramdas and Tibshirani, "Predictive inference
with the jackknife+" (2021). These give the new image to all K heads and guarantee 1 − 2a; here the
one head that has learnt from all normals scores it, as in their "jackknife". Then the rate is the
promised one as far as that head scores like the K others, which have seen fewer images and give
somewhat higher scores: in general the rate is then lower than promised.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from heads.judging.odd import finite, standing_out
from heads.judging.regions import volume_threshold
from headwater.errors import ConfigError

#: What a model's file does not say.
_ABSENT = (
    ("standard", None),
    ("area_threshold", None),
    ("volume_threshold", None),
    ("known", None),
)


@dataclass(frozen=True)
class Calibration:
    """Decision thresholds of a fitted head, stored with the model; JSON-ready.

    The verdict is ``score > threshold``; a pixel is drawn where ``map > pixel_threshold``.

    Parameters
    ----------
    threshold
        Image threshold.
    target_fpr
        The false-positive rate asked for.
    attained_fpr
        The rate that n images can promise: the bound 1 − k / (n + 1). Above the target where
        `rule` is ``"tail"`` or ``"largest"``, or where images stand out (`odd`).
    n
        Number of normal images whose scores these are.
    rule
        ``"conformal"``; where n is too small for the target ``"largest"``, the largest score, or,
        of held-out images, ``"tail"`` (see `threshold_for`); ``"fixed"`` for heads whose scores
        are probabilities: no target, nothing promised; ``"recall"``, ``"costs"``: see `known`.
    pixel_threshold, pixel_target_fpr, pixel_n
        The same for the pixels of the held-out maps; NaN-free: None where there were no maps.
        Pixels of one image are not independent, so the pixel rate is an empirical one, no promise.
    volume_threshold
        A region is told where it is larger (`heads.judging.regions`): no more than the image target
        of the normals show one. None without maps, and in models of before, which have an
        `area_threshold`, in pixels of the map.
    median
        Median normal image score: with the threshold it gives scores a scale for display.
    folds
        What the folds are (`heads.training.folds.Folds.told`); None for held-out images.
    scores
        Of these normals, ascending, for p-values; None in models of before.
    odd
        How many of the largest scores stand out and do not set the thresholds; see `standing_out`.
    spread
        Between which rates the true one is for nine of ten such sets of n normals: the promised
        one is their mean. None for held-out images.
    standard
        Mean and deviation of the held-out maps of tiles, and of whole images, where images are seen
        as both (`heads.judging.joining`); else None.
    known
        How known defects chose the threshold (`heads.judging.known`), in place of the target rate.
    """

    threshold: float
    target_fpr: float
    attained_fpr: float
    n: int
    rule: Literal["conformal", "largest", "tail", "fixed", "recall", "costs"]
    pixel_threshold: float | None = None
    pixel_target_fpr: float | None = None
    pixel_n: int = 0
    area_threshold: float | None = None
    volume_threshold: float | None = None
    median: float = 0.0
    folds: Mapping[str, Any] | None = None
    scores: tuple[float, ...] | None = None
    odd: int = 0
    spread: tuple[float, float] | None = None
    standard: tuple[tuple[float, float], tuple[float, float]] | None = None
    known: Mapping[str, Any] | None = None

    @property
    def least_fpr(self) -> float:
        """The lowest rate that as many normals can promise."""
        return 1 / (self.n + 1)

    def p_value(self, score: float) -> float | None:
        """Return the share of normals that score as high: (1 + how many do) / (n + 1).

        Of a new normal image it is below any a with probability a at most, as far as the threshold
        keeps its promise. None where no scores of normals are known.

        Examples
        --------
        >>> calibrate_out_of_fold(range(1, 20), None, {}).p_value(18.5)
        0.1
        """
        if self.scores is None:
            return None
        above = len(self.scores) - int(np.searchsorted(self.scores, score, side="left"))
        return (1 + above) / (len(self.scores) + 1)

    @property
    def caveats(self) -> list[str]:
        """What a user of the threshold must know: that it is looser than was asked for, if so."""
        need = math.ceil(1 / self.target_fpr - 1e-9) - 1
        said = []
        if self.rule == "largest":
            said.append(
                f"{self.n} normals can promise a false-positive rate of {self.least_fpr:.2%}, not "
                f"{self.target_fpr:.2%}: that takes {need}. Until then the threshold is the "
                "largest score of the normals that do not stand out"
            )
        if self.known is not None:
            said.append(self.known["told"])
        elif self.odd:
            said.append(
                f"{self.odd} of {self.n} normals score far above the others and are left out of "
                f"the thresholds: if they are normal after all, {self.attained_fpr:.2%} of normal "
                f"images will be called otherwise; if not, {self.clean_fpr:.2%}"
            )
        if self.rule != "tail":
            return said
        return [
            f"thresholds are extrapolated: {self.n} held-out normals promise a false-positive rate "
            f"of {self.attained_fpr:.2%}, not {self.target_fpr:.2%} (that takes {need})"
        ]

    @property
    def clean_fpr(self) -> float:
        """The rate promised where the images that stand out are not normal."""
        kept = self.n - self.odd
        return max(0.0, self.attained_fpr * (self.n + 1) - self.odd) / (kept + 1)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` reads it back."""
        # Without what there is only of some, so that others' are as they always were.
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if (k, v) not in _ABSENT}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """Rebuild a calibration from `to_json`'s mapping, an older version's too."""
        lists = {k: tuple(data[k]) for k in ("scores", "spread") if data.get(k) is not None}
        return cls(**{**data, **lists})


def threshold_for(
    scores: ArrayLike, target_fpr: float, upper: float | None = None
) -> tuple[float, float, Literal["conformal", "tail"]]:
    """Return ``(threshold, attained false-positive rate, rule)`` for normal `scores`.

    Parameters
    ----------
    scores
        Scores of normal images.
    target_fpr
        Share of them that may lie above the threshold.
    upper
        What no score can exceed, where there is such a value; see below.

    Where n is too small (n < 1/a − 1) not even the largest score promises the target. Then the
    promise is the largest score's, 1 / (n + 1), and the threshold lies above it as far as an
    exponential tail says: max + σ ln(1 / ((n + 1) a)), σ the mean excess of the scores over their
    median. This follows shifts and scales of the scores, whatever their sign. Scores with a limit
    pile up below it, and a threshold beyond it would never be exceeded: these are extrapolated on
    the scale ``-ln(upper - score)``, which keeps their order and has none.

    Raises
    ------
    ConfigError
        A target outside ]0, 1[.
    DataError
        No scores, or scores that are not finite.

    Examples
    --------
    >>> threshold_for(range(1, 40), 0.05)
    (38.0, 0.05, 'conformal')
    """
    values = finite(scores)
    n, k = values.size, _rank(values.size, target_fpr)
    if k <= n:
        return float(np.partition(values, k - 1)[k - 1]), (n + 1 - k) / (n + 1), "conformal"
    if upper is not None:
        # a score at the limit itself is taken for one a float32 below it
        room = np.maximum(upper - values, np.finfo(np.float32).eps * max(abs(upper), 1e-30))
        return upper - math.exp(-_beyond(-np.log(room), target_fpr)), 1 / (n + 1), "tail"
    return _beyond(values, target_fpr), 1 / (n + 1), "tail"


def _rank(n: int, target_fpr: float) -> int:
    """Return k = ⌈(n + 1)(1 − a)⌉; `ConfigError` where a is no rate."""
    if not 0 < target_fpr < 1:
        raise ConfigError(f"target false-positive rate {target_fpr}", expected="between 0 and 1")
    # the small term keeps products such as 10 * (1 - 0.1) = 9.000000000000002 from rounding up
    return math.ceil((n + 1) * (1 - target_fpr) - 1e-9)


def _beyond(values: NDArray[np.float64], target_fpr: float) -> float:
    """Return the largest value and what an exponential tail adds to it."""
    excess = values[values > np.median(values)] - np.median(values)
    sigma = float(excess.mean()) if excess.size else 0.0
    return float(values.max() + sigma * math.log(1 / ((values.size + 1) * target_fpr)))


def fixed(threshold: float, target_fpr: float) -> Calibration:
    """Return thresholds that no score was looked at for: image and pixel probabilities."""
    return Calibration(threshold, target_fpr, 1.0, 0, "fixed", pixel_threshold=threshold)


def calibrate(
    scores: ArrayLike,
    maps: Sequence[ArrayLike] | NDArray[np.float32] | None = None,
    *,
    target_fpr: float = 0.05,
    pixel_fpr: float = 0.005,
    upper: float | None = None,
) -> Calibration:
    """Set the thresholds of a head from what it gives on held-out normal images.

    Parameters
    ----------
    scores
        ``[N]`` image scores of normal images that were not trained on.
    maps
        Their score maps, for the pixel threshold; of a masked array what is masked does not count.
    target_fpr
        Share of normal images that may be called anomalous.
    pixel_fpr
        Share of normal pixels that may be drawn as defect.
    upper
        What no image score can exceed; see `threshold_for`.

    Examples
    --------
    >>> found = calibrate(range(1, 40))
    >>> found.threshold, found.n, found.rule, found.attained_fpr
    (38.0, 39, 'conformal', 0.05)
    """
    threshold, attained, rule = threshold_for(scores, target_fpr, upper)
    values = np.asarray(scores, dtype=np.float64).ravel()
    return Calibration(
        threshold=threshold,
        target_fpr=target_fpr,
        attained_fpr=attained,
        n=values.size,
        rule=rule,
        median=float(np.median(values)),
        scores=tuple(np.sort(values).tolist()),
        **_of_pixels([] if maps is None else maps, pixel_fpr, target_fpr),
    )


def _of_pixels(maps: Any, pixel_fpr: float, target_fpr: float) -> dict[str, Any]:
    """Return what maps of normal images set: the fields of a `Calibration`."""
    if not len(maps):
        return {}
    flat = np.concatenate([np.ma.compressed(m) for m in maps]).astype(np.float32)
    pixel, _, _ = threshold_for(flat, pixel_fpr)
    told = {"pixel_threshold": pixel, "pixel_target_fpr": pixel_fpr, "pixel_n": flat.size}
    # Which of the maps' largest parts may be exceeded is reckoned as of the image scores.
    return told | {"volume_threshold": volume_threshold(maps, pixel, _rank(len(maps), target_fpr))}


def calibrate_out_of_fold(
    scores: ArrayLike,
    maps: Sequence[ArrayLike] | NDArray[np.float32] | None,
    folds: Mapping[str, Any],
    *,
    accepted: ArrayLike | None = None,
    target_fpr: float = 0.05,
    pixel_fpr: float = 0.005,
) -> Calibration:
    """Set the thresholds of a head from the out-of-fold scores of all normal images.

    The image threshold is the conformal quantile of the scores without those that stand out
    (`standing_out`, which says how far one that is not left out can lie). From 39 normals on, at
    5 %, any one image moves it by a rank at most. What leaving out costs is bounded: should the
    `odd` images be normal, the rate is at most odd / (n + 1) higher, and the promise that is told
    counts them as such. Where the others are too few for the target it is the largest of them.

    Parameters
    ----------
    scores
        ``[N]`` image scores, each by a head that has not learnt from that image's fold.
    maps
        Their score maps, for the pixel threshold; of a masked array what is masked does not count.
    folds
        What the folds are.
    accepted
        ``[N]`` bool: images that are known to be normal, and count however far they stand out.
    target_fpr, pixel_fpr
        As of `calibrate`.

    Examples
    --------
    >>> found = calibrate_out_of_fold([*range(1, 40), 999], None, {})
    >>> found.threshold, found.odd, found.rule
    (38.0, 1, 'conformal')
    >>> round(found.attained_fpr, 3), round(found.clean_fpr, 3)
    (0.073, 0.05)
    """
    values = finite(scores)
    n, out = values.size, standing_out(values)
    if accepted is not None:
        out &= ~np.asarray(accepted, bool)
    kept = np.sort(values[~out])
    k = _rank(kept.size, target_fpr)
    enough = k <= kept.size
    threshold = float(kept[min(k, kept.size) - 1])
    # Its rank among all, those that stand out included.
    rank = min(k, kept.size) + int((values[out] <= threshold).sum())
    own = [] if maps is None or not len(maps) else [maps[i] for i in np.flatnonzero(~out).tolist()]
    return Calibration(
        threshold=threshold,
        target_fpr=target_fpr,
        attained_fpr=(n + 1 - rank) / (n + 1),
        n=n,
        rule="conformal" if enough else "largest",
        median=float(np.median(values)),
        folds=folds,
        scores=tuple(np.sort(values).tolist()),
        odd=int(out.sum()),
        # The share of new images above the k-th smallest of n is Beta(n + 1 - k, k): Vovk,
        # "Conditional validity of inductive conformal predictors" (2012).
        spread=(
            float(betaincinv(n + 1 - rank, rank, 0.05)),
            float(betaincinv(n + 1 - rank, rank, 0.95)),
        ),
        **_of_pixels(own, pixel_fpr, target_fpr),
    )
