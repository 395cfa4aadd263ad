"""Coupling over maps of several scales whose subnets see all scales (CS-Flow; CSA-Flow, 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn

from heads.parts.coupling import affine
from heads.parts.cross_attention import CrossScaleSelfAttention


class CrossScaleSubnet(nn.Module):
    """Two convolutions per scale; the second takes in the neighbouring scales.

    Each scale's output is the sum of its own convolution, one of stride 2 from the finer scale
    and one of the up-sampled coarser scale, times a gain that begins at 0.

    Parameters
    ----------
    channels_in, channels_out, hidden
        Channels, the same at every scale.
    scales
        Number of scales, fine to coarse.
    kernel
        Kernel size of all convolutions, odd.
    slope
        Of the leaky ReLU between them.
    attention_depth
        Query depth of self-attention over the hidden maps of all scales; 0 for none.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        hidden: int,
        scales: int,
        kernel: int,
        slope: float = 0.1,
        attention_depth: int = 0,
    ) -> None:
        super().__init__()
        self.slope, self.scales = slope, scales
        pad = kernel // 2

        def second(stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(hidden, channels_out, kernel, stride=stride, padding=pad)

        self.enter = nn.ModuleList(
            nn.Conv2d(channels_in, hidden, kernel, padding=pad) for _ in range(scales)
        )
        self.attend = CrossScaleSelfAttention(hidden, attention_depth) if attention_depth else None
        self.own = nn.ModuleList(second() for _ in range(scales))
        self.down = nn.ModuleList(second(stride=2) for _ in range(scales - 1))
        self.up = nn.ModuleList(second() for _ in range(scales - 1))
        self.gain = nn.Parameter(torch.zeros(scales))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map ``[B, channels_in, h_k, w_k]`` to ``[B, channels_out, h_k, w_k]`` per scale."""
        hidden = [
            F.leaky_relu(conv(x), self.slope) for conv, x in zip(self.enter, maps, strict=True)
        ]
        if self.attend is not None:
            hidden = self.attend(hidden)
        out = []
        for k, x in enumerate(hidden):
            size = x.shape[2:]
            y = self.own[k](x)
            if k > 0:
                y = y + resize(self.down[k - 1](hidden[k - 1]), size)
            if k + 1 < self.scales:
                y = y + self.up[k](resize(hidden[k + 1], size))
            out.append(y * self.gain[k].to(y.dtype))
        return out


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly where they are not of `size` yet (odd sizes do not halve evenly)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class CrossScaleCoupling(InvertibleModule):
    """Two-sided affine coupling of several maps at once (CS-Flow; CSA-Flow, section 3.2).

    The halves of every scale are scaled and shifted from the other halves of all scales.

    Parameters
    ----------
    dims_in
        One shape ``(C, h_k, w_k)`` per scale, C the same at each.
    subnet
        ``(channels in, channels out) -> module`` that maps a list of maps to a list.
    clamp
        Alpha of the soft clamp.
    """

    def __init__(
        self,
        dims_in: Sequence[Sequence[int]],
        subnet: Callable[[int, int], nn.Module],
        clamp: float = 3.0,
    ) -> None:
        super().__init__([tuple(d) for d in dims_in])
        channels = int(dims_in[0][0])
        self.first, self.clamp = channels // 2, clamp
        second = channels - self.first
        self.subnet1 = subnet(second, 2 * self.first)
        self.subnet2 = subnet(self.first, 2 * second)

    def output_dims(self, input_dims: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the input's shapes: a coupling changes none."""
        return input_dims

    def _side(
        self, active: list[Tensor], passive: list[Tensor], subnet: nn.Module, rev: bool
    ) -> tuple[list[Tensor], Tensor]:
        pairs = [
            affine(x, raw, self.clamp, rev) for x, raw in zip(active, subnet(passive), strict=True)
        ]
        total = torch.stack([s.flatten(1).sum(1) for _, s in pairs]).sum(0)
        return [y for y, _ in pairs], -total if rev else total

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Couple the halves of all scales, or undo it where `rev`."""
        a = [x[:, : self.first] for x in x_or_z]
        b = [x[:, self.first :] for x in x_or_z]
        if rev:
            b, logdet2 = self._side(b, a, self.subnet2, rev)
            a, logdet1 = self._side(a, b, self.subnet1, rev)
        else:
            a, logdet1 = self._side(a, b, self.subnet1, rev)
            b, logdet2 = self._side(b, a, self.subnet2, rev)
        joined = tuple(torch.cat(pair, 1) for pair in zip(a, b, strict=True))
        return joined, logdet1 + logdet2
