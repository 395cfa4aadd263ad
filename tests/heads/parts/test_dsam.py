"""DNFAD's dynamic spatial attention and its subnet."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from heads.parts.dsam import DynamicSpatialAttention, DynamicSubnet, InputDependentConv
from tests.heads.tiny import shake


def test_dynamic_kernel_is_the_softmax_mix_of_learned_kernels():
    torch.manual_seed(0)
    part = shake(InputDependentConv(2, kernel=3, groups=5))
    x = torch.randn(2, 2, 7, 6)
    for n in range(2):
        pooled = F.adaptive_avg_pool2d(x[n : n + 1], 3)[0]
        first, second = part.attend
        hidden = torch.einsum("oc,cij->oij", first.weight[:, :, 0, 0], pooled)
        hidden = hidden + first.bias[:, None, None]
        logits = torch.einsum("oc,cij->oij", second.weight[:, :, 0, 0], hidden)
        logits = (logits + second.bias[:, None, None]).view(5, 2, 3, 3)
        mix = logits.exp() / logits.exp().sum(0)
        kernel = (mix * part.kernels).sum(0)
        assert torch.allclose(part.weights(x)[n], kernel, atol=1e-6)
        want = F.conv2d(x[n : n + 1], kernel[:, None], padding=1, groups=2)
        assert torch.allclose(part(x)[n], want[0], atol=1e-5)


def test_kernel_depends_on_its_own_image_alone():
    part = shake(InputDependentConv(2))
    x = torch.randn(3, 2, 6, 6)
    assert not torch.allclose(part.weights(x)[0], part.weights(x)[1])
    assert torch.allclose(part(x)[1:2], part(x[1:2]), atol=1e-6)


def test_gate_from_channel_mean_and_maximum():
    part = shake(DynamicSpatialAttention())
    x = torch.randn(2, 5, 4, 4)
    pair = torch.stack((x.mean(1), x.max(1).values), 1)
    want = torch.sigmoid(part.point(part.dynamic(pair)))
    assert torch.allclose(part(x), x * want, atol=1e-6)


def test_gate_is_not_normalised_away():
    """A gate of one number per position must still matter behind the layer norm."""
    subnet = shake(DynamicSubnet(6, 12))
    x = torch.randn(2, 6, 5, 5)
    before = subnet(x)
    subnet.attention.point.weight.data.mul_(-3)
    assert (subnet(x) - before).abs().max() > 0.05


def test_final_relu_is_the_papers_text():
    x = torch.randn(2, 4, 3, 3)
    with_relu, without = shake(DynamicSubnet(4, 8, final_relu=True)), DynamicSubnet(4, 8)
    without.load_state_dict(with_relu.state_dict())
    assert torch.equal(with_relu(x), without(x).relu())
    assert (without(x) < 0).any()
