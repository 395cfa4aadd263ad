"""CS-Flow and CSA-Flow: check figure, needs, scores by formula, ablations, no collapse."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from heads.catalogue import get_head, make_config
from heads.contract import NullProgress, TrainOptions
from heads.flow.cs_flow import ATTENTIONS, CSAFlowConfig, CSFlow, CSFlowConfig
from heads.parts.cross_attention import ChannelGate, CrossScaleSelfAttention, PublishedGate
from heads.parts.elementary import Permute, Standardise
from heads.training.sources import TensorSource
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo
from tests.heads.tiny import PYRAMID, build, structured

RESNET = BackboneInfo(
    "resnet18", ("act1", "layer1", "layer2", "layer3"), (64, 64, 128, 256), (2, 4, 8, 16)
)
B5 = BackboneInfo(
    "tf_efficientnet_b5",
    ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    (24, 40, 64, 176, 512),
    (2, 4, 8, 16, 32),
)


def test_the_papers_size_has_275_million_parameters() -> None:
    shapes = {f"blocks.5@{k}": (304, 24 >> k, 24 >> k) for k in range(3)}
    with torch.device("meta"):
        plain = CSFlow(CSFlowConfig(), shapes, (768, 768))
        full = get_head("csa_flow")(CSAFlowConfig(), shapes, (768, 768))
    assert plain.parameters_count() == 275_227_288
    attention = full.parameters_count() - plain.parameters_count()
    assert 0 < attention < 0.05 * plain.parameters_count()


def test_needs() -> None:
    def names(config: CSFlowConfig, info: BackboneInfo, size: int) -> tuple[list[str], object]:
        needs = CSFlow.needs(config, info, (size, size))
        return [layer.name for layer in needs.layers], needs.resize

    paper = CSFlowConfig()
    assert names(paper, B5, 256) == (["blocks.5", "blocks.5@0.5", "blocks.5@0.25"], (768, 768))
    assert names(paper, RESNET, 256)[0] == ["layer3", "layer3@0.5", "layer3@0.25"]
    assert names(paper, RESNET, 256)[1] is None
    # The coarsest map must be 4x4: 192 px leave 3x3 of layer3.
    assert names(paper, RESNET, 192)[0][0] == "layer2"
    assert names(dataclasses.replace(paper, scales=1), RESNET, 64)[0] == ["layer3"]
    named = dataclasses.replace(paper, nodes=("layer2", "layer3"), image_size=320)
    assert names(named, RESNET, 256) == (
        ["layer2+layer3", "layer2+layer3@0.5", "layer2+layer3@0.25"],
        (320, 320),
    )
    small = make_config("cs_flow", {}, "small")
    assert CSFlow.needs(small, B5, (512, 512)).resize is None
    with pytest.raises(ConfigError, match="no map of 4x4"):
        CSFlow.needs(paper, RESNET, (16, 16))


def test_the_smallest_image_named_in_the_error_works() -> None:
    with pytest.raises(ConfigError) as caught:
        CSFlow.needs(CSFlowConfig(), RESNET, (16, 16))
    size = int(caught.value.expected.split()[-2])
    assert CSFlow.needs(CSFlowConfig(), RESNET, (size, size))
    with pytest.raises(ConfigError):
        CSFlow.needs(CSFlowConfig(), RESNET, (size - 1, size - 1))


@pytest.mark.parametrize(
    "settings",
    [{"attention": "se"}, {"kernels": (3, 4)}, {"scales": 0}, {"image_size": "large"}],
)
def test_wrong_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(settings)))):
        make_config("cs_flow", settings)


def test_scores_follow_the_formula() -> None:
    head = build("cs_flow", score="paper")
    head.fit(
        structured(PYRAMID, 6, 0), structured(PYRAMID, 2, 1), TrainOptions(epochs=3), NullProgress()
    )
    batch = structured(PYRAMID, 2, 5).read(0, 2)
    with torch.no_grad():
        z, _ = head.latent(batch)
        scores = head.score(batch)
    everything = torch.cat([part.flatten(1) for part in z], 1)
    torch.testing.assert_close(scores.image, 0.5 * everything.square().mean(1))
    fine = z[0].square().mean(1, keepdim=True)
    expected = F.interpolate(fine, (16, 16), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(scores.maps, expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_each_switch_adds_what_it_names(attention: str) -> None:
    head = build("csa_flow", attention=attention, standardise=False)
    kinds = [type(m) for m in head.modules()]
    assert (ChannelGate in kinds) == ("ca" in attention.split("+"))
    assert (CrossScaleSelfAttention in kinds) == ("sa" in attention or attention == "as_published")
    assert (PublishedGate in kinds) == (attention == "as_published")
    assert Standardise not in kinds
    plain = build("cs_flow", standardise=False, reduction=4)
    # Another attention changes neither the permutations nor the number of blocks.
    orders = [
        [m.order.tolist() for m in h.modules() if isinstance(m, Permute)] for h in (head, plain)
    ]
    assert orders[0] == orders[1]
    assert len(orders[0]) == 3 * len(head.config.kernels)


def test_seeds_change_weights_and_permutations() -> None:
    first, same, other = (build("cs_flow", seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(v, same[k]) for k, v in first.items())
    changed = {k.rsplit(".", 1)[1] for k, v in first.items() if not torch.equal(v, other[k])}
    assert {"order", "weight", "bias"} <= changed


def noise(rows: int, seed: int) -> TensorSource:
    generator = torch.Generator().manual_seed(seed)
    return TensorSource({k: torch.randn(rows, *s, generator=generator) for k, s in PYRAMID.items()})


@pytest.mark.slow
def test_the_default_does_not_collapse_and_the_published_gate_does() -> None:
    """No honest likelihood of unit normal noise beats its entropy: ½ per dimension."""
    train, held_out = noise(64, 0), noise(64, 1)
    lowest, gates = {}, {}
    for attention in ("ca+sa", "as_published"):
        head = build(
            "csa_flow",
            attention=attention,
            standardise=False,
            kernels=(3,),
            batch_size=32,
            epochs=60,
            lr=2e-2,
        )
        figures = head.fit(train, held_out, TrainOptions(precision="float32"), NullProgress())
        lowest[attention] = figures["held_out_nll"]
        batch = held_out.read(0, 64)
        part = next(m for m in head.modules() if isinstance(m, (ChannelGate, PublishedGate)))
        with torch.no_grad():
            (gated,), _ = part((batch["n"],))
        gates[attention] = float(gated.std() / batch["n"].std())
    assert lowest["ca+sa"] >= 0.49
    assert lowest["as_published"] < 0.3
    assert gates["as_published"] < 0.5 < gates["ca+sa"]


def test_bfloat16_training_still_inverts_in_float32() -> None:
    head = build("csa_flow")
    head.fit(
        structured(PYRAMID, 8, 0),
        structured(PYRAMID, 2, 1),
        TrainOptions(precision="bfloat16"),
        NullProgress(),
    )
    batch = structured(PYRAMID, 2, 5).read(0, 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        z, logdet = head.latent(batch)
        back = head.reverse(z)
    assert logdet.dtype == torch.float32
    assert {part.dtype for part in z} == {torch.float32}
    for x, y in zip(batch.values(), back, strict=True):
        assert float((x - y).abs().max()) < 1e-3
