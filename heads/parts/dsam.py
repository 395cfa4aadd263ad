"""The subnet of DNFAD's dynamic flow module and its dynamic spatial attention (DSAM, IDConv)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.parts.subnets import damp
from headwater.errors import ConfigError


class InputDependentConv(nn.Module):
    """Depth-wise convolution whose kernel depends on the input (IDConv; DNFAD, section 3.3).

    The map is pooled to KxK; two 1x1 convolutions make G attention values per channel and kernel
    position; a softmax over the G groups weighs G learned kernels to one kernel per image and
    channel: ``W = sum_g softmax_g(A') * P_g``.

    Parameters
    ----------
    channels
        Channels c of the map.
    kernel
        K, odd.
    groups
        G, the number of learned kernels.
    """

    def __init__(self, channels: int, kernel: int = 3, groups: int = 8) -> None:
        super().__init__()
        if kernel % 2 == 0 or groups < 2:
            raise ConfigError(
                f"IDConv with kernel {kernel} and {groups} groups",
                expected="an odd kernel and at least 2 groups",
            )
        self.channels, self.kernel, self.groups = channels, kernel, groups
        self.kernels = nn.Parameter(torch.empty(groups, channels, kernel, kernel))
        nn.init.trunc_normal_(self.kernels, std=0.02)
        # A convolution that starts near the identity lets the gate see its input from the start.
        self.kernels.data[:, :, kernel // 2, kernel // 2] += 1.0
        self.attend = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, groups * channels, 1)
        )

    def weights(self, x: Tensor) -> Tensor:
        """Return the kernel of each image and channel, ``[B, c, K, K]``."""
        pooled = F.adaptive_avg_pool2d(x, self.kernel)
        logits = self.attend(pooled).unflatten(1, (self.groups, self.channels))
        return (torch.softmax(logits, dim=1) * self.kernels).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, c, H, W]`` with the kernels that it decides; zeros beyond the borders.

        The KxK shifted products are summed directly: a grouped convolution of one image per group
        costs more, and its value could depend on the batch that an image is in.
        """
        weights = self.weights(x)
        reach = self.kernel // 2
        height, width = x.shape[2:]
        padded = F.pad(x, (reach, reach, reach, reach))
        out = torch.zeros_like(x)
        for i in range(self.kernel):
            for j in range(self.kernel):
                part = padded[:, :, i : i + height, j : j + width]
                out = out + weights[:, :, i, j, None, None] * part
        return out


class DynamicSpatialAttention(nn.Module):
    """A gate per position from channel mean and maximum (DSAM; DNFAD, section 3.3, figure 4).

    Mean and maximum over channels → IDConv → 1x1 convolution → sigmoid → gate on the input.

    Parameters
    ----------
    kernel, groups
        As of `InputDependentConv`.
    """

    def __init__(self, kernel: int = 3, groups: int = 8) -> None:
        super().__init__()
        self.dynamic = InputDependentConv(2, kernel, groups)
        self.point = nn.Conv2d(2, 1, 1)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate ``[B, 1, H, W]`` in (0, 1)."""
        # Mean and maximum over hundreds of channels want float32, and two channels cost nothing.
        # (Autocast knows no meta device, on which costs are counted.)
        kind = "cpu" if x.is_meta else x.device.type
        with torch.autocast(kind, enabled=False):
            x = x.to(self.point.weight.dtype)
            both = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
            return torch.sigmoid(self.point(self.dynamic(both)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``[B, C, H, W]`` by its gate."""
        return x * self.gate(x)


class DynamicSubnet(nn.Module):
    """Scale and shift of a dynamic flow module (DNFAD, figure 4).

    DSAM gate → layer norm → 3x3 → ReLU → 3x3 → (W_s, W_t). The layer norm is over the channels
    *and* positions of an image: one over channels alone would divide the gate, one positive
    number per position, out again.

    Parameters
    ----------
    channels_in, channels_out
        Channels of the passive half, and of scale and shift together.
    attention
        Without it the gate is left out (the paper's variants 1 to 3).
    kernel
        Size of the two convolutions, odd.
    final_relu
        Close with a ReLU, as the paper's text has it: scale and shift are then never negative.
    groups
        Groups of the IDConv.
    hidden_ratio
        Channels between the two convolutions over `channels_in`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        attention: bool = True,
        kernel: int = 3,
        final_relu: bool = False,
        groups: int = 8,
        hidden_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        hidden = max(1, int(channels_in * hidden_ratio))
        # Its weights come off the same generator; the others' must not depend on its being there.
        with torch.random.fork_rng(devices=[]):
            self.attention = DynamicSpatialAttention(groups=groups) if attention else None
        self.norm = nn.GroupNorm(1, channels_in)
        self.first = nn.Conv2d(channels_in, hidden, kernel, padding=kernel // 2)
        self.last = damp(nn.Conv2d(hidden, channels_out, kernel, padding=kernel // 2))
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, channels_out, H, W]`` of ``[B, channels_in, H, W]``."""
        if self.attention is not None:
            x = self.attention(x)
        x = self.last(torch.relu(self.first(self.norm(x))))
        return torch.relu(x) if self.final_relu else x
