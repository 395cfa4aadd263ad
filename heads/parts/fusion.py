"""One coupling over all scales: the fusion of MSFlow and, with channel attention, of GCAFlow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.parts.attention import channel_attention
from heads.parts.coupling import affine
from heads.parts.invertible import Invertible
from heads.parts.subnets import ChannelNorm, damp
from headwater.errors import ShapeError

Dims = tuple[int, int, int]


class FusionSubnet(nn.Module):
    """Scale and shift of every scale from one half of all scales (GCAFlow, section 3.6, figure 5).

    The maps are pooled to the coarsest size and concatenated; a bottleneck (3x3 to a quarter of the
    channels, layer norm, ReLU, channel attention on these hidden channels, 1x1 back) mixes them;
    its output is split by scale, up-sampled bilinearly and added to the maps themselves (the
    identity of figure 5). A 1x1 convolution per scale makes scale and shift of the sum.

    Parameters
    ----------
    sizes
        ``(C_i, H_i, W_i)`` of the passive halves, fine to coarse.
    channels_out
        Per scale the channels of the active half; the output has twice as many.
    attention
        ``gca``, ``se``, ``eca`` or ``none``.
    """

    def __init__(
        self, sizes: Sequence[Dims], channels_out: Sequence[int], attention: str | None = "gca"
    ) -> None:
        super().__init__()
        self.channels = [c for c, _, _ in sizes]
        self.size = sizes[-1][1:]
        total = sum(self.channels)
        hidden = max(1, total // 4)
        self.squeeze = nn.Conv2d(total, hidden, 3, padding=1)
        self.norm = ChannelNorm(hidden)
        # Its weights come off the same generator; the others' must not depend on its kind.
        with torch.random.fork_rng(devices=[]):
            self.attention = channel_attention(attention, hidden)
        self.expand = nn.Conv2d(hidden, total, 1)
        self.heads = nn.ModuleList(
            damp(nn.Conv2d(c, 2 * out, 1))
            for c, out in zip(self.channels, channels_out, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return per scale ``[B, 2 C_out, H, W]`` of the passive halves ``[B, C, H, W]``."""
        pooled = [F.adaptive_avg_pool2d(x, self.size) for x in maps]
        fused = torch.relu(self.norm(self.squeeze(torch.cat(pooled, 1))))
        fused = self.expand(self.attention(fused))
        out = []
        for x, part, head in zip(maps, fused.split(self.channels, 1), self.heads, strict=True):
            if part.shape[2:] != x.shape[2:]:
                part = F.interpolate(part, x.shape[2:], mode="bilinear", align_corners=False)
            out.append(head(x + part))
        return out


class FusionCoupling(Invertible):
    """An affine coupling whose subnets see one half of every scale and change the other half.

    Both halves are changed, one after the other:
    ``y_2 = x_2 exp(s(x_1)) + t(x_1)``, ``y_1 = x_1 exp(s(y_2)) + t(y_2)``, where s and t of all
    scales come from one subnet over all scales.

    Parameters
    ----------
    dims_in
        ``(C_i, H_i, W_i)`` per scale, fine to coarse.
    clamp
        Soft clamp of the log-scale.
    attention
        Channel attention in the subnets.
    """

    def __init__(
        self,
        dims_in: Iterable[Dims],
        clamp: float = 1.9,
        attention: str | None = "gca",
    ) -> None:
        dims = list(dims_in)
        super().__init__(dims)
        if any(a[1] < b[1] or a[2] < b[2] for a, b in itertools.pairwise(dims)):
            raise ShapeError(f"fusion over maps {dims}", expected="maps from fine to coarse")
        self.clamp = clamp
        self.first = [c // 2 for c, _, _ in dims]
        self.second = [c - c // 2 for c, _, _ in dims]
        halves_1 = [(n, h, w) for n, (_, h, w) in zip(self.first, dims, strict=True)]
        halves_2 = [(n, h, w) for n, (_, h, w) in zip(self.second, dims, strict=True)]
        self.subnet_1 = FusionSubnet(halves_1, self.second, attention)
        self.subnet_2 = FusionSubnet(halves_2, self.first, attention)

    def change(self, maps: list[Tensor], rev: bool) -> tuple[list[Tensor], Tensor]:
        """Change both halves of all scales, or undo it where `rev`."""
        pairs = [x.split([a, b], 1) for x, a, b in zip(maps, self.first, self.second, strict=True)]
        one, two = [p[0] for p in pairs], [p[1] for p in pairs]
        if not rev:
            two, log_det_2 = self._side(two, self.subnet_1(one), rev)
            one, log_det_1 = self._side(one, self.subnet_2(two), rev)
        else:
            one, log_det_1 = self._side(one, self.subnet_2(two), rev)
            two, log_det_2 = self._side(two, self.subnet_1(one), rev)
        return [torch.cat(p, 1) for p in zip(one, two, strict=True)], log_det_1 + log_det_2

    def _side(
        self, active: list[Tensor], changes: list[Tensor], rev: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Scale and shift the active halves of all scales; back where `rev`."""
        out, log_det = [], active[0].new_zeros(len(active[0]))
        for x, raw in zip(active, changes, strict=True):
            y, log_scale = affine(x, raw, self.clamp, rev)
            out.append(y)
            log_det = log_det + log_scale.sum((1, 2, 3))
        return out, -log_det if rev else log_det
