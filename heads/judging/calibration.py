"""Thresholds from held-out normal scores alone, for a target false-positive rate.

Split conformal prediction (Vovk et al. 2005; Lei et al. 2018, Theorem 2.2): of n scores that are
exchangeable with a new normal one, the k-th smallest with k = ⌈(n + 1)(1 − a)⌉ is exceeded by the
new one with probability at most a. No anomalous image and no test image is looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwater.errors import ConfigError, DataError


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
        The rate that n held-out images can promise: the bound 1 − k / (n + 1). Above the target
        where `rule` is ``"tail"``.
    n
        Number of held-out normal images.
    rule
        ``"conformal"``, or ``"tail"`` where n is too small for the target (see `threshold_for`), or
        ``"fixed"`` for heads whose scores are probabilities: no target, nothing promised.
    pixel_threshold, pixel_target_fpr, pixel_n
        The same for the pixels of the held-out maps; NaN-free: None where there were no maps.
        Pixels of one image are not independent, so the pixel rate is an empirical one, no promise.
    median
        Median held-out image score: with the threshold it gives scores a scale for display.
    standard
        Mean and deviation of the held-out maps of tiles, and of whole images, where images are seen
        as both (`heads.judging.joining`); else None.
    """

    threshold: float
    target_fpr: float
    attained_fpr: float
    n: int
    rule: Literal["conformal", "tail", "fixed"]
    pixel_threshold: float | None = None
    pixel_target_fpr: float | None = None
    pixel_n: int = 0
    median: float = 0.0
    standard: tuple[tuple[float, float], tuple[float, float]] | None = None

    @property
    def caveats(self) -> list[str]:
        """What a user of the threshold must know: that it is looser than was asked for, if so."""
        if self.rule != "tail":
            return []
        need = math.ceil(1 / self.target_fpr - 1e-9) - 1
        return [
            f"thresholds are extrapolated: {self.n} held-out normals promise a false-positive rate "
            f"of {self.attained_fpr:.2%}, not {self.target_fpr:.2%} (that takes {need})"
        ]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` reads it back."""
        # Without what there is only of some, so that others' are as they always were.
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k != "standard" or v is not None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """Rebuild a calibration from `to_json`'s mapping."""
        return cls(**data)


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
    if not 0 < target_fpr < 1:
        raise ConfigError(f"target false-positive rate {target_fpr}", expected="between 0 and 1")
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not values.size:
        raise DataError(
            "no held-out normal scores", expected="at least one", remedy="hold out normal images"
        )
    if not np.isfinite(values).all():
        raise DataError("held-out scores that are not finite", expected="finite scores")
    n = values.size
    # the small term keeps products such as 10 * (1 - 0.1) = 9.000000000000002 from rounding up
    k = math.ceil((n + 1) * (1 - target_fpr) - 1e-9)
    if k <= n:
        return float(np.partition(values, k - 1)[k - 1]), (n + 1 - k) / (n + 1), "conformal"
    if upper is not None:
        # a score at the limit itself is taken for one a float32 below it
        room = np.maximum(upper - values, np.finfo(np.float32).eps * max(abs(upper), 1e-30))
        return upper - math.exp(-_beyond(-np.log(room), target_fpr)), 1 / (n + 1), "tail"
    return _beyond(values, target_fpr), 1 / (n + 1), "tail"


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
    pixel, pixels = None, 0
    if maps is not None and len(maps):
        flat = np.concatenate([np.ma.compressed(m) for m in maps]).astype(np.float32)
        pixel, _, _ = threshold_for(flat, pixel_fpr)
        pixels = flat.size
    return Calibration(
        threshold=threshold,
        target_fpr=target_fpr,
        attained_fpr=attained,
        n=values.size,
        rule=rule,
        pixel_threshold=pixel,
        pixel_target_fpr=pixel_fpr if pixels else None,
        pixel_n=pixels,
        median=float(np.median(values)),
    )
