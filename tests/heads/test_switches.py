"""Every ablation switch changes what it names, and nothing else; over all heads."""

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from heads.catalogue import all_heads, make_config
from heads.contract import Head, NullProgress, Scores, TrainOptions
from heads.flow.flow_head import FlowHead
from headwater.errors import ConfigError
from tests.heads.tiny import TINY, build

OPTIONS = TrainOptions(device="cpu", precision="float32", threads=1)
NOTHING = r"$^"
SUBNET = "CrossScaleSubnet"
ATTENTION = "GlobalContextChannel|SqueezeExcite|EfficientChannel"
STEP = "ActNorm|InvertibleLinear|AffineCoupling"
POSITION = "Hierarchical|Plain"  # the subnets that see the position code

#: head, settings that both have, the switch, what may differ in structure, parameters more or less.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, int]] = [
    ("csa_flow", {}, {"attention": "none"}, "ChannelGate|CrossScaleSelfAttention", -1),
    ("csa_flow", {}, {"attention": "ca"}, "CrossScaleSelfAttention", -1),
    ("csa_flow", {}, {"attention": "sa"}, "ChannelGate", -1),
    ("csa_flow", {}, {"attention": "as_published"}, "ChannelGate|PublishedGate", 0),
    ("csa_flow", {}, {"reduction": 2}, "ChannelGate|CrossScaleSelfAttention", 1),
    ("csa_flow", {}, {"standardise": False}, "Standardise", 0),
    ("csa_flow", {}, {"channels": 4}, ".", -1),
    ("cs_flow", {}, {"attention": "ca+sa"}, "ChannelGate|CrossScaleSelfAttention", 1),
    ("cs_flow", {}, {"hidden": 12}, SUBNET, 1),
    ("cs_flow", {}, {"kernels": (3, 5, 3)}, "CrossScaleCoupling|Permute", 1),
    ("cs_flow", {}, {"kernels": (5, 5)}, f"{SUBNET}.*Conv2d", 1),
    ("cs_flow", {}, {"clamp": 0.5}, NOTHING, 0),
    ("cs_flow", {}, {"slope": 0.5}, NOTHING, 0),
    ("gca_flow", {}, {"kernel": 5}, "HierarchicalSubnet/CodedConv2d", 1),
    ("gca_flow", {}, {"kernel": 7}, "HierarchicalSubnet/CodedConv2d", 1),
    ("gca_flow", {}, {"expansion": 1}, "HierarchicalSubnet/Conv2d", -1),
    ("gca_flow", {}, {"expansion": 3}, "HierarchicalSubnet/Conv2d", 1),
    ("gca_flow", {}, {"expansion": 4}, "HierarchicalSubnet/Conv2d", 1),
    ("gca_flow", {}, {"attention": "se"}, f"FusionSubnet/({ATTENTION})", 1),
    ("gca_flow", {}, {"attention": "eca"}, f"FusionSubnet/({ATTENTION})", -1),
    ("gca_flow", {}, {"attention": "none"}, f"FusionSubnet/({ATTENTION})", -1),
    ("gca_flow", {}, {"subnet": "plain"}, "HierarchicalSubnet|PlainSubnet", 0),
    ("gca_flow", {}, {"fusion": False}, "FusionCoupling", -1),
    ("gca_flow", {}, {"position_channels": 0}, POSITION, -1),
    ("gca_flow", {}, {"blocks": (2, 2, 2)}, "SequenceINN", 1),
    ("gca_flow", {"score": "paper"}, {"normaliser": "image"}, NOTHING, 0),
    ("gca_flow", {"score": "paper"}, {"top_k": 0.5}, NOTHING, 0),
    ("gca_flow", {}, {"score": "paper"}, "Rule", 0),
    ("cs_flow", {"score": "mean"}, {"score": "scales"}, NOTHING, 0),
    ("padim", {"score": "top"}, {"top_share": 0.5}, NOTHING, 0),
    ("padim", {}, {"score": "max"}, "Rule", 0),
    ("patchcore", {"score": "paper"}, {"reweight": False}, NOTHING, 0),
    ("patchcore", {"score": "paper"}, {"neighbours": 3}, NOTHING, 0),
    ("patchcore", {"whiten": "never"}, {"whiten": "always"}, "Whitening", 0),
    ("f2r", {"whiten": "never"}, {"whiten": "always"}, "Whitening", 0),
    ("f2r", {}, {"select": "band"}, "Band", 0),
    ("ms_flow", {}, {"kernel": 5}, "PlainSubnet", 1),
    ("ms_flow", {}, {"attention": "gca"}, "FusionSubnet/GlobalContextChannel", 1),
    ("ms_flow", {}, {"subnet": "hierarchical"}, "HierarchicalSubnet|PlainSubnet", 0),
    ("dual_flow", {}, {"branches": "global"}, "ModuleDict/SequenceINN", -1),
    ("dual_flow", {}, {"branches": "local"}, "ModuleDict/SequenceINN", -1),
    ("dual_flow", {}, {"dsam": False}, "DynamicSubnet/DynamicSpatialAttention", -1),
    ("dual_flow", {"branches": "local"}, {"dsam": False}, "DynamicSpatialAttention", -1),
    *(
        ("dual_flow", {}, {"layers": n}, "SequenceINN", 1 if n > 2 else -1)
        for n in (1, 3, 4, 5, 6, 7, 8, 9, 10)
    ),
    ("dual_flow", {}, {"final_relu": True}, NOTHING, 0),
    ("dual_flow", {}, {"local_kernel": 1}, "DynamicSubnet/Conv2d", -1),
    ("dual_flow", {}, {"hidden_ratio": 2.0}, "DynamicSubnet/Conv2d", 1),
    ("dual_flow", {}, {"groups": 4}, "DynamicSubnet/DynamicSpatialAttention", -1),
    ("dual_flow", {}, {"clamp": 0.5}, NOTHING, 0),
    ("dual_flow", {}, {"channels": 4}, ".", -1),
    ("f2r", {"alpha": 1.0, "beta": 1.0}, {"alpha": 0.5}, NOTHING, 0),
    ("f2r", {"alpha": 1.0, "beta": 1.0}, {"beta": 0.5}, NOTHING, 0),
    ("f2r", {"alpha": 0.2, "beta": 1.1}, {"coreset": "per_point"}, NOTHING, 0),
    ("f2r", {"alpha": 0.2, "beta": 1.1}, {"implementation": "reg"}, NOTHING, 0),
    ("f2r", {"alpha": 0.2, "beta": 1.1}, {"gamma": 0.1}, NOTHING, 0),
    ("f2r", {"alpha": 0.2, "beta": 1.1}, {"positions": 5}, NOTHING, 0),
    ("f2r", {"alpha": 0.2, "beta": 1.1}, {"steps": 3}, STEP, 1),
    ("f2r", {"alpha": 0.2, "beta": 1.1}, {"width": 2.0}, "AffineCoupling", 1),
    ("f2r", {"alpha": 1.0, "beta": 1.0}, {"ratio": 0.2}, NOTHING, 0),
    *(("pair_diff", {}, {"layers": n}, "MapTransformer", 1) for n in (2, 3, 4, 5, 6, 7, 8)),
    # without tokens the decoder begins at the map's own channels
    ("pair_diff", {}, {"layers": 0}, "MapTransformer|SkipDecoder/_Step/Sequential/Conv2d", -1),
    ("pair_diff", {}, {"mlp": 16}, "MapTransformer", 1),
    ("pair_diff", {}, {"width": 8}, "SkipDecoder", 1),
    ("pair_diff", {}, {"augment": False}, NOTHING, 0),
    ("pair_diff", {}, {"standardise": False}, NOTHING, 0),
    ("pair_diff", {}, {"dropout": 0.0}, NOTHING, 0),
    ("pair_flow", {}, {"scoring": "energy"}, NOTHING, 0),
    ("pair_flow", {}, {"scoring": "likelihood"}, NOTHING, 0),
    ("pair_flow", {}, {"noise": 0.0}, NOTHING, 0),
    ("pair_flow", {}, {"steps": 3}, "SequenceINN", 1),
    ("fast_flow", {}, {"steps": 2}, "SequenceINN", -1),
    ("fast_flow", {}, {"kernels": (3,)}, "TwoConvSubnet", 1),
    ("fast_flow", {}, {"hidden_ratio": 0.5}, "TwoConvSubnet", -1),
    ("padim", {}, {"channels": 3}, "PaDiM", 0),
]


#: What the papers say of their default configurations, or docs/heads.md where they are silent.
PAPERS: dict[str, dict[str, Any]] = {
    "cs_flow": {
        "image_size": "auto", "scales": 3, "kernels": (3, 3, 3, 5), "hidden": 1024, "slope": 0.1,
        "clamp": 3.0, "attention": "none", "standardise": False, "epochs": 240, "batch_size": 16,
        "lr": 2e-4, "betas": (0.8, 0.8), "eps": 1e-4, "weight_decay": 1e-5, "clip_norm": 1.0,
        "schedule": "constant",
    },
    "csa_flow": {"attention": "ca+sa", "epochs": 240, "hidden": 1024, "lr": 2e-4, "batch_size": 16},
    "gca_flow": {
        "blocks": (2, 5, 8), "subnet": "hierarchical", "kernel": 5, "expansion": 4, "fusion": True,
        "attention": "gca", "position_channels": 64, "pool": "avg3s2", "clamp": 1.9, "lr": 1e-4,
        "batch_size": 16, "epochs": 100, "clip_norm": 2.0, "top_k": 0.03, "standardise": False,
    },
    "ms_flow": {"blocks": (2, 5, 8), "subnet": "plain", "kernel": 3, "attention": "none"},
    "dual_flow": {
        "branches": "both", "dsam": True, "layers": 6, "final_relu": False, "lr": 5e-5,
        "betas": (0.8, 0.8), "eps": 1e-8, "epochs": 200, "top_k": 0.03, "local_kernel": 3,
    },
    "f2r": {
        "steps": 6, "gamma": 1e-3, "implementation": "cls", "coreset": "once", "views": 4,
        "rotation": 30.0, "lr": 2e-4, "betas": (0.9, 0.999), "weight_decay": 0.05,
        "batch_size": 32, "epochs": 300, "select": "fixed", "positions": 0,
    },
    "pair_diff": {
        "encoder": "frozen", "image_size": 256, "layers": 2, "heads": 16, "mlp": 2048, "lr": 2e-4,
        "betas": (0.5, 0.999), "batch_size": 4, "augment": True,
    },
    "fast_flow": {"steps": 8, "kernels": (3, 1), "lr": 1e-3, "weight_decay": 1e-5, "epochs": 500},
    "patchcore": {"ratio": 0.1, "reweight": True, "neighbours": 9},
    "padim": {"channels": 100, "ridge": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_defaults_are_the_papers_and_small_is_a_preset(name: str) -> None:
    config = make_config(name, {}, "paper")
    assert {k: getattr(config, k) for k in PAPERS[name]} == PAPERS[name]
    small = make_config(name, {}, "small")
    assert small != config
    if "epochs" in PAPERS[name]:
        assert small.epochs <= 60  # type: ignore[attr-defined]


def structure(head: Head) -> Counter[tuple[str, tuple[int, ...]]]:
    """Return the tensors of a head as a multiset of (types of the modules around, shape).

    Without numbers: a part that is left out renames those behind it.
    """
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def walk(module: nn.Module, path: str) -> None:
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            found[f"{path}.{name}", tuple(tensor.shape)] += 1
        for child in module.children():
            walk(child, f"{path}/{type(child).__name__}")

    walk(head, type(head).__name__)
    return found


@cache
def scores(name: str, settings: tuple[tuple[str, Any], ...]) -> Scores:
    tiny = TINY[name]
    brief = {"epochs": 2} if "epochs" in tiny.config else {}
    head = build(name, **brief, **dict(settings))
    head.fit(tiny.data(), tiny.data(seed=1, rows=5), OPTIONS, NullProgress())
    return head.eval().score(tiny.data(seed=2, rows=4).read(0, 4))


def named(case: tuple[Any, ...]) -> str:
    return "-".join([case[0], *(f"{k}={v}" for k, v in {**case[1], **case[2]}.items())])


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_switch_changes_what_it_names_and_nothing_else(case: tuple[Any, ...]) -> None:
    name, both, switch, allowed, sign = case
    plain, other = build(name, **both), build(name, **{**both, **switch})
    before, after = structure(plain), structure(other)
    differing = [path for path, _ in ((before - after) + (after - before))]
    strangers = [path for path in differing if not re.search(allowed, path)]
    assert not strangers
    assert bool(differing) == (allowed != NOTHING)
    change = other.parameters_count() - plain.parameters_count()
    if sign:
        assert change * sign > 0
    elif allowed == NOTHING:
        assert change == 0
    a = scores(name, tuple(both.items()))
    b = scores(name, tuple({**both, **switch}.items()))
    alike = torch.equal(a.image, b.image) and torch.equal(a.maps, b.maps)
    assert not alike, "the switch has no effect"


@pytest.mark.parametrize("name", all_heads())
def test_a_head_has_its_switches_tested(name: str) -> None:
    found = name in {case[0] for case in CASES} or (name in TINY and TINY[name].switches)
    assert found, f"give {name} `switches` in TINY of tests/heads/tiny.py, or a line in CASES"


@pytest.mark.parametrize(("name", "switch"), [(n, s) for n, t in TINY.items() for s in t.switches])
def test_a_switch_of_the_tiny_instance_changes_scores_alone(name: str, switch: str) -> None:
    settings = {switch: TINY[name].switches[switch]}
    test_a_switch_changes_what_it_names_and_nothing_else((name, {}, settings, NOTHING, 0))


def test_cs_flow_is_csa_flow_without_attention_and_ms_flow_is_gca_flow_plain() -> None:
    off = build("csa_flow", attention="none", standardise=False)
    assert structure(build("cs_flow")) == Counter(
        {(k.replace("CSAFlow", "CSFlow"), v): n for (k, v), n in structure(off).items()}
    )
    for key, value in build("cs_flow").state_dict().items():
        assert torch.equal(value, off.state_dict()[key]), key
    plain = build("gca_flow", subnet="plain", attention="none", standardise=True)
    for key, value in build("ms_flow").state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key


@pytest.mark.parametrize("name", ["cs_flow", "ms_flow", "dual_flow", "pair_flow"])
def test_a_head_on_drawn_channels_is_the_head_on_maps_of_these_alone(name: str) -> None:
    tiny, most = TINY[name], 4 if name != "pair_flow" else 3
    brief = {"epochs": 2, "standardise": True}
    head = build(name, **brief, channels=most)
    assert isinstance(head, FlowHead)
    source, held, test = tiny.data(), tiny.data(seed=1, rows=5), tiny.data(seed=2, rows=4)
    head.fit(source, held, OPTIONS, NullProgress())
    batch = test.read(0, 4)
    kept = dict(zip(head.shapes, head.inputs(batch), strict=False))  # one a branch, where there are
    assert all(x.shape[1] == min(most, head.shapes[k][0]) for k, x in kept.items())
    if name == "cs_flow":  # every image scale has the same channels
        fine, coarse = (head.get_buffer(f"drawn_{i}") for i in (0, 1))
        assert torch.equal(fine, coarse)
    small = type(head)(
        make_config(name, {**tiny.config, **brief}),
        {k: (x.shape[1], x.shape[2], x.shape[3]) for k, x in kept.items()},
        tiny.map_size,
    )
    drawn = {k: v for k, v in head.state_dict().items() if not k.startswith("drawn_")}
    small.load_state_dict(drawn)
    z, log_det = head.eval().latent(batch)
    y, other = small.eval().latent(kept)
    torch.testing.assert_close([*z, log_det], [*y, other])


@pytest.mark.parametrize("name", ["cs_flow", "ms_flow"])
def test_one_channel_is_no_draw(name: str) -> None:
    with pytest.raises(ConfigError, match="channels 1"):
        make_config(name, {"channels": 1})
