"""Convolutional subnets of couplings: of GCAFlow, MSFlow and FastFlow."""

from __future__ import annotations

from torch import Tensor, nn

from heads.parts.position import CodedConv2d, PositionCode


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position of ``[B, C, H, W]``.

    Where the map is channels-last, the permuted view is contiguous and nothing is copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[B, C, H, W]`` over C."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def damp(layer: nn.Conv2d, gain: float = 0.1) -> nn.Conv2d:
    """Shrink a subnet's last convolution, so that a deep stack starts near the identity."""
    layer.weight.data.mul_(gain)
    if layer.bias is not None:
        layer.bias.data.zero_()
    return layer


class HierarchicalSubnet(nn.Sequential):
    """The subnet of an H-Flow block (GCAFlow, section 3.4, figure 3).

    A full KxK convolution in→in, layer norm over channels, 1x1 in→expansion·in, GELU,
    1x1 expansion·in→out. *in* counts the map's channels and the position code's.

    Parameters
    ----------
    channels_in, channels_out
        Channels of the coupling's passive half, and of scale and shift together.
    position
        Position code of the scale.
    kernel
        K, odd (the paper's ablation: 3, 5, 7).
    expansion
        Widening of the inverted bottleneck (the paper's ablation: 1 to 4).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        position: PositionCode,
        kernel: int,
        expansion: int,
    ) -> None:
        width = channels_in + position.channels
        super().__init__(
            CodedConv2d(channels_in, width, kernel, position),
            ChannelNorm(width),
            nn.Conv2d(width, expansion * width, 1),
            nn.GELU(),
            damp(nn.Conv2d(expansion * width, channels_out, 1)),
        )


class PlainSubnet(nn.Sequential):
    """The subnet of MSFlow: 3x3 in→in, layer norm over channels, ReLU, 3x3 in→out.

    Parameters
    ----------
    channels_in, channels_out, position
        As of `HierarchicalSubnet`.
    kernel
        Size of both convolutions.
    """

    def __init__(
        self, channels_in: int, channels_out: int, position: PositionCode, kernel: int
    ) -> None:
        width = channels_in + position.channels
        super().__init__(
            CodedConv2d(channels_in, width, kernel, position),
            ChannelNorm(width),
            nn.ReLU(),
            damp(nn.Conv2d(width, channels_out, kernel, padding=kernel // 2)),
        )


class TwoConvSubnet(nn.Sequential):
    """The subnet of FastFlow: KxK in→hidden, ReLU, KxK hidden→out (FastFlow, section 3.3).

    Parameters
    ----------
    channels_in, channels_out
        Channels of the coupling's passive half, and of scale and shift together.
    kernel
        3 or 1, alternating over the steps.
    ratio
        Hidden channels over `channels_in`, at least 1 channel.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, ratio: float) -> None:
        hidden = max(1, int(channels_in * ratio))
        super().__init__(
            nn.Conv2d(channels_in, hidden, kernel, padding=kernel // 2),
            nn.ReLU(),
            damp(nn.Conv2d(hidden, channels_out, kernel, padding=kernel // 2)),
        )
