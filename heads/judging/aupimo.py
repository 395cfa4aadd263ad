"""Recall of each defective image where normal images show next to no false pixels.

Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low
Tolerance", arXiv:2401.01984 (2024). A threshold's false-positive rate is the
mean over the *normal* images of the share of their pixels at or above it; the recall of a defective
image is the share of its defective pixels there. A score is the mean of that recall over the
logarithm of the rate, from `LOW` to `HIGH`, and the figure of a test set is the mean of its
defective images' scores: each image counts once, however large its defect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heads.looking import seen_of
from headwater.errors import ShapeError

Floats = NDArray[np.float64]
#: Bounds of the false-positive rate.
LOW, HIGH = 1e-5, 1e-4


def aupimo(
    maps: Sequence[ArrayLike],
    masks: Sequence[NDArray[np.bool_] | None],
    *,
    low: float = LOW,
    high: float = HIGH,
) -> Floats | None:
    """Return the score of each defective image, in its order.

    The recall at a rate z is the largest of all thresholds whose rate is no more than z: a step
    function, integrated exactly.

    Parameters
    ----------
    maps
        Score maps ``[H, W]`` of any sizes; what is masked does not count.
    masks
        Per map a bool mask of its size, empty for a normal image; None where the truth is unknown.
    low, high
        Bounds of the rate, 0 < low < high.

    Returns
    -------
    array or None
        ``[M]`` in 0 to 1. None where no image is normal or none defective, or where the normal
        images have too few pixels for the lower rate to be a whole one.

    Raises
    ------
    ShapeError
        A mask of another size than its map.
    """
    normal, defects = [], []
    for i, (heat, mask) in enumerate(zip(maps, masks, strict=True)):
        if mask is None:
            continue
        values = np.ma.getdata(np.asanyarray(heat)).astype(np.float32)
        if values.shape != mask.shape:
            raise ShapeError(
                f"map {i} has shape {values.shape}, its mask {mask.shape}", expected="equal shapes"
            )
        seen = seen_of(heat)
        if (mask & seen).any():
            defects.append(np.sort(values[mask & seen]))
        elif not mask.any():
            normal.append(values[seen])
    normal = [values for values in normal if values.size]
    if not normal or not defects or low * sum(v.size for v in normal) < 1:
        return None
    edges, rates = _highest(normal, high)
    # Between the rate of one distinct value and that of the next lower one, a threshold may go down
    # to just above the latter: what of a defect lies above it is found.
    starts = np.clip(np.concatenate([[0.0], rates[:-1]]), low, high)
    width = np.log(np.clip(rates, low, high) / starts)
    found = [
        float((1 - np.searchsorted(values, edges, side="right") / values.size) @ width)
        for values in defects
    ]
    return np.array(found) / math.log(high / low)


def _highest(normal: Sequence[NDArray[np.float32]], most: float) -> tuple[Floats, Floats]:
    """Return the distinct values of normal pixels from the highest down, and the rate at each.

    As far down as the first rate above `most`, or to the last value.
    """
    count, values, weights = len(normal), [], []
    for own in normal:
        # Where more of one image is above, the mean over all images is above `most`.
        kept = min(own.size, math.floor(most * count * own.size) + 1)
        values.append(np.partition(own, own.size - kept)[own.size - kept :])
        weights.append(np.full(kept, 1 / (count * own.size)))
    pooled, shares = np.concatenate(values), np.concatenate(weights)
    order = np.argsort(-pooled, kind="stable")
    pooled, rates = pooled[order], np.cumsum(shares[order])
    last = np.append(pooled[1:] != pooled[:-1], True)
    edges, rates = pooled[last].astype(np.float64), rates[last]
    stop = int(np.searchsorted(rates, most, side="right")) + 1
    return edges[:stop], rates[:stop]
