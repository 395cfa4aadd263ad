"""What inference is given and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]
#: One image, or the two of a pair, current and history.
Sample: TypeAlias = Image | Sequence[Image]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one sample.

    Parameters
    ----------
    score
        Of the whole sample, larger is more anomalous.
    verdict
        ``"anomalous"`` where the score is above the threshold, else ``"normal"``; of a pair
        ``"changed"`` or ``"unchanged"``.
    map
        ``[H, W]`` float32 map of anomalies, or of changes, over the whole image: at the extractor's
        input size, or in the image's own aspect where that was kept (`own_map`). Of a model over
        tiles at the image's size, or smaller (`headwater.tiles.joined_size`).
    threshold
        What the score was compared with.
    pixel_threshold
        Map value that few normal pixels exceed, None where the model has none.
    looked
        ``[H, W]`` bool, which pixels of the map were looked at: not what a crop cut off, nor what
        lies outside of the region of interest, which have the map's lowest value. None for all.
    p_value
        Share of normal images that score as high, this one counted: (1 + how many of n do) /
        (n + 1). None where the model has no out-of-fold scores, or its factors are not its own.
    """

    score: float
    verdict: str
    map: NDArray[np.float32]
    threshold: float
    pixel_threshold: float | None = None
    looked: NDArray[np.bool_] | None = None
    p_value: float | None = None
