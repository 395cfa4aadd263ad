"""F²R over a band of (alpha, beta): the mean of the maps of several points, none of them chosen.

The paper's best points lie near the diagonal, where local and global parts are scaled alike, but
which of them is best shows with labels alone. Each point's distances have another scale, so they
are standardised before they are averaged, by the normal positions that the gallery left out.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from heads.gallery.neighbours import Gallery

#: (1, 1) and the points of the grid of step 0.3 that are near the diagonal and not too small.
BAND = (
    (1.0, 1.0),
    *(
        (round(0.3 * a, 1), round(0.3 * b, 1))
        for a in range(1, 5)
        for b in range(1, 5)
        if abs(a - b) <= 1
    ),
)
#: Normal positions that tell the scale of a point's distances.
DRAWN = 8192


class Reverses(Protocol):
    """What is asked of the head: members of the gallery, the way through the net and back."""

    members: Tensor

    def latents(self, vectors: Tensor) -> Tensor:
        """Return z of ``[n, C]`` vectors."""

    def reversed_latents(self, z: Tensor, alpha: float, beta: float) -> Tensor:
        """Return the features of ``[n, C]`` latents at a point."""

    def whitening(self, vectors: Tensor) -> Tensor:
        """Return vectors as they are compared."""


class Band(nn.Module):
    """Galleries at the points of `BAND`; their distances standardised and averaged.

    The galleries follow from the head's members and are made when they are asked for.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(BAND)))
        self.register_buffer("deviation", torch.ones(len(BAND)))
        self._galleries: tuple[Tensor, list[Gallery]] | None = None

    def _made(self, head: Reverses) -> list[Gallery]:
        if self._galleries is None or self._galleries[0] is not head.members:
            z, made = head.latents(head.members), []
            for point in BAND:
                gallery = Gallery(z.shape[1]).to(z.device)
                gallery.set(head.whitening(head.reversed_latents(z, *point)))
                made.append(gallery)
            self._galleries = head.members, made
        return self._galleries[1]

    def distances(self, head: Reverses, vectors: Tensor) -> Tensor:
        """Return the nearest distances of ``[n, C]`` vectors at each point, ``[points, n]``."""
        z = head.latents(vectors)
        return torch.stack(
            [
                gallery.nearest(head.whitening(head.reversed_latents(z, *point)))[0]
                for point, gallery in zip(BAND, self._made(head), strict=True)
            ]
        )

    def settle(self, head: Reverses, vectors: Tensor, seed: int) -> None:
        """Learn the scale of each point's distances from normal vectors ``[n, C]``.

        Most are not in the gallery, which holds a hundredth or a tenth of them.
        """
        draw = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:DRAWN]
        far = self.distances(head, vectors[draw].float()).double()
        self.mean.copy_(far.mean(1))
        self.deviation.copy_(far.std(1, correction=0).clamp_min(1e-12))

    def forward(self, head: Reverses, vectors: Tensor) -> Tensor:
        """Return the mean standardised distance of ``[n, C]`` vectors, ``[n]``."""
        far = self.distances(head, vectors)
        return ((far - self.mean[:, None]) / self.deviation[:, None]).mean(0)
