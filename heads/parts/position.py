"""Two-dimensional sinusoidal position codes, computed once and shared by a scale's subnets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from headwater.errors import ConfigError


def position_code(channels: int, height: int, width: int) -> Tensor:
    """Return the two-dimensional sinusoidal position code.

    The first half of the channels codes the column, the second half the row; within a half, sines
    and cosines alternate over the frequencies ``10000 ** (-2 i / (channels / 2))``.

    Parameters
    ----------
    channels
        Number of channels, a multiple of 4.
    height, width
        Size of the map, in positions.

    Returns
    -------
    Tensor
        ``[channels, height, width]`` float32.

    Raises
    ------
    ConfigError
        Where `channels` is no positive multiple of 4.

    Examples
    --------
    >>> code = position_code(8, 2, 3)
    >>> tuple(code.shape), bool((code[:4, 0] == code[:4, 1]).all())
    ((8, 2, 3), True)
    """
    if channels < 4 or channels % 4:
        raise ConfigError(f"position code of {channels} channels", expected="a multiple of 4")
    half = channels // 2
    frequency = torch.exp(torch.arange(0, half, 2) * (-math.log(10000.0) / half))

    def axis(length: int) -> Tensor:
        angle = frequency[:, None] * torch.arange(length)[None, :]
        return torch.stack((angle.sin(), angle.cos()), dim=1).reshape(half, length)

    columns = axis(width)[:, None, :].expand(half, height, width)
    rows = axis(height)[:, :, None].expand(half, height, width)
    return torch.cat((columns, rows))


class PositionCode(nn.Module):
    """The position code of one scale, held once on the device and never saved.

    The code follows from its size, so it is a buffer outside the `state_dict`. One instance is
    shared by all subnets of a scale.

    Parameters
    ----------
    channels
        Channels of the code; 0 gives no code.
    height, width
        Size of the map.
    """

    code: Tensor

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        # Built on the current default device, so that a head can be built on `meta`.
        code = position_code(channels, height, width) if channels else torch.zeros(0, height, width)
        #: ``[1, channels, height, width]``.
        self.register_buffer("code", code[None], persistent=False)


class CodedConv2d(nn.Conv2d):
    """A convolution over a map and its position code, without ever concatenating the two.

    A convolution is linear, so ``conv(cat(x, code)) = conv_x(x) + conv_code(code)``. The second
    term is the same for every image of the batch: it is computed once for all of them, which saves
    ``code / (in + code)`` of the multiplications of the layer and a copy of its input. Weights have
    the shape of the plain convolution over the concatenation.

    Parameters
    ----------
    channels_in, channels_out
        Channels of the map (without the code) and of the output.
    kernel
        Odd kernel size; the borders are padded with zeros.
    position
        The shared code of this scale.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, position: PositionCode
    ) -> None:
        super().__init__(channels_in + position.channels, channels_out, kernel, padding=kernel // 2)
        self.map_channels = channels_in
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, channels_in, H, W]`` to ``[B, channels_out, H, W]``."""
        n = self.map_channels
        if not self.position.channels:
            return self._conv_forward(x, self.weight, self.bias)
        code = self.position.code.to(x.dtype)
        of_map, of_code = self.weight.split([n, self.position.channels], 1)
        offset = self._conv_forward(code, of_code, self.bias)
        return self._conv_forward(x, of_map, None) + offset
