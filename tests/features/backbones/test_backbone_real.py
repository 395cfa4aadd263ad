"""Real weights find real defects, an untrained net does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from features.backbones.backbone import load_backbone
from headwater.spec import LayerSpec
from tests.features.nets import layers

REAL = {
    "resnet18": ({}, "layer2+layer3~mean3", 0.99),
    "resnet50": ({"stride_in_1x1": True}, "layer2+layer3~mean3", 0.99),
    "densenet169": ({}, "features.denseblock2~mean3", 0.95),
    "mobilenetv2_100": (
        {
            "num_classes": 1001,
            "pad_type": "same",
            "bn_eps": 1e-3,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "blocks.2+blocks.4~mean3",
        0.99,
    ),
    "vit_tiny_patch16_224": ({"num_classes": 200}, "blocks.5+blocks.9~mean3", 0.99),
}


def leather_auroc(backbone, layer: LayerSpec, data: Path) -> float:
    """Image AUROC of nearest-neighbour distances to the patches of four normal images."""
    from features.extract import Job, extract
    from features.images.scan import scan_mvtec

    records = scan_mvtec(data / "images/mvtec_leather_sample").records
    spec = backbone.default_spec((256, 256), precision="float32")
    jobs = [Job(r.sha256, r.path) for r in records]
    blocks = extract(jobs, backbone, spec, (layer,))
    maps = torch.cat([torch.from_numpy(b.maps[layer.name]).float() for b in blocks])
    patches = maps.flatten(2).transpose(1, 2)
    bank = patches[: sum(r.split == "train" for r in records)].flatten(0, 1)
    bank = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:1500]]
    scores = torch.stack([torch.cdist(p, bank).min(dim=1).values.max() for p in patches])
    test = [
        (float(s), r.is_normal) for s, r in zip(scores, records, strict=True) if r.split == "test"
    ]
    pairs = [(a, b) for a, bad in test if not bad for b, good in test if good]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_weights_give_features_that_find_defects(shared_data, name):
    options, layer, least = REAL[name]
    backbone = load_backbone(name, shared_data / "weights", options=options)
    wanted = layers(layer)
    backbone.check_weights(wanted)
    assert leather_auroc(backbone, wanted[0], shared_data) >= least


@pytest.mark.real
def test_the_measure_tells_an_untrained_net(shared_data):
    untrained = load_backbone("resnet18", untrained_seed=0)
    assert leather_auroc(untrained, layers("layer2+layer3~mean3")[0], shared_data) < 0.95
