"""Siamese convolutional encoder and U-shaped decoder of AnoDFDNet (section III, figure 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.contract import Shape, Size
from headwater.errors import ConfigError


def _unit(layer: nn.Module, channels: int, slope: float = 0.0) -> nn.Sequential:
    active = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return nn.Sequential(layer, nn.BatchNorm2d(channels), active)


class PairEncoder(nn.Module):
    """The published encoder: six levels of a plain CNN, learnt from scratch.

    4x4 convolutions of stride 2 to 1/2 (w channels), a 3x3 layer there, 1/4 (2w), 1/8 (4w), 1/16
    (8w), and a 3x3 convolution to the latent map that becomes the tokens.

    Parameters
    ----------
    width
        w, 64 as published.
    latent
        Channels of the last level, 1024 as published.
    """

    def __init__(self, width: int = 64, latent: int = 1024) -> None:
        super().__init__()
        self.width, self.latent = width, latent

        def down(channels_in: int, channels_out: int, slope: float = 0.2) -> nn.Module:
            conv = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
            return _unit(conv, channels_out, slope)

        extra = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.levels = nn.ModuleList(
            [
                down(3, width, 0.0),
                _unit(extra, width, 0.2),
                down(width, 2 * width),
                down(2 * width, 4 * width),
                down(4 * width, 8 * width),
                nn.Conv2d(8 * width, latent, 3, padding=1, bias=False),
            ]
        )
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)

    def shapes(self, size: Size) -> list[Shape]:
        """Return the levels' shapes for an image of `size` pixels.

        Raises
        ------
        ConfigError
            Where a side is no multiple of 16.
        """
        height, width = size
        if height % 16 or width % 16 or min(size) < 16:
            raise ConfigError(f"images of {height}x{width} px", expected="sides that 16 divides")
        wide = [self.width * k for k in (1, 1, 2, 4, 8)] + [self.latent]
        strides = (2, 2, 4, 8, 16, 16)
        return [(c, height // s, width // s) for c, s in zip(wide, strides, strict=True)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the six levels of images ``[B, 3, H, W]``, fine to deep."""
        out = []
        for level in self.levels:
            x = level(x)
            out.append(x)
        return out


class _Step(nn.Module):
    """One decoder step to another size: 2x by a transposed 4x4, same size by a 3x3 convolution.

    Any other ratio is a 3x3 convolution and a bilinear resize.
    """

    def __init__(self, channels_in: int, channels_out: int, source: Size, target: Size, last: bool):
        super().__init__()
        self.resize: Size | None = None
        conv: nn.Module
        if target == (2 * source[0], 2 * source[1]):
            conv = nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, bias=last)
        else:
            conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=last)
            self.resize = None if target == source else target
        self.layer = conv if last else _unit(conv, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.resize is not None:
            x = F.interpolate(x, size=self.resize, mode="bilinear", align_corners=False)
        return x


class SkipDecoder(nn.Module):
    """From the transformed deepest map back to the image, taking in a differenced level per step.

    A 3x3 convolution enters; then, from the deepest level to the finest, the level is concatenated
    and a step leads to the size of the next; from the finest on, steps of 2x lead to the image.

    Parameters
    ----------
    bottleneck
        Shape of the map that comes from the transformer.
    skips
        Shapes of the differenced levels, fine to deep; sizes may repeat.
    widths
        Channels of the decoder at each level, like `skips`.
    size
        ``(height, width)`` of the result.
    """

    def __init__(
        self, bottleneck: Shape, skips: Sequence[Shape], widths: Sequence[int], size: Size
    ) -> None:
        super().__init__()
        deepest = skips[-1]
        self.enter = _Step(bottleneck[0], widths[-1], bottleneck[1:], deepest[1:], last=False)
        steps: list[nn.Module] = []
        for level in range(len(skips) - 1, 0, -1):
            seen = widths[level] + skips[level][0]
            target = skips[level - 1][1:]
            steps.append(_Step(seen, widths[level - 1], skips[level][1:], target, last=False))
        self.steps = nn.ModuleList(steps)
        seen, at = widths[0] + skips[0][0], skips[0][1:]
        leave: list[nn.Module] = []
        while (2 * at[0], 2 * at[1]) != tuple(size) and 2 * at[0] <= size[0] // 2:
            target = (2 * at[0], 2 * at[1])
            leave.append(_Step(seen, widths[0], at, target, last=False))
            seen, at = widths[0], target
        leave.append(_Step(seen, 1, at, size, last=True))
        self.leave = nn.Sequential(*leave)

    def start_at(self, rate: float) -> None:
        """Set the last bias to the logit of `rate`, kept within [1e-6, 1 - 1e-6]."""
        rate = min(max(rate, 1e-6), 1 - 1e-6)
        nn.init.constant_(self.leave[-1].layer.bias, math.log(rate / (1 - rate)))  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Return the logits ``[B, 1, H, W]`` of the change map."""
        x = self.enter(x)
        for step, skip in zip(self.steps, skips[:0:-1], strict=True):
            x = step(torch.cat([x, skip], 1))
        return self.leave(torch.cat([x, skips[0]], 1))
