"""Exact detection and localisation metrics: every distinct score is a threshold, ties are one step.

Scores are larger for the more anomalous; an image (or pixel) is called anomalous where its score is
*greater* than the threshold. No metric here picks anything on the test labels, except where the
name says ``oracle``.

All pixel metrics come from one sort: each pixel becomes one 64-bit number, its score's bits in the
upper half and the number of its defect component (0: normal) in the lower, and the curves are
walked in blocks. 583 maps of 256 x 256 take a few seconds and 8 bytes per pixel beside the maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from heads.looking import seen_of
from headwater.errors import DataError, ShapeError

Floats = NDArray[np.float64]
Maps = Sequence[ArrayLike] | NDArray[Any]
_BLOCK = 1 << 20
EIGHT = np.ones((3, 3), dtype=np.int8)


class Metrics(dict[str, float]):
    """Metric values by name; `omitted` says why a metric is not among them.

    Attributes
    ----------
    omitted
        ``{metric name: reason}`` of what is undefined on this data (one class only, no masks).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.omitted: dict[str, str] = {}


def _array(values: ArrayLike, what: str) -> Floats:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(f"{what}: number {bad} is {array[bad]}", expected="finite scores")
    return array


def as_classes(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return scores and labels as rows; raises where they are not one each, or not finite."""
    values, truth = _array(scores, "scores"), np.asarray(labels).ravel().astype(bool)
    if values.shape != truth.shape:
        raise ShapeError(f"{values.size} scores for {truth.size} labels", expected="one each")
    return values, truth


def counts(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return ``(threshold, false positives, true positives)`` at every distinct score, high to low.

    Entry 0 calls nothing anomalous (threshold infinity); at entry i all scores >= threshold are.
    """
    values, truth = as_classes(scores, labels)
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    last = np.append(values[1:] != values[:-1], True)[: values.size]
    tp = np.cumsum(truth, dtype=np.float64)[last]
    fp = np.cumsum(~truth, dtype=np.float64)[last]
    thresholds = np.concatenate(([np.inf], values[last]))
    return thresholds, np.concatenate(([0.0], fp)), np.concatenate(([0.0], tp))


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return ``(false-positive rate, true-positive rate, threshold)``; needs both classes."""
    thresholds, fp, tp = counts(scores, labels)
    _both(fp[-1], tp[-1])
    return fp / fp[-1], tp / tp[-1], thresholds


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return ``(precision, recall, threshold)`` at every distinct score, high to low."""
    thresholds, fp, tp = counts(scores, labels)
    _both(1, tp[-1])
    return tp[1:] / (tp + fp)[1:], tp[1:] / tp[-1], thresholds[1:]


def _both(normal: float, anomalous: float) -> None:
    if not normal or not anomalous:
        raise DataError(
            f"{int(normal)} normal and {int(anomalous)} anomalous samples",
            expected="both classes",
        )


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve; ties count half.

    Examples
    --------
    >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    _, fp, tp = counts(scores, labels)
    _both(fp[-1], tp[-1])
    return float(np.trapezoid(tp, fp) / (fp[-1] * tp[-1]))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the step-wise area under precision over recall, Σ (R_n − R_{n−1}) P_n.

    Examples
    --------
    >>> round(average_precision([0.1, 0.4, 0.8, 0.9], [False, True, False, True]), 4)
    0.8333
    """
    precision, recall, _ = precision_recall_curve(scores, labels)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def at_threshold(scores: ArrayLike, labels: ArrayLike, threshold: float) -> Metrics:
    """Return the figures of the verdict ``score > threshold``.

    ``recall`` is the share of the anomalous that are found, ``false_positive_rate`` the share of
    the normal that are not passed, ``balanced_accuracy`` the mean of recall and specificity.
    A precision over no positive verdict is 0.

    Examples
    --------
    >>> at_threshold([0.1, 0.4, 0.8, 0.9], [False, True, False, True], 0.5)["recall"]
    0.5
    """
    values, truth = as_classes(scores, labels)
    called = values > threshold
    tp, fp = float((called & truth).sum()), float((called & ~truth).sum())
    bad, good = float(truth.sum()), float((~truth).sum())
    out = Metrics()
    if truth.size:
        out["accuracy"] = (tp + good - fp) / truth.size
    if bad:
        out["recall"], out["f1"] = tp / bad, 2 * tp / (tp + fp + bad)
        out["precision"] = tp / (tp + fp) if tp + fp else 0.0
    else:
        out.omitted |= dict.fromkeys(("recall", "f1", "precision"), "no anomalous images")
    if good:
        out["false_positive_rate"] = fp / good
    else:
        out.omitted["false_positive_rate"] = "no normal images"
    if bad and good:
        out["balanced_accuracy"] = (tp / bad + 1 - fp / good) / 2
    else:
        out.omitted["balanced_accuracy"] = "needs normal and anomalous images"
    return out


def oracle_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return Youden's threshold, max(TPR − FPR): chosen on the test labels, never for deployment.

    The largest threshold of the best ones; to be used with ``score > threshold``.
    """
    fpr, tpr, thresholds = roc_curve(scores, labels)
    best = int(np.argmax(tpr - fpr))
    return float(np.nextafter(thresholds[best], -np.inf)) if best else float(thresholds[1])


@dataclass(frozen=True)
class PixelRanking:
    """All pixels of a test set, sorted by score: the one source of all pixel metrics.

    Parameters
    ----------
    keys
        Ascending uint64: the score's order-preserving bits, then the component's number.
    weights
        Per component number 1 / its pixels; entry 0, the normal pixels, is 0.
    normal
        Number of defect-free pixels.
    """

    keys: NDArray[np.uint64]
    weights: Floats
    normal: int

    @property
    def components(self) -> int:
        """Number of 8-connected defect components."""
        return len(self.weights) - 1

    def vertices(self) -> Iterator[tuple[Floats, Floats, Floats]]:
        """Yield blocks of ``(fp, tp, covered)`` at distinct scores from the highest down.

        ``covered`` is the sum over components of the share of their pixels found. Left out are
        scores between which no defect is found: the curves are straight there. Each block starts
        with the last vertex of the one before (the first with the origin).
        """
        total = np.zeros(3)
        vertex = np.zeros((3, 1))
        for stop in range(len(self.keys), 0, -_BLOCK):
            start = max(0, stop - _BLOCK)
            # one key more, below the block, tells whether the block's lowest score ends in it
            block = self.keys[max(0, start - 1) : stop][::-1]
            score, size = (block >> np.uint64(32)).astype(np.uint32), stop - start
            ends = np.flatnonzero(np.append(score[1:] != score[:-1], True)[:size])
            part = block[:size].astype(np.uint32)  # the lower half
            bad = np.flatnonzero(part)
            shares = np.concatenate(([0.0], np.cumsum(self.weights[part[bad]])))
            # A defect is found from the score before its own to its own; the last carries over.
            after = np.searchsorted(ends, bad)
            kept = np.unique(np.concatenate((after - 1, after, [len(ends) - 1])))
            at = ends[kept[(kept >= 0) & (kept < len(ends))]]
            found = np.searchsorted(bad, at, side="right")
            sums = np.stack((at + 1.0 - found, found.astype(np.float64), shares[found]))
            vertices = np.concatenate((vertex, sums + total[:, None]), axis=1)
            total = total + (size - len(bad), len(bad), shares[-1])
            if vertices.shape[1] > 1:
                vertex = vertices[:, -1:]
                yield vertices[0], vertices[1], vertices[2]

    def figures(self, fpr_limit: float = 0.3) -> Metrics:
        """Return ``pixel_auroc``, ``pixel_ap`` and ``aupro``.

        AUPRO: mean over 8-connected defect components of their covered share, integrated over
        0 <= FPR <= `fpr_limit` (FPR over all defect-free pixels), divided by the limit; the
        curve is cut at the limit by linear interpolation between its neighbouring vertices.
        """
        out = Metrics()
        defect = len(self.keys) - self.normal
        names = ("pixel_auroc", "pixel_ap", "aupro")
        if not len(self.keys):
            out.omitted |= dict.fromkeys(names, "no pixel truth: no masks were given")
            return out
        if not defect:
            out.omitted |= dict.fromkeys(names, "no defect pixel in any mask")
            return out
        if not self.normal:
            out.omitted |= {"pixel_auroc": "no defect-free pixel", "aupro": "no defect-free pixel"}
        roc = precision = overlap = 0.0
        limit = fpr_limit * self.normal
        for fp, tp, covered in self.vertices():
            roc += float(np.trapezoid(tp, fp))
            precision += float(np.sum(np.diff(tp) * tp[1:] / (tp + fp)[1:]))
            if self.normal and fp[0] < limit:
                within = int(np.searchsorted(fp, limit, side="right"))
                x, y = fp[:within], covered[:within]
                if within < len(fp):
                    x = np.append(x, limit)
                    y = np.append(y, np.interp(limit, fp[within - 1 :], covered[within - 1 :]))
                overlap += float(np.trapezoid(y, x))
        out["pixel_ap"] = float(precision / defect)
        if self.normal:
            out["pixel_auroc"] = float(roc / defect / self.normal)
            out["aupro"] = float(overlap / (self.components * limit))
        return out


def rank_pixels(maps: Maps, masks: Sequence[NDArray[np.bool_] | None]) -> PixelRanking:
    """Sort the pixels of all maps whose mask is known.

    Parameters
    ----------
    maps
        Score maps ``[H, W]``, taken as float32, of any sizes; what is masked does not count.
    masks
        Per map a bool mask of its size, or None where the pixel truth is unknown.

    Raises
    ------
    ShapeError
        A mask of another size than its map.
    DataError
        A score that is not finite.
    """
    known = [i for i, mask in enumerate(masks) if mask is not None]
    keys = np.empty(sum(np.asarray(masks[i]).size for i in known), dtype=np.uint64)
    weights: list[Floats] = [np.zeros(1)]
    used = normal = components = 0
    for i in known:
        heat, mask = maps[i], np.array(masks[i], dtype=bool)
        values, seen = np.asarray(heat, dtype=np.float32), seen_of(heat)
        if values.shape != mask.shape:
            raise ShapeError(
                f"map {i} has shape {values.shape}, its mask {mask.shape}", expected="equal shapes"
            )
        if not np.isfinite(values).all():
            raise DataError(f"map {i} holds values that are not finite", expected="finite scores")
        mask &= seen
        bits = (values + np.float32(0))[seen].view(np.uint32)  # the sum turns -0 into 0
        negative = bits >> np.uint32(31) == 1
        ordered = np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
        ordered <<= np.uint64(32)
        if mask.any():
            labelled, found = ndimage.label(mask, EIGHT)
            sizes = np.bincount(labelled.ravel(), minlength=found + 1)
            weights.append(1.0 / sizes[1:])
            number = labelled[seen].astype(np.uint64)
            number[number > 0] += np.uint64(components)
            ordered |= number
            components += found
        normal += ordered.size - int(mask.sum())
        keys[used : used + ordered.size] = ordered
        used += ordered.size
    keys = keys[:used]
    keys.sort()
    return PixelRanking(keys, np.concatenate(weights), normal)


def evaluate(
    scores: ArrayLike,
    maps: Maps | None,
    labels: ArrayLike,
    masks: Sequence[NDArray[np.bool_] | None] | None,
    *,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
) -> Metrics:
    """Return all metrics of a scored test set.

    Parameters
    ----------
    scores
        ``[N]`` image scores.
    maps
        N score maps ``[H, W]`` as of `rank_pixels`, or None for image metrics alone.
    labels
        ``[N]``, true where the image is anomalous.
    masks
        Per image a bool mask of its map's size, or None. A normal image without mask has an empty
        one; a defective image without mask counts for the image metrics only.
    threshold, pixel_threshold
        Where given, the figures at these thresholds are added (`at_threshold`; ``pixel_f1``,
        ``pixel_iou``).

    Returns
    -------
    Metrics
        ``image_auroc, image_ap, pixel_auroc, pixel_ap, aupro``, ``oracle.youden_recall`` and
        ``oracle.youden_accuracy`` (at a threshold that was chosen on `labels`), and those at the
        thresholds, as far as they are defined; ``.omitted`` names the others with the reason.

    Examples
    --------
    >>> found = evaluate([0.1, 0.7], None, [False, True], None, threshold=0.5)
    >>> found["image_auroc"], found["recall"], found["false_positive_rate"]
    (1.0, 1.0, 0.0)
    """
    values, truth = as_classes(scores, labels)
    out = Metrics()
    if truth.all() or not truth.any():
        reason = "needs normal and anomalous images; only one of them is there"
        out.omitted |= dict.fromkeys(("image_auroc", "image_ap"), reason)
    else:
        out["image_auroc"] = auroc(values, truth)
        out["image_ap"] = average_precision(values, truth)
        # As CSA-Flow's tables have it: at the threshold that Youden's index takes on these labels.
        youden = at_threshold(values, truth, oracle_threshold(values, truth))
        out |= {f"oracle.youden_{name}": youden[name] for name in ("recall", "accuracy")}
    if threshold is not None:
        _merge(out, at_threshold(values, truth, threshold))
    if maps is None:
        return out
    given = list(masks) if masks is not None else [None] * truth.size
    if not len(maps) == len(given) == truth.size:
        raise ShapeError(
            f"{len(maps)} maps and {len(given)} masks for {truth.size} labels", expected="one each"
        )
    pixel_truth = [
        np.zeros(np.shape(maps[i]), bool) if mask is None and not truth[i] else mask
        for i, mask in enumerate(given)
    ]
    _merge(out, rank_pixels(maps, pixel_truth).figures())
    if pixel_threshold is not None:
        tp, called, bad = pixel_counts(maps, pixel_truth, pixel_threshold)
        if bad:
            out["pixel_f1"], out["pixel_iou"] = 2 * tp / (called + bad), tp / (called + bad - tp)
        else:
            out.omitted |= dict.fromkeys(("pixel_f1", "pixel_iou"), "no defect pixel in any mask")
    return out


def pixel_counts(
    maps: Maps, masks: Sequence[NDArray[np.bool_] | None], threshold: float
) -> tuple[int, int, int]:
    """Return how many pixels are rightly called, called, and defective, of maps with a mask."""
    tp = called = bad = 0
    for values, mask in zip(maps, masks, strict=True):
        if mask is not None:
            seen = seen_of(values)
            verdict = (np.asarray(values, dtype=np.float32) > np.float32(threshold)) & seen
            tp, bad = tp + int((verdict & mask).sum()), bad + int((mask & seen).sum())
            called += int(verdict.sum())
    return tp, called, bad


def _merge(into: Metrics, more: Metrics) -> None:
    into.update(more)
    into.omitted |= more.omitted
