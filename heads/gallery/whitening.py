"""Features in which all directions count alike, where a few channels would decide every distance.

Some channels of a transformer's tokens are far larger than the others: of vit_tiny's 384 four hold
half of the variance of normal patches, and a Euclidean distance sees little else. Convolutional
nets have no such channels, and there whitening costs (docs/benchmarks.md). Which it is shows in
the normal images alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heads.gallery.neighbours import Growing

#: The largest twentieth of the channels.
TOP = 0.05
#: From this share of the variance in them on, ``auto`` whitens. Measured: 0.18 to 0.22 in
#: convolutional nets, 0.57 in vit_tiny.
MOST = 0.4
#: Of the mean variance of a direction, added to each: what hardly varies is not blown up.
RIDGE = 0.01
_BLOCK = 8192


class Whitening(Growing):
    """Turns vectors so that normal ones have equal variance in all directions, or leaves them.

    Parameters
    ----------
    channels
        Of the vectors.
    when
        ``auto``: where the largest twentieth of the channels holds `MOST` of the variance;
        ``always`` or ``never``.
    """

    growing = ("matrix",)
    matrix: Tensor

    def __init__(self, channels: int, when: str) -> None:
        super().__init__()
        self.when = when
        #: Share of the variance in the largest twentieth of the channels, where it was looked at.
        self.top_share: float | None = None
        if when != "never":  # no rows: not whitened
            self.register_buffer("matrix", torch.empty(0, channels))

    @property
    def used(self) -> bool:
        """Whether it changes anything."""
        return self.when != "never" and len(self.matrix) > 0

    def learn(self, vectors: Tensor) -> dict[str, float]:
        """Settle from normal vectors ``[n, C]`` whether they are whitened, and how; return figures.

        The matrix is the inverse root of their covariance (ZCA), scaled so that distances keep
        their size.
        """
        if self.when == "never" or len(vectors) < 2:
            return {}
        blocks = range(0, len(vectors), _BLOCK)
        mean = sum(vectors[k : k + _BLOCK].double().sum(0) for k in blocks) / len(vectors)
        square = sum((vectors[k : k + _BLOCK].double() - mean).square().sum(0) for k in blocks)
        most = max(1, round(TOP * vectors.shape[1]))
        top = square.sort(descending=True).values[:most].sum()  # type: ignore[union-attr]
        self.top_share = float(top / square.sum().clamp_min(1e-30))  # type: ignore[union-attr]
        if self.when == "always" or self.top_share >= MOST:
            parts = ((vectors[k : k + _BLOCK].double() - mean) for k in blocks)
            covariance = sum(x.T @ x for x in parts) / len(vectors)
            values, turned = torch.linalg.eigh(covariance)
            level = values.mean().clamp_min(1e-30)
            gain = (level / (values.clamp_min(0) + RIDGE * level)).sqrt()
            self.matrix = ((turned * gain) @ turned.T).float().to(self.matrix.device)
        return {"whitened": float(self.used), "top_channels_variance": self.top_share}

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[n, C]`` vectors, whitened where they are to be."""
        return vectors.float() @ self.matrix.to(vectors.device) if self.used else vectors
