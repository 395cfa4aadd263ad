"""What values a picture has: what may be drawn into it, and how much of it is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from headwater.errors import DataError

#: Pixels that are looked at to learn a picture's tones.
_ENOUGH = 1 << 17


@dataclass(frozen=True)
class Tones:
    """What values a picture has.

    Parameters
    ----------
    low, high
        ``[C]``: what 2 % of the pixels are below, and above.
    border
        ``[C]``: the middle value along the picture's border.
    grain
        Deviation of a pixel from those around it.
    limits
        What values a pixel may have.
    step
        The least difference of two values.
    grey
        Whether all channels are the same.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    border: NDArray[np.float64]
    grain: float
    limits: tuple[float, float]
    step: float
    grey: bool

    @classmethod
    def of(cls, image: NDArray[Any], roi: NDArray[np.bool_] | None) -> Tones:
        """Return those of a picture ``[H, W, C]``, inside of its region of interest.

        Raises `DataError` for one without a finite value.
        """
        every = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / _ENOUGH)))
        some = image[::every, ::every].astype(np.float64)
        seen = some.reshape(-1, some.shape[-1])
        # Of a tiny region none of these pixels may be.
        if roi is not None and roi[::every, ::every].any():
            seen = some[roi[::every, ::every]]
        seen = seen[np.isfinite(seen).all(axis=1)]
        if not seen.size:
            raise DataError("a picture without a finite value", expected="pixels to draw into")
        limits = (0.0, 255.0)
        if image.dtype != np.uint8:
            # Of more bits nobody says what the camera can give: what it gave.
            limits = float(seen.min()), float(seen.max())
        whole = np.issubdtype(image.dtype, np.integer)
        middle = image.shape[0] // 2, image.shape[1] // 2
        near = image[middle[0] // 2 :, middle[1] // 2 :][:256, :256, 0].astype(np.float64)
        near = np.nan_to_num(near, posinf=limits[0], neginf=limits[0])
        rough = np.abs(near - median_filter(near, 3))
        rim = np.concatenate([some[0], some[-1], some[:, 0], some[:, -1]])
        rim = rim[np.isfinite(rim).all(axis=1)]
        low, high = np.quantile(seen, (0.02, 0.98), axis=0)
        return cls(
            low,
            high,
            np.median(rim if rim.size else seen, axis=0),
            float(1.48 * np.median(rough)),
            limits,
            1.0 if whole else max((limits[1] - limits[0]) / 65535, 1e-12),
            bool((seen == seen[:, :1]).all()),
        )

    @property
    def spread(self) -> float:
        """How far apart bright and dark are, never nothing."""
        least = (self.limits[1] - self.limits[0]) / 50
        return float(max((self.high - self.low).max(), least, 2 * self.step))

    def tint(self, rng: np.random.Generator, most: float) -> NDArray[np.float64]:
        """Return a factor a channel around 1, the same for all of a grey picture."""
        found = 1 + rng.uniform(-most, most, len(self.low))
        return np.full_like(found, found[0]) if self.grey else found
