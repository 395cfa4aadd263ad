"""Channel attention: squeeze-and-excitation, efficient channel attention, global context-aware."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from headwater.errors import ConfigError

KINDS = ("gca", "se", "eca", "none")


def odd_kernel(channels: int) -> int:
    """Return the odd size next to ``(log2(channels) + 1) / 2``.

    GCAFlow, section 3.5 (after ECA-Net, eq. 12); an even value goes to the next odd one above.

    Examples
    --------
    >>> [odd_kernel(c) for c in (16, 64, 128, 224, 512)]
    [3, 3, 5, 5, 5]
    """
    value = abs(math.log2(channels) / 2 + 1 / 2)
    return 2 * int(value // 2) + 1


class SqueezeExcite(nn.Module):
    """Gate from the channel means through a bottleneck of two linear layers (SE block).

    Parameters
    ----------
    channels
        Channels C of the map.
    reduction
        The bottleneck has ``C / reduction`` units, at least 1.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate ``[B, C]`` in (0, 1)."""
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``[B, C, H, W]`` by its gate."""
        return x * self.gate(x)[:, :, None, None]


class EfficientChannel(nn.Module):
    """Gate from the channel means through a 1-D convolution over channels and a sigmoid (ECA)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = odd_kernel(channels)
        self.band = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def context(self, x: Tensor) -> Tensor:
        """Return the context vector ``[B, C]``: here the channel means."""
        return x.mean((2, 3))

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate ``[B, C]`` in (0, 1)."""
        return torch.sigmoid(self.band(self.context(x)[:, None]))[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``[B, C, H, W]`` by its gate."""
        return x * self.gate(x)[:, :, None, None]


class GlobalContextChannel(EfficientChannel):
    """Gate from a context that attends over positions (GCA; GCAFlow, section 3.5 and figure 4).

    A 1x1 convolution mixes all channels to one logit per position; the softmax over positions
    weighs the map to one context value per channel; a 1-D convolution over channels of size
    `odd_kernel` and a sigmoid make the gate.

    Parameters
    ----------
    channels
        Channels C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        # Without a bias: the softmax would take it out again.
        self.logit = nn.Conv2d(channels, 1, 1, bias=False)

    def context(self, x: Tensor) -> Tensor:
        """Return the attended context ``[B, C]``: ``sum_p softmax_p(logit) * x``."""
        logit = self.logit(x).flatten(2)
        # Over thousands of positions bfloat16 would not do.
        wide = torch.promote_types(logit.dtype, torch.float32)
        weights = torch.softmax(logit, dim=2, dtype=wide).to(x.dtype)
        return torch.einsum("bcp,bop->bc", x.flatten(2), weights)


def channel_attention(kind: str | None, channels: int) -> nn.Module:
    """Return the channel attention named `kind`: ``gca``, ``se``, ``eca`` or ``none``.

    Raises
    ------
    ConfigError
        Where there is none of that name.
    """
    if kind in (None, "none"):
        return nn.Identity()
    kinds = {"gca": GlobalContextChannel, "se": SqueezeExcite, "eca": EfficientChannel}
    if kind not in kinds:
        raise ConfigError(f"attention {kind!r}", expected="one of " + ", ".join(KINDS))
    return kinds[kind](channels)
