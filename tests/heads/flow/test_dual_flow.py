"""DNFAD: IDConv, DSAM, the two branches' losses, the ablations."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from heads.flow.dual_flow import DualFlow, DualFlowConfig
from heads.parts.dsam import DynamicSubnet
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo
from tests.heads.tiny import shake

SHAPES = {"m": (4, 3, 3)}
TINY = DualFlowConfig(layers=2)


def build(**changes: object) -> DualFlow:
    return DualFlow(dataclasses.replace(TINY, **changes), SHAPES, (6, 6))


def batch(n: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"m": torch.randn(n, 4, 3, 3, dtype=dtype)}


@pytest.mark.parametrize(
    "changes",
    [{}, {"dsam": False}, {"final_relu": True}, {"local_kernel": 1}, {"layers": 1}],
)
def test_each_branch_inverts_and_counts_its_volume_per_position(changes):
    head = shake(build(**changes)).double()
    x = batch()
    z, _ = head.latent(x)
    for back in head.reverse(z):
        assert torch.allclose(back, x["m"], atol=1e-9)
    for name, branch in head.branches.items():
        log_det = branch(x["m"])[1]
        assert log_det.shape == ((2,) if name == "global" else (2, 3, 3))
        for row in range(2):
            jacobian = torch.autograd.functional.jacobian(
                lambda v, b=branch: b(v.view(1, 4, 3, 3))[0].flatten(), x["m"][row].flatten()
            )
            total = torch.linalg.slogdet(jacobian)[1]
            assert torch.allclose(log_det[row].sum(), total, atol=1e-8)


def test_losses_are_those_of_the_branches():
    head = shake(build(standardise=True)).double()
    head.scale[0].set(torch.arange(4.0), torch.tensor([0.5, 1.0, 2.0, 4.0]))
    x = batch()
    figures = head.loss(x)
    y = (x["m"] - torch.arange(4.0)[:, None, None]) / head.scale[0].std[:, None, None].double()
    volume = -head.scale[0].std.double().log().sum()
    z, log_det = head.branches["global"](y)
    whole = (0.5 * z.flatten(1).square().sum(1) - log_det - 9 * volume) / 36
    assert torch.allclose(figures["nll_global"], whole)
    z, log_det = head.branches["local"](y)
    each = 0.5 * z.square().sum(1) - log_det - volume
    assert torch.allclose(figures["nll_local"], each.mean((1, 2)) / 4)
    assert torch.allclose(figures["loss"], figures["nll_global"] + figures["nll_local"])
    assert torch.allclose(figures["nll"], head.nll(x))


def test_variants_switch_off_one_part_and_nothing_else():
    both = build().state_dict()
    for one in ("global", "local"):
        alone = build(branches=one).state_dict()
        assert all(torch.equal(v, both[k]) for k, v in alone.items())
        other = "local" if one == "global" else "global"
        assert {k for k in both if k not in alone} == {k for k in both if f".{other}." in k}
    plain = build(dsam=False).state_dict()
    assert all(torch.equal(v, both[k]) for k, v in plain.items())
    assert set(both) - set(plain) == {k for k in both if ".attention." in k} != set()


@pytest.mark.parametrize("layers", [1, 10])
def test_layers(layers):
    head = build(layers=layers)
    subnets = [m for m in head.modules() if isinstance(m, DynamicSubnet)]
    assert len(subnets) == layers * 2 * 2  # both branches, both sides of a coupling


def test_scores_add_the_branches_likelihoods():
    head = build(score="paper", top_k=1 / 36, normaliser="image").eval()
    head.mark_fitted()
    x = batch(dtype=torch.float32)
    scores = head.score(x)
    z, _ = head.latent(x)
    total = torch.zeros(2, 6, 6)
    for part in z:
        log = -0.5 * part.square().mean(1, keepdim=True)
        total += F.interpolate(log, (6, 6), mode="bilinear").exp()[:, 0]
    want = total.amax((1, 2), keepdim=True) - total
    assert torch.allclose(scores.maps, want, atol=1e-6)
    assert torch.allclose(scores.image, want.amax((1, 2)), atol=1e-6)


def test_what_it_reads():
    vit = BackboneInfo("vit_base_patch8_224.dino", (), (), (), tokens=True, depth=12)
    needs = DualFlow.needs(DualFlowConfig(), vit, (256, 256))
    assert [x.name for x in needs.layers] == ["blocks.6+blocks.10~norm~sum"]
    assert needs.resize == (224, 224)
    net = BackboneInfo("resnet18", ("layer1", "layer2", "layer3"), (64, 128, 256), (4, 8, 16))
    needs = DualFlow.needs(DualFlowConfig(), net, (256, 256))
    assert [x.name for x in needs.layers] == ["layer2+layer3"]
    pooled = DualFlowConfig(pool="avg3s2")
    assert DualFlow.needs(pooled, net, (256, 256)).layers[0].name == "layer2+layer3~avg3s2"
    assert DualFlow.needs(pooled, vit, (256, 256)).layers[0].pool == ""
    with pytest.raises(ConfigError, match="1 transformer blocks"):
        DualFlow.needs(DualFlowConfig(), dataclasses.replace(vit, depth=1), (224, 224))
    with pytest.raises(ConfigError, match="no stage of stride 16"):
        DualFlow.needs(DualFlowConfig(), dataclasses.replace(net, strides=(2, 4, 8)), (256, 256))
