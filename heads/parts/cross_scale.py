"""Coupling over maps of several scales whose subnets see all scales (CS-Flow; CSA-Flow, 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.parts.coupling import affine
from heads.parts.cross_attention import CrossScaleSelfAttention
from heads.parts.invertible import Invertible


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
        # In place, where the gradient can be told from the result.
        inplace = self.slope > 0
        hidden = [
            F.leaky_relu(conv(x), self.slope, inplace)
            for conv, x in zip(self.enter, maps, strict=True)
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
                y = y + conv_resized(hidden[k + 1], self.up[k], size)  # type: ignore[arg-type]
            out.append(y * self.gain[k].to(y.dtype))
        return out


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly where they are not of `size` yet (odd sizes do not halve evenly)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def conv_resized(x: Tensor, conv: nn.Conv2d, size: Sequence[int]) -> Tensor:
    """Return ``conv(resize(x, size))``, with the channels mixed before the map is enlarged.

    Resizing acts on positions and each tap of a kernel on channels, so they change places: all
    taps are applied to the small map, as one 1x1 convolution, and what they give is resized,
    shifted and added up by two small matrices (rows and columns). For a map enlarged twice that
    is a quarter of the multiplications. It pays where the convolution takes in more channels than
    it gives out, since what is enlarged has all taps of the latter.

    Parameters
    ----------
    x
        ``[B, C, h, w]``.
    conv
        Of stride 1, an odd square kernel, zeros beyond the borders.
    size
        ``(H, W)``.

    Returns
    -------
    Tensor
        ``[B, C_out, H, W]``.
    """
    height, width = x.shape[2:]
    if conv.in_channels <= conv.out_channels or size[0] * size[1] < 2 * height * width:
        return cast("Tensor", conv(resize(x, size)))
    kernel, out, count = conv.kernel_size[0], conv.out_channels, len(x)
    mixing = conv.weight.to(x.dtype).permute(2, 3, 0, 1).reshape(-1, conv.in_channels, 1, 1)
    taps = F.conv2d(x, mixing).permute(0, 2, 3, 1)
    taps = taps.reshape(count, height, width, kernel, kernel, out)
    # Columns first: (w, column tap) -> W, then rows: (h, row tap) -> H.
    wide = taps.permute(2, 4, 0, 1, 3, 5).reshape(width * kernel, -1)
    wide = (_taps(width, size[1], kernel, x) @ wide).reshape(-1, count, height, kernel, out)
    high = wide.permute(2, 3, 1, 0, 4).reshape(height * kernel, -1)
    high = (_taps(height, size[0], kernel, x) @ high).reshape(size[0], count, size[1], out)
    y = high.permute(1, 3, 0, 2).contiguous(memory_format=torch.channels_last)
    return y if conv.bias is None else y + conv.bias.to(y.dtype)[:, None, None]


def _taps(small: int, large: int, kernel: int, like: Tensor) -> Tensor:
    """Return ``[large, small * kernel]``: resizing one axis, shifted by each tap of a kernel.

    Twice as large, the weights are quarters, which bfloat16 holds exactly.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    eye = torch.eye(small, device=like.device, dtype=wide)[None]
    enlarge = F.interpolate(eye, size=large, mode="linear", align_corners=False)[0].T
    edge = kernel // 2
    padded = F.pad(enlarge, (0, 0, edge, edge))
    shifted = [padded[tap : tap + large] for tap in range(kernel)]
    return torch.stack(shifted, 2).reshape(large, -1).to(like.dtype)


class CrossScaleCoupling(Invertible):
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
        super().__init__(dims_in)
        channels = int(dims_in[0][0])
        self.first, self.clamp = channels // 2, clamp
        second = channels - self.first
        self.subnet1 = subnet(second, 2 * self.first)
        self.subnet2 = subnet(self.first, 2 * second)

    def _side(
        self, active: list[Tensor], passive: list[Tensor], subnet: nn.Module, rev: bool
    ) -> tuple[list[Tensor], Tensor]:
        pairs = [
            affine(x, raw, self.clamp, rev) for x, raw in zip(active, subnet(passive), strict=True)
        ]
        total = torch.stack([s.flatten(1).sum(1) for _, s in pairs]).sum(0)
        return [y for y, _ in pairs], -total if rev else total

    def change(self, maps: list[Tensor], rev: bool) -> tuple[list[Tensor], Tensor]:
        """Couple the halves of all scales, or undo it where `rev`."""
        # `split`, whose gradient is one concatenation: slices fill and add two maps of zeros.
        halves = [x.split([self.first, x.shape[1] - self.first], 1) for x in maps]
        a, b = [h[0] for h in halves], [h[1] for h in halves]
        if rev:
            b, logdet2 = self._side(b, a, self.subnet2, rev)
            a, logdet1 = self._side(a, b, self.subnet1, rev)
        else:
            a, logdet1 = self._side(a, b, self.subnet1, rev)
            b, logdet2 = self._side(b, a, self.subnet2, rev)
        return [torch.cat(halves, 1) for halves in zip(a, b, strict=True)], logdet1 + logdet2
