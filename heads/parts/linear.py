"""Linear maps of vectors, on processors by the way that is fast there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this many channels the detour costs more than it saves.
_WIDE = 256


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` of ``[N, C]``; on a processor in float32 as a convolution.

    The matrix library that torch brings along keeps to AVX2 on processors that are not its maker's;
    its convolutions, a 1x1 one over N positions here, do not, and are 1.6 times as fast there.
    """
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or x.ndim != 2 or min(weight.shape) < _WIDE or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    positions = x[None, None].permute(0, 3, 2, 1)  # [1, C, N, 1], channels-last as it lies
    y = F.conv2d(positions, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(len(x), -1)


class Linear(nn.Linear):
    """A linear layer of vectors that goes through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C]`` to ``[N, C_out]``."""
        return linear(x, self.weight, self.bias)
