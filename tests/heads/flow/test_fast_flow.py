"""FastFlow: subnets in turn, layers apart, the averaged likelihood, the published sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from heads.flow.fast_flow import FastFlow, FastFlowConfig
from heads.parts.subnets import TwoConvSubnet
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo

SHAPES = {"a": (4, 4, 4), "b": (6, 2, 2)}
TINY = FastFlowConfig(steps=3)


def build(**changes: object) -> FastFlow:
    return FastFlow(dataclasses.replace(TINY, **changes), SHAPES, (8, 8))


def batch(n: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(n, *s, generator=generator) for k, s in SHAPES.items()}


def test_kernels_alternate_and_hidden_channels_follow_the_ratio():
    head = build(hidden_ratio=1.5)
    for stack, (channels, _, _) in zip(head.stacks, SHAPES.values(), strict=True):
        subnets = [m for m in stack.modules() if isinstance(m, TwoConvSubnet)]
        assert [m[0].kernel_size for m in subnets] == [(3, 3), (1, 1), (3, 3)]
        assert all(m[0].out_channels == int(channels // 2 * 1.5) for m in subnets)
    same = [m for m in build(kernels=(3,)).modules() if isinstance(m, TwoConvSubnet)]
    assert {m[0].kernel_size for m in same} == {(3, 3)}


def test_layers_do_not_see_each_other():
    head, x = build(), batch()
    before = head.latent(x)[0]
    x["b"] = x["b"] + 1
    after = head.latent(x)[0]
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_map_is_the_likelihood_averaged_over_layers():
    head = build(score="paper").eval()
    head.scorer.map_top.fill_(1.0)
    head.scorer.image_top.fill_(1.0)
    head.mark_fitted()
    x = batch()
    scores = head.score(x)
    likelihoods = [
        F.interpolate(-0.5 * z.square().mean(1, keepdim=True), (8, 8), mode="bilinear").exp()[:, 0]
        for z in head.latent(x)[0]
    ]
    want = 1 - sum(likelihoods) / 2
    assert torch.allclose(scores.maps, want, atol=1e-6)
    assert torch.allclose(scores.image, want.amax((1, 2)), atol=1e-6)


def test_published_number_of_parameters():
    """FastFlow's table of complexity: 41.3 M additional parameters with WideResNet-50-2."""
    shapes = {"layer1": (256, 64, 64), "layer2": (512, 32, 32), "layer3": (1024, 16, 16)}
    with torch.device("meta"):
        head = FastFlow(FastFlowConfig(), shapes, (256, 256))
    assert head.parameters_count() / 1e6 == pytest.approx(41.3, rel=0.005)


def test_what_it_reads():
    net = BackboneInfo("resnet18", ("layer1", "layer2", "layer3"), (64, 128, 256), (4, 8, 16))
    needs = FastFlow.needs(FastFlowConfig(), net, (320, 320))
    assert [x.name for x in needs.layers] == ["layer1", "layer2", "layer3"]
    assert needs.resize == (256, 256)
    assert FastFlow.needs(FastFlowConfig(image_size="run"), net, (320, 320)).resize is None
    deit = BackboneInfo("deit_base_distilled_patch16_384", (), (), (), tokens=True, depth=12)
    assert FastFlow.needs(FastFlowConfig(), deit, (384, 384)).layers[0].name == "blocks.6"
    for bad in ({"kernels": (2,)}, {"steps": 0}, {"hidden_ratio": 0.0}, {"image_size": "big"}):
        with pytest.raises(ConfigError):
            FastFlowConfig(**bad)
