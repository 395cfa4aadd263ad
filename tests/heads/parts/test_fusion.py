"""The coupling over all scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from heads.parts.fusion import FusionCoupling, FusionSubnet
from tests.heads.tiny import shake


def test_fusion_subnet_adds_the_up_sampled_mix_to_the_identity():
    torch.manual_seed(0)
    sizes = [(4, 4, 4), (8, 2, 2)]
    part = FusionSubnet(sizes, [4, 8], "none")
    maps = [torch.randn(1, *s) for s in sizes]
    pooled = torch.cat([F.avg_pool2d(maps[0], 2), maps[1]], 1)
    hidden = F.conv2d(pooled, part.squeeze.weight, part.squeeze.bias, padding=1)
    hidden = F.layer_norm(hidden.movedim(1, 3), (3,)).movedim(3, 1)
    mix = part.expand(hidden.relu())
    want = part.heads[0](
        maps[0] + F.interpolate(mix[:, :4], (4, 4), mode="bilinear", align_corners=False)
    )
    assert part.squeeze.out_channels == 12 // 4
    assert torch.allclose(part(maps)[0], want, atol=1e-6)


def test_fusion_is_clamped():
    part = FusionCoupling([(2, 2, 2), (4, 1, 1)], clamp=0.5)
    shake(part, 50.0)
    x = (torch.randn(3, 2, 2, 2), torch.randn(3, 4, 1, 1))
    assert part(x)[1].abs().max() <= 0.5 * (8 + 4)
