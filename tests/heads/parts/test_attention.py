"""Channel attentions are their papers' formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from heads.parts.attention import GlobalContextChannel, SqueezeExcite, odd_kernel


def test_gca_is_the_papers_formula():
    torch.manual_seed(0)
    part = GlobalContextChannel(16)
    x = torch.randn(3, 16, 4, 5)
    assert part.band.kernel_size == (odd_kernel(16),) == (3,)
    for n in range(3):
        v = x[n].reshape(16, 20)
        logit = part.logit.weight.view(16) @ v
        context = v @ (logit.exp() / logit.exp().sum())
        w = part.band.weight.view(3)
        padded = F.pad(context, (1, 1))
        mixed = torch.stack([w @ padded[c : c + 3] for c in range(16)])
        assert torch.allclose(part(x)[n], x[n] * torch.sigmoid(mixed)[:, None, None], atol=1e-6)


def test_kernel_of_the_channel_convolution():
    # |log2(C)/2 + 1/2| to the nearest odd number; 224 channels: 4.4 -> 5.
    channels = (8, 32, 64, 127, 128, 224, 2048, 8192)
    assert [odd_kernel(c) for c in channels] == [3, 3, 3, 3, 5, 5, 7, 7]


def test_squeeze_and_excitation_squeezes():
    part = SqueezeExcite(32, 16)
    assert part.squeeze.weight.shape == (2, 32)
    x = torch.randn(2, 32, 3, 3)
    gate = torch.sigmoid(part.excite(torch.relu(part.squeeze(x.mean((2, 3))))))
    assert torch.allclose(part(x), x * gate[:, :, None, None])
