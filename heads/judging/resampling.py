"""How sure figures are: intervals, and tests of differences, over the test images drawn anew.

Figures of one test set are one draw. The bootstrap draws its images again, with replacement, within
each kind of image (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993): the spread of a
figure over the draws is its interval. The draws depend on the number of images of each kind and on
the seed alone, so two models of one test set have seen the same draws, and the interval of their
difference is that of a paired test. For the image AUROC DeLong's test needs no draws.

Pixel figures are not computed anew for each draw: what every image adds to the curves is counted
once, at `GRID` thresholds, and a draw is a weighted sum. What the grid loses (under 1e-3) is
added back to all draws alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.stats import norm

from heads.judging.metrics import EIGHT, Maps, Metrics, as_classes
from heads.looking import seen_of

Floats = NDArray[np.float64]
#: Draws of a test set.
DRAWS = 1000
#: Thresholds of the curves of pixels.
GRID = 512
_LIMIT = 0.3


def _interval(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Resamples:
    """Figures of a test set over its draws.

    Parameters
    ----------
    seed
        Of the draws.
    figures
        ``[DRAWS]`` a figure.
    """

    seed: int
    figures: Mapping[str, Floats]

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float] | None:
        """Return the percentile interval of a figure; None where it is not among them."""
        return None if name not in self.figures else _interval(self.figures[name], level)

    def difference(
        self, other: Resamples, name: str, level: float = 0.95
    ) -> tuple[float, float] | None:
        """Return the interval of this figure less the other's, of models of one test set."""
        a, b = self.figures.get(name), other.figures.get(name)
        if a is None or b is None or self.seed != other.seed or len(a) != len(b):
            return None
        return _interval(a - b, level)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping, six digits a figure; `from_json` reads it back."""
        rounded = {k: [float(f"{x:.6g}") for x in v] for k, v in self.figures.items()}
        return {"seed": self.seed, "figures": rounded}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Resamples:
        """Rebuild from `to_json`'s mapping."""
        return cls(data["seed"], {k: np.array(v, float) for k, v in data["figures"].items()})


class Drawn(Protocol):
    """What of each image a figure is made of, so that it need not be computed anew."""

    def figures(self, times: Floats) -> dict[str, Floats]:
        """Return figures where each of N images is there so often, ``[draws, N]``: one a draw."""


def draw(strata: Sequence[str], count: int = DRAWS, seed: int = 0) -> Floats:
    """Return how often each sample is in each draw, ``[count, N]``: as many of a stratum as it has.

    A stratum's draws depend on its name, its size and the seed, not on the order of the samples in
    other strata.

    Examples
    --------
    >>> times = draw(["good", "good", "crack"], count=3)
    >>> times[:, :2].sum(axis=1), times[:, 2]
    (array([2., 2., 2.]), array([1., 1., 1.]))
    """
    names = np.asarray(strata)
    times = np.zeros((count, len(names)))
    for name in np.unique(names):
        at = np.flatnonzero(names == name)
        rng = np.random.default_rng([seed, *str(name).encode()])
        times[:, at] = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), size=count)
    return times


def resample(
    scores: ArrayLike,
    labels: ArrayLike,
    strata: Sequence[str],
    threshold: float,
    *,
    exact: Metrics,
    pixels: Sequence[Drawn | None] = (),
    count: int = DRAWS,
    seed: int = 0,
) -> Resamples:
    """Return the figures of a scored test set over its draws.

    Parameters
    ----------
    scores, labels
        ``[N]`` image scores; true where the image is anomalous.
    strata
        ``[N]``, the kind of each image.
    threshold
        An image is called anomalous where its score is greater.
    exact
        The figures of the set itself: those of pixels are centred on them, and a figure that is not
        among them is left out.
    pixels
        From `count_pixels` and `heads.judging.aupimo.TopPixels.of`; None is nothing.
    """
    values, truth = as_classes(scores, labels)
    times = draw(strata, count, seed)
    found = _image_figures(values, truth, times, threshold)
    for counted in filter(None, pixels):
        once = counted.figures(np.ones((1, len(values))))
        for name, drawn in counted.figures(times).items():
            if name in exact:
                found[name] = np.clip(drawn + (exact[name] - once[name]), 0, 1)
    return Resamples(seed, {k: v for k, v in found.items() if k in exact})


def _image_figures(
    values: Floats, truth: NDArray[np.bool_], times: Floats, threshold: float
) -> dict[str, Floats]:
    good, bad = times[:, ~truth], times[:, truth]
    called = values > threshold
    tp, fp = bad @ called[truth], good @ called[~truth]
    n_bad, n_good = bad.sum(1), good.sum(1)
    found = {"accuracy": (tp + n_good - fp) / times.sum(1)}
    if truth.any():
        found["recall"] = tp / n_bad
        found["f1"] = 2 * tp / (tp + fp + n_bad)
        found["precision"] = tp / np.maximum(tp + fp, 1)
    if not truth.all():
        found["false_positive_rate"] = fp / n_good
    if truth.any() and not truth.all():
        found["balanced_accuracy"] = (tp / n_bad + 1 - fp / n_good) / 2
        above = _above(values[truth], values[~truth])
        found["image_auroc"] = np.einsum("ba,ag,bg->b", bad, above, good) / (n_bad * n_good)
        found["image_ap"] = _average_precision(values, truth, times)
    return found


def _above(bad: Floats, good: Floats) -> Floats:
    """Return 1 where the anomalous one is above, 0.5 at a tie, ``[bad, good]``."""
    return np.asarray((np.sign(bad[:, None] - good[None, :]) + 1) / 2)


def _average_precision(values: Floats, truth: NDArray[np.bool_], times: Floats) -> Floats:
    order = np.argsort(-values, kind="stable")
    ranked, hit = values[order], truth[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    weights = times[:, order]
    tp = np.cumsum(weights * hit, axis=1)[:, last]
    called = np.cumsum(weights, axis=1)[:, last]
    precision = tp / np.maximum(called, 1)
    gained = np.diff(tp, axis=1, prepend=0.0)
    return np.asarray((gained * precision).sum(1) / tp[:, -1])


@dataclass(frozen=True)
class PixelCounts:
    """What each image adds to the curves of pixels.

    Parameters
    ----------
    fp, tp, covered
        ``[N, GRID + 1]``: defect-free and defective pixels at or above each threshold, and the sum
        over its components of their covered share; the last column is all of them.
    components
        ``[N]``.
    called, right, bad
        ``[N]``: pixels called at the pixel threshold, those of them rightly, and defective pixels.
    """

    fp: Floats
    tp: Floats
    covered: Floats
    components: Floats
    called: Floats
    right: Floats
    bad: Floats

    def figures(self, times: Floats) -> dict[str, Floats]:
        """Return the figures of each draw."""
        start = np.zeros((len(times), 1))
        fp = np.concatenate([start, times @ self.fp], 1)
        tp = np.concatenate([start, times @ self.tp], 1)
        covered = np.concatenate([start, times @ self.covered], 1)
        normal, defect = fp[:, -1], tp[:, -1]
        called, right, bad = times @ self.called, times @ self.right, times @ self.bad
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = tp / np.maximum(tp + fp, 1)
            found = {
                "pixel_auroc": np.trapezoid(tp, fp, axis=1) / (normal * defect),
                "pixel_ap": (np.diff(tp, axis=1) * precision[:, 1:]).sum(1) / defect,
                "aupro": _area_below(fp / normal[:, None], covered) / (times @ self.components),
                "pixel_f1": 2 * right / (called + bad),
                "pixel_iou": right / (called + bad - right),
            }
        return {k: v for k, v in found.items() if np.isfinite(v).all()}


def _area_below(rate: Floats, covered: Floats) -> Floats:
    """Return the mean of `covered` over 0 <= rate <= 0.3, each row by itself."""
    width = np.clip(np.diff(np.minimum(rate, _LIMIT), axis=1), 0, None)
    step = np.diff(rate, axis=1)
    share = np.divide(width, step, out=np.zeros_like(width), where=step > 0)
    left, right = covered[:, :-1], covered[:, 1:]
    cut = left + (right - left) * share
    return np.asarray((width * (left + cut) / 2).sum(1) / _LIMIT)


def count_pixels(
    maps: Maps, masks: Sequence[NDArray[np.bool_] | None], pixel_threshold: float
) -> PixelCounts | None:
    """Count what each image adds to the curves; None where no mask marks a pixel.

    Parameters
    ----------
    maps, masks
        As of `heads.judging.metrics.rank_pixels`; an image without a mask adds nothing.
    pixel_threshold
        A pixel is called where its value is greater.
    """
    known = [i for i, mask in enumerate(masks) if mask is not None]
    pairs = {i: (np.ma.getdata(np.asanyarray(maps[i])), masks[i], seen_of(maps[i])) for i in known}
    bad = [values[mask & seen] for values, mask, seen in pairs.values() if mask is not None]
    if not any(b.size for b in bad):
        return None
    good = [v[~m & s] for v, m, s in pairs.values() if m is not None]
    edges = _thresholds(good, bad)
    n = len(maps)
    fp, tp, covered = (np.zeros((n, len(edges) + 1)) for _ in range(3))
    components, called, right, marked = (np.zeros(n) for _ in range(4))
    for i, (values, mask, seen) in pairs.items():
        assert mask is not None
        defect = mask & seen
        # How many thresholds lie above a pixel: it is in the curve from there on.
        from_ = len(edges) - np.searchsorted(edges, values, side="right")
        fp[i] = np.cumsum(np.bincount(from_[seen & ~defect], minlength=len(edges) + 1))
        verdict = (values > pixel_threshold) & seen
        called[i], right[i] = verdict.sum(), (verdict & defect).sum()
        if not defect.any():
            continue
        tp[i] = np.cumsum(np.bincount(from_[defect], minlength=len(edges) + 1))
        labelled, components[i] = ndimage.label(defect, EIGHT)
        sizes = np.bincount(labelled.ravel())
        weights = 1 / sizes[labelled[defect]]
        covered[i] = np.cumsum(np.bincount(from_[defect], weights, minlength=len(edges) + 1))
        marked[i] = defect.sum()
    return PixelCounts(fp, tp, covered, components, called, right, marked)


def _thresholds(good: Sequence[Floats], bad: Sequence[Floats]) -> Floats:
    """Return thresholds, ascending: dense where few defect-free pixels are above, and on defects.

    From a fixed share of the pixels, as they need not be exact.
    """
    step = max(1, sum(g.size for g in good) // 2_000_000)
    free = np.concatenate([g[::step] for g in good]) if good else np.empty(0)
    rates = np.concatenate([np.geomspace(1e-6, 0.05, GRID // 4), np.linspace(0.05, 1, GRID // 4)])
    found = [np.quantile(np.concatenate(bad), np.linspace(0, 1, GRID // 2))]
    if free.size:
        found.append(np.quantile(free, 1 - rates))
    return np.unique(np.concatenate(found))


def delong(scores: ArrayLike, others: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Return the difference of two AUROCs on the same samples and the p-value of its being none.

    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver
    operating characteristic curves: a nonparametric approach", Biometrics 44 (1988).

    Examples
    --------
    >>> delong([1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 1, 1])
    (0.0, 1.0)
    """
    first, truth = as_classes(scores, labels)
    second, _ = as_classes(others, labels)
    parts = []
    for values in (first, second):
        above = _above(values[truth], values[~truth])
        parts.append((above.mean(1), above.mean(0)))
    gap = float(parts[0][0].mean() - parts[1][0].mean())
    spread = 0.0
    for side in (0, 1):
        apart = parts[0][side] - parts[1][side]
        spread += float(np.var(apart, ddof=1) / len(apart)) if len(apart) > 1 else 0.0
    if spread == 0:
        return gap, 1.0 if gap == 0 else 0.0
    return gap, float(2 * norm.sf(abs(gap) / spread**0.5))
