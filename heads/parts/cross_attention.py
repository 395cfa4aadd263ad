"""The attentions of CSA-Flow: a channel gate with its log-determinant, one without, and
self-attention over the positions of all scales (CSA-Flow, sections 3.1 and 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.looking import only, places
from heads.parts.attention import SqueezeExcite
from heads.parts.elementary import Elementary, soft_clamp
from headwater.errors import ConfigError


class ChannelGate(Elementary):
    """Channel attention as an invertible part: each half of the channels gates the other.

    The gate is squeeze-and-excitation's: channel means through a bottleneck to a sigmoid, doubled
    so that it begins at 1. Since a half's gate comes from the other half, the Jacobian is
    triangular and ``log|det| = H W Σ log gate`` per sample, exactly.

    Parameters
    ----------
    dims_in
        One shape ``(C, H, W)``.
    reduction
        The bottleneck has C / reduction units.
    clamp
        Bound of the gate's logit, so that no gate comes near 0.
    """

    def __init__(
        self, dims_in: Sequence[Sequence[int]], reduction: int = 16, clamp: float = 3.0
    ) -> None:
        super().__init__(dims_in)
        if self.channels < 2:
            raise ConfigError("channel gate over one channel", expected="at least 2 channels")
        self.first, self.clamp = self.channels // 2, clamp
        second, hidden = self.channels - self.first, max(2, self.channels // reduction)
        self.gate1 = _excite(second, hidden, self.first)
        self.gate2 = _excite(self.first, hidden, second)

    def _log_gate(self, net: nn.Module, seen: Tensor) -> Tensor:
        logit = net(_channel_means(seen)).to(seen.dtype)
        return F.logsigmoid(soft_clamp(logit, self.clamp)) + torch.log(
            torch.tensor(2.0, dtype=seen.dtype, device=seen.device)
        )

    def transform(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Scale each channel by its gate, or undo it where `rev`."""
        a, b = x[:, : self.first], x[:, self.first :]
        sign = -1.0 if rev else 1.0
        if rev:
            log_b = self._log_gate(self.gate2, a)
            b = b * torch.exp(-log_b)[:, :, None, None]
        log_a = self._log_gate(self.gate1, b)
        a = a * torch.exp(sign * log_a)[:, :, None, None]
        if not rev:
            log_b = self._log_gate(self.gate2, a)
            b = b * torch.exp(log_b)[:, :, None, None]
        log_det = places((x.shape[2], x.shape[3])) * (log_a.sum(1) + log_b.sum(1))
        return torch.cat([a, b], 1), sign * log_det


def _channel_means(x: Tensor) -> Tensor:
    """Return the mean of each channel over what is looked at, ``[B, C]``."""
    count = places((x.shape[2], x.shape[3]))
    if isinstance(count, int):
        return x.mean((2, 3))
    return only(x).sum((2, 3)) / count[:, None]


def _excite(channels_in: int, hidden: int, channels_out: int) -> nn.Sequential:
    last = nn.Linear(hidden, channels_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(channels_in, hidden), nn.LeakyReLU(0.1), last)


class PublishedGate(Elementary):
    """The channel gate as published: in front of the flow head, its log-determinant left out.

    A gate that depends on what it scales has no inverse in closed form, and with no
    log-determinant the likelihood grows without bound as the gate shrinks its input. Kept to
    reproduce the paper; `rev` gives back the gated map.
    """

    def __init__(self, dims_in: Sequence[Sequence[int]], reduction: int = 16) -> None:
        super().__init__(dims_in)
        self.attention = SqueezeExcite(self.channels, reduction)

    def transform(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Scale each channel by its gate; do nothing where `rev`."""
        y = x if rev else x * self.attention.gate(x).to(x.dtype)[:, :, None, None]
        return y, self.spread(0.0, x, rev)


class CrossScaleSelfAttention(nn.Module):
    """Scaled dot-product attention over the positions of all scales, added with a gain from 0.

    CSA-Flow, section 3.3: ``softmax(Q Kᵀ / √d) V``. It sits inside coupling subnets, where
    nothing has to be invertible.

    Parameters
    ----------
    channels
        Channels of every map.
    depth
        Channels d of queries and keys.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.query_key = nn.Linear(channels, 2 * depth)
        self.value = nn.Linear(channels, channels)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Attend over ``[B, C, h_k, w_k]`` maps; return maps of the same shapes."""
        # In channels-last maps the channels of a position lie together already, as tokens do.
        tokens = torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], 1)
        query, key = self.query_key(tokens).chunk(2, dim=2)
        seen = F.scaled_dot_product_attention(query, key, self.value(tokens))
        out = tokens + self.gain.to(seen.dtype) * seen
        of_scales = out.split([m.shape[2] * m.shape[3] for m in maps], dim=1)
        return [
            p.unflatten(1, m.shape[2:]).permute(0, 3, 1, 2)
            for p, m in zip(of_scales, maps, strict=True)
        ]
