"""From latent maps to scores: likelihood maps, their fusion over scales, the top-K mean.

Likelihood fusion needs a number to subtract from (``max(P) - P``). Taken over a test set, as public
code does, it makes an image's score depend on the others. Here it is the largest value on held-out
normal images, found when the head is fitted and stored with it, or the image's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from heads.contract import Scores, Size
from heads.looking import largest, resized, values_of
from headwater.errors import ConfigError

Fusion = Literal["sum", "product", "mean"]
Normaliser = Literal["stored", "image"]


def log_likelihood(z: Tensor) -> Tensor:
    """Return ``-1/2 mean_c z**2``, the log-likelihood per channel at each position.

    The mean instead of the sum over channels (as MSFlow does) keeps its exponential in range.

    Parameters
    ----------
    z
        ``[B, C, H, W]``.

    Returns
    -------
    Tensor
        ``[B, H, W]`` float32.
    """
    return -0.5 * z.float().square().mean(1)


def upsample(maps: Tensor, size: Size) -> Tensor:
    """Resize ``[B, h, w]`` bilinearly to ``[B, *size]``, of what is looked at alone."""
    return maps if tuple(maps.shape[1:]) == tuple(size) else resized(maps, size)


def top_k_mean(maps: Tensor, fraction: float) -> Tensor:
    """Return the mean of the largest ``fraction`` of each map's values, at least one value.

    Of the values that are looked at (`heads.looking`).

    Parameters
    ----------
    maps
        ``[B, H, W]``.
    fraction
        In [0, 1]; 0 is the maximum, 1 the mean.

    Returns
    -------
    Tensor
        ``[B]``.

    Examples
    --------
    >>> top_k_mean(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 0.5)
    tensor([3.5000])
    """
    return torch.cat([_top(values, fraction) for values in values_of(maps)])


def _top(values: Tensor, fraction: float) -> Tensor:
    """Return the mean of the largest share of each row of ``[n, values]``."""
    k = min(values.shape[1], max(1, round(fraction * values.shape[1])))
    if k == 1:
        return values.amax(1)
    if k == values.shape[1]:
        return values.mean(1)
    return values.topk(k, dim=1, sorted=False).values.mean(1)


def fuse(log_maps: Sequence[Tensor], size: Size, how: Fusion) -> Tensor:
    """Fuse the likelihood maps of several scales or branches at one size.

    Log-likelihoods are up-sampled first and exponentiated then: GCAFlow, section 3.7; DNFAD,
    eq. 15.

    Parameters
    ----------
    log_maps
        ``[B, h_i, w_i]`` each.
    size
        ``(height, width)`` of the result.
    how
        ``sum`` or ``mean`` of the likelihoods, or their ``product``.

    Returns
    -------
    Tensor
        ``[B, *size]``.
    """
    large = [upsample(m, size) for m in log_maps]
    if how == "product":
        return torch.stack(large).sum(0).exp()
    total = torch.stack([m.exp() for m in large]).sum(0)
    return total / len(large) if how == "mean" else total


class LikelihoodScores(nn.Module):
    """Scores ``max(P) - P`` of fused likelihood maps, with a stored or a per-image maximum.

    Parameters
    ----------
    map_fusion, image_fusion
        How scales are fused for the map and for the image score.
    top_k
        The image score is the mean of this share of the largest pixels.
    normaliser
        ``stored``: the largest P on held-out normals, fixed by `fit`; scores of different images
        are comparable. ``image``: each image's own largest P, the formula taken literally.
    """

    map_top: Tensor
    image_top: Tensor

    def __init__(
        self,
        map_fusion: Fusion = "sum",
        image_fusion: Fusion = "sum",
        top_k: float = 0.03,
        normaliser: Normaliser = "stored",
    ) -> None:
        super().__init__()
        if normaliser not in ("stored", "image"):
            raise ConfigError(f"normaliser {normaliser!r}", expected="stored or image")
        if not 0 <= top_k <= 1:
            raise ConfigError(f"top_k {top_k}", expected="a share of the pixels, 0 to 1")
        self.map_fusion, self.image_fusion = map_fusion, image_fusion
        self.top_k, self.normaliser = top_k, normaliser
        self.register_buffer("map_top", torch.zeros(()))
        self.register_buffer("image_top", torch.zeros(()))

    def fused(self, log_maps: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Return the fused likelihoods for the map and for the image score, ``[B, *size]`` each."""
        for_map = fuse(log_maps, size, self.map_fusion)
        if self.image_fusion == self.map_fusion:
            return for_map, for_map
        return for_map, fuse(log_maps, size, self.image_fusion)

    def fit(self, batches: Iterable[Sequence[Tensor]], size: Size) -> None:
        """Fix the stored maxima on the log-likelihood maps of held-out normal images."""
        tops = [[largest(p).max() for p in self.fused(maps, size)] for maps in batches]
        if tops:
            self.map_top.copy_(torch.stack([t[0] for t in tops]).max())
            self.image_top.copy_(torch.stack([t[1] for t in tops]).max())

    def forward(self, log_maps: Sequence[Tensor], size: Size) -> Scores:
        """Return maps and image scores of log-likelihood maps ``[B, h_i, w_i]``."""
        for_map, for_image = self.fused(log_maps, size)
        if self.normaliser == "image":
            maps = largest(for_map)[:, None, None] - for_map
            image_maps = largest(for_image)[:, None, None] - for_image
        else:
            maps, image_maps = self.map_top - for_map, self.image_top - for_image
        return Scores(image=top_k_mean(image_maps, self.top_k), maps=maps)
