"""A net's outline says what the net itself would, without its numbers."""

from __future__ import annotations

import pytest
import torch

from features.backbones.backbone import load_backbone
from features.backbones.outline import outline
from headwater.errors import ConfigError
from headwater.spec import LayerSpec


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet10t", (256, 256)),
        ("vit_tiny_patch16_224", (256, 256)),
        ("eva02_tiny_patch14_224", (252, 252)),  # whole patches
        ("cait_xxs24_224", (224, 224)),  # takes one size
    ],
)
def test_an_outline_is_that_of_the_net(name, size):
    found, net = outline(name), load_backbone(name, untrained_seed=0)
    assert found.size == size
    assert found.backbone.info == net.info
    assert found.parameters == sum(p.numel() for p in net._net.parameters())
    layers = tuple(LayerSpec((stage,)) for stage in net.info.stages)
    assert found.backbone.shapes(layers, size) == net.shapes(layers, size)
    assert found.backbone.device.type == "meta"


def test_a_net_that_cannot_be_drawn_is_built(monkeypatch):
    from features.backbones import outline as module

    build = module.build_net

    def computing(*what):
        net = build(*what)
        float(next(net.parameters()).detach().sum())  # asks for a number
        return net

    monkeypatch.setattr(module, "build_net", computing)
    found = outline("resnet10t")
    assert found.backbone.device == torch.device("cpu")
    assert found.backbone.info.strides == (2, 4, 8, 16, 32)


def test_a_mistake_is_told_as_one():
    with pytest.raises(ConfigError, match="unknown to timm"):
        outline("resnet81")
