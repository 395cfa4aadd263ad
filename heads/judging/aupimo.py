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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.judging.metrics import Maps
from heads.looking import seen_of
from headwater.errors import ShapeError

Floats = NDArray[np.float64]
#: Draws of a test set that are looked at together: bounds the memory.
_DRAWS = 100
#: Bounds of the false-positive rate.
LOW, HIGH = 1e-5, 1e-4


def aupimo(
    maps: Maps,
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
    found = TopPixels.of(maps, masks, high)
    if found is None or low * found.pixels < 1:
        return None
    return found.scores(np.ones((1, len(found.normal))), low, high)[0]


@dataclass(frozen=True)
class TopPixels:
    """The highest pixels of normal images, and those of defects: all that the scores are made of.

    Parameters
    ----------
    normal, defective
        Numbers of the images among all.
    pixels
        Of all normal images together.
    values, image, share
        ``[P]`` the highest normal pixels from the highest down, the place of each one's image in
        `normal`, and what share of its image one pixel is.
    defects
        ``[M]``, the values of each one's defective pixels, ascending.
    """

    normal: list[int]
    defective: list[int]
    pixels: int
    values: Floats
    image: NDArray[np.int64]
    share: Floats
    defects: list[NDArray[np.float32]]

    @classmethod
    def of(
        cls,
        maps: Maps,
        masks: Sequence[NDArray[np.bool_] | None],
        high: float = HIGH,
    ) -> TopPixels | None:
        """Return them of maps as `aupimo` takes them, down to the rate `high`.

        None where no image is normal or none defective.
        """
        normal: dict[int, NDArray[np.float32]] = {}
        defects: dict[int, NDArray[np.float32]] = {}
        for i, (heat, mask) in enumerate(zip(maps, masks, strict=True)):
            if mask is None:
                continue
            values = np.ma.getdata(np.asanyarray(heat)).astype(np.float32)
            if values.shape != mask.shape:
                raise ShapeError(
                    f"map {i} has shape {values.shape}, its mask {mask.shape}",
                    expected="equal shapes",
                )
            seen = seen_of(heat)
            if (mask & seen).any():
                defects[i] = np.sort(values[mask & seen])
            elif not mask.any() and seen.any():
                normal[i] = values[seen]
        if not normal or not defects:
            return None
        tops, pixels = [], sum(v.size for v in normal.values())
        for own in normal.values():
            # Where more of one image is above, the mean over all images is above `high`.
            kept = min(own.size, math.floor(high * len(normal) * own.size) + 1)
            tops.append(np.partition(own, own.size - kept)[own.size - kept :])
        pooled = np.concatenate(tops)
        image = np.repeat(np.arange(len(tops)), [t.size for t in tops])
        share = np.array([1 / v.size for v in normal.values()])[image]
        order = np.argsort(-pooled, kind="stable")
        return cls(
            [*normal],
            [*defects],
            pixels,
            pooled[order].astype(np.float64),
            image[order],
            share[order],
            [*defects.values()],
        )

    def scores(self, times: Floats, low: float = LOW, high: float = HIGH) -> Floats:
        """Return the defects' scores where each normal image is there so often, ``[D, M]``.

        Parameters
        ----------
        times
            ``[D, normal images]``, of the same sum a row.
        low, high
            Bounds of the rate; `high` no more than that of `of`.
        """
        last = np.append(self.values[1:] != self.values[:-1], True)
        count = min(len(self.values), 4096)
        while True:
            whole = times.sum(1, keepdims=True)
            at = np.flatnonzero(last[:count])
            rates = np.cumsum(times[:, self.image[:count]] * self.share[:count], axis=1)[:, at]
            rates /= whole
            if count == len(self.values) or (at.size and (rates[:, -1] > high).all()):
                break
            count = min(len(self.values), 2 * count)
        edges = self.values[at]
        # Between the rate of one distinct value and that of the next lower one, a threshold may go
        # down to just above the latter: what of a defect lies above it is found.
        starts = np.concatenate([np.zeros((len(rates), 1)), rates[:, :-1]], axis=1)
        width = np.log(np.clip(rates, low, high) / np.clip(starts, low, high))
        recall = [1 - np.searchsorted(v, edges, side="right") / v.size for v in self.defects]
        return np.asarray(width @ np.array(recall).T / math.log(high / low))

    def figures(self, times: Floats) -> dict[str, Floats]:
        """Return the figure of each draw of all images, ``[D, N]`` times each one's."""
        if LOW * self.pixels < 1:
            return {}
        found = np.empty(len(times))
        for start in range(0, len(times), _DRAWS):
            part = times[start : start + _DRAWS]
            weights = part[:, self.defective]
            found[start : start + _DRAWS] = (self.scores(part[:, self.normal]) * weights).sum(
                1
            ) / weights.sum(1)
        return {"pixel_aupimo": found}
