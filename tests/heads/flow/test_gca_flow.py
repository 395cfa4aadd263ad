"""GCAFlow and MSFlow: the formulas, the ablations, the check figures, the scores."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from heads.contract import NullProgress, TrainOptions
from heads.flow.gca_flow import GCAFlow, GCAFlowConfig, MSFlow
from heads.parts.position import PositionCode
from heads.training.sources import TensorSource
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo
from tests.heads.tiny import check_log_determinant, shake

SHAPES = {"a": (4, 4, 4), "b": (6, 2, 2), "c": (8, 2, 2)}
TINY = GCAFlowConfig(blocks=(1, 2, 2), kernel=3, expansion=2, position_channels=4)
RESNET = BackboneInfo(
    "resnet18", ("relu", "layer1", "layer2", "layer3"), (64, 64, 128, 256), (2, 4, 8, 16)
)
PAPER = {"layer1": (256, 64, 64), "layer2": (512, 32, 32), "layer3": (1024, 16, 16)}


def build(config: GCAFlowConfig = TINY, **changes: object) -> GCAFlow:
    return GCAFlow(dataclasses.replace(config, **changes), SHAPES, (8, 8))


def batch(n: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(n, *s, generator=generator, dtype=dtype) for k, s in SHAPES.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": "se"},
        {"attention": "eca"},
        {"attention": "none", "subnet": "plain"},
        {"fusion": False, "position_channels": 0},
    ],
)
def test_every_ablation_inverts_and_counts_its_volume(changes):
    head = shake(build(**changes).double())
    x = batch(dtype=torch.float64)
    for back, layer in zip(head.reverse(head.latent(x)[0]), SHAPES, strict=True):
        assert torch.allclose(back, x[layer], atol=1e-9)
    check_log_determinant(head, x, (0, 1))


def test_switching_the_attention_changes_the_attention_alone():
    states = {a: build(attention=a).state_dict() for a in ("gca", "se", "eca", "none")}
    plain = states.pop("none")
    for kind, state in states.items():
        assert all(torch.equal(v, state[k]) for k, v in plain.items()), kind
        extra = set(state) - set(plain)
        assert extra
        assert all(k.startswith("fuse.subnet_") and ".attention." in k for k in extra)
    x = batch()
    outputs = [shake(build(attention=a)).latent(x)[0][0] for a in ("gca", "se", "eca", "none")]
    assert all(not torch.allclose(p, q) for i, p in enumerate(outputs) for q in outputs[i + 1 :])


def test_kernel_expansion_and_blocks_change_what_they_name():
    shapes = {k: v.shape for k, v in build().state_dict().items()}

    def differing(**changes: object) -> dict[str, torch.Size]:
        other = {k: v.shape for k, v in build(**changes).state_dict().items()}
        assert set(other) == set(shapes)
        return {k: v for k, v in other.items() if v != shapes[k]}

    wide = differing(kernel=5)
    assert wide
    assert all(v[2:] == (5, 5) and k.endswith("subnet1.0.weight") for k, v in wide.items())
    expanded = differing(expansion=4)
    assert {k.rsplit(".", 2)[-2] for k in expanded} == {"2", "4"}  # the two 1x1 convolutions

    less, more = build(blocks=(1, 1, 2)).state_dict(), build().state_dict()
    assert all(
        torch.equal(v, more[k]) for k, v in less.items() if "scales.1.module_list.3" not in k
    )


def test_fusion_carries_information_between_scales_and_its_absence_does_not():
    for fusion, linked in ((True, True), (False, False)):
        head = shake(build(fusion=fusion))
        x = batch()
        before = head.latent(x)[0]
        x["c"] = x["c"] + 1
        after = head.latent(x)[0]
        assert torch.equal(before[0], after[0]) != linked
        assert not torch.equal(before[2], after[2])


def test_position_code_is_held_once_a_scale_and_not_saved():
    head = build()
    codes = [m for m in head.modules() if isinstance(m, PositionCode)]
    assert len(codes) == len(SHAPES)
    assert not [k for k in head.state_dict() if "code" in k]


@pytest.mark.parametrize(
    ("kind", "mib", "paper", "tolerance"),
    [(MSFlow, 400.53, 401, 0.005), (GCAFlow, 540.32, 532, 0.02)],
)
def test_check_figures(kind, mib, paper, tolerance):
    """Weights and permutations in float32, the latter as the two CxC matrices of FrEIA."""
    with torch.device("meta"):
        head = kind(kind.Config(), PAPER, (512, 512))
    permutations = sum(
        2 * c * c * n for (c, _, _), n in zip(PAPER.values(), (2, 5, 8), strict=True)
    )
    size = (head.parameters_count() + permutations) * 4 / 2**20
    assert size == pytest.approx(mib, abs=0.01)
    assert size == pytest.approx(paper, rel=tolerance)


def test_what_it_reads():
    config = GCAFlowConfig()
    needs = GCAFlow.needs(config, RESNET, (256, 256))
    assert [x.name for x in needs.layers] == ["layer1~avg3s2", "layer2~avg3s2", "layer3~avg3s2"]
    assert needs.resize is None
    wide = dataclasses.replace(RESNET, name="wide_resnet50_2.racm_in1k")
    assert GCAFlow.needs(config, wide, (256, 256)).resize == (512, 512)


def test_backbones_without_the_maps_are_refused():
    shallow = BackboneInfo("shallow", ("a", "b"), (8, 16), (2, 4))
    with pytest.raises(ConfigError, match=r"no stage of stride 8, 16"):
        GCAFlow.needs(TINY, shallow, (256, 256))
    with pytest.raises(ConfigError, match="2 nodes"):
        GCAFlow.needs(dataclasses.replace(TINY, nodes=("x", "y")), RESNET, (256, 256))
    for bad in ({"kernel": 4}, {"attention": "cbam"}, {"expansion": 0}, {"blocks": ()}):
        with pytest.raises(ConfigError):
            GCAFlowConfig(**bad)


def test_training_finds_the_odd_one_out():
    """A tiny head trained on smooth maps scores a map with a spot of noise higher, and there."""
    generator = torch.Generator().manual_seed(0)
    base = {k: torch.randn(1, s[0], 1, 1, generator=generator) for k, s in SHAPES.items()}
    normal = {
        k: base[k] + 0.1 * torch.randn(24, *s, generator=generator) for k, s in SHAPES.items()
    }
    source = TensorSource(normal)
    config = dataclasses.replace(TINY, lr=3e-3, epochs=8, batch_size=8, warmup_epochs=0.0)
    head = GCAFlow(config, SHAPES, (8, 8))
    figures = head.fit(
        source, source.subset(range(4)), TrainOptions(precision="float32"), NullProgress()
    )
    assert math.isfinite(figures["held_out_nll"])
    odd = {k: v[:2].clone() for k, v in normal.items()}
    odd["a"][0, :, :2, :2] += 2
    odd["b"][0, :, :1, :1] += 2
    scores = head.score(odd)
    assert scores.image[0] > scores.image[1]
    assert scores.maps[0, :4, :4].mean() > scores.maps[0, 4:, 4:].mean()
