"""Affine coupling with soft-clamped scales, one- or two-sided."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from heads.looking import only
from heads.parts.elementary import Elementary, soft_clamp
from headwater.errors import ConfigError

Subnet = Callable[[int, int], nn.Module]


def affine(x: Tensor, raw: Tensor, alpha: float, rev: bool) -> tuple[Tensor, Tensor]:
    """Apply ``y = x exp(s) + t`` or its inverse; `raw` holds s (to be clamped) and t in channels.

    `raw` may be bfloat16: from here on it is arithmetic in `x`'s dtype.

    Returns
    -------
    y
        Like `x`.
    s
        The clamped log-scale, like `x`, as it was applied: its sum is the forward log-determinant.
    """
    # Where nothing is looked at nothing is changed: it stays constant, and adds nothing to the
    # log-determinant.
    s, t = only(raw.to(x.dtype)).chunk(2, dim=1)
    s = soft_clamp(s, alpha)
    return ((x - t) * torch.exp(-s) if rev else x * torch.exp(s) + t), s


class AffineCoupling(Elementary):
    """Real-NVP coupling (Dinh et al., 2017): each half is scaled and shifted from the other.

    ``y1 = x1 exp(s(x2)) + t(x2)``, then, two-sided, ``y2 = x2 exp(s'(y1)) + t'(y1)``.

    Parameters
    ----------
    dims_in
        One shape, ``(C,)`` or ``(C, H, W)``, C of at least 2.
    subnet
        ``(channels in, channels out) -> module`` from the passive half to s and t side by side.
    clamp
        Alpha of `soft_clamp`.
    two_sided
        Whether both halves are transformed.
    per_position
        Give the log-determinant per position, ``[B, H, W]``.
    """

    def __init__(
        self,
        dims_in: Sequence[Sequence[int]],
        subnet: Subnet,
        clamp: float = 1.9,
        two_sided: bool = True,
        per_position: bool = False,
    ) -> None:
        super().__init__(dims_in, per_position)
        if self.channels < 2:
            raise ConfigError("coupling of one channel", expected="at least 2 channels")
        self.clamp, self.two_sided = clamp, two_sided
        self.first = self.channels // 2
        second = self.channels - self.first
        self.subnet1 = subnet(second, 2 * self.first)
        self.subnet2 = subnet(self.first, 2 * second) if two_sided else None

    def _sum(self, s: Tensor) -> Tensor:
        return s.sum(1) if self.per_position else s.flatten(1).sum(1)

    def transform(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Couple the halves, or undo it where `rev`."""
        # `split`, whose gradient is one concatenation: slices fill and add two maps of zeros.
        a, b = x.split([self.first, self.channels - self.first], 1)
        logdet: Tensor | float = 0.0
        if rev and self.subnet2 is not None:
            b, s = affine(b, self.subnet2(a), self.clamp, rev)
            logdet = logdet - self._sum(s)
        a, s = affine(a, self.subnet1(b), self.clamp, rev)
        logdet = logdet - self._sum(s) if rev else logdet + self._sum(s)
        if not rev and self.subnet2 is not None:
            b, s = affine(b, self.subnet2(a), self.clamp, rev)
            logdet = logdet + self._sum(s)
        assert isinstance(logdet, Tensor)
        return torch.cat([a, b], 1), logdet
