"""Nets built from options: seeds, mistakes, the stride in the first convolution."""

from __future__ import annotations

import pytest
import torch

from features.backbones.backbone import load_backbone
from headwater.errors import ConfigError
from tests.features.nets import NET, layers


def test_untrained_weights_come_from_their_seed_only():
    a, b, c = (load_backbone(NET, untrained_seed=s) for s in (3, 3, 4))
    x = torch.randn(1, 3, 64, 64)
    first, second, third = (n.maps(x, layers("layer2"))["layer2"] for n in (a, b, c))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert a.weights_id == "untrained:3"
    a.check_weights(layers("layer4"))


def test_unknown_models_and_options_are_errors():
    with pytest.raises(ConfigError, match=r"'resnet81' is unknown.*resnet"):
        load_backbone("resnet81", untrained_seed=0)
    with pytest.raises(
        ConfigError, match=r"no tag 'best' of resnet50\b[\s\S]*resnet50\.a1_in1k"
    ) as no:
        load_backbone("resnet50.best", untrained_seed=0)
    assert "--backbone resnet50" in no.value.remedy
    with pytest.raises(ConfigError, match="colour"):
        load_backbone(NET, untrained_seed=0, options={"colour": "red"})
    with pytest.raises(ConfigError, match="checkpoint_path"):
        load_backbone(NET, untrained_seed=0, options={"checkpoint_path": "x"})
    with pytest.raises(ConfigError, match="three numbers"):
        load_backbone(NET, untrained_seed=0, options={"std": [1, 2]})
    with pytest.raises(ConfigError, match="bottleneck"):
        load_backbone(NET, untrained_seed=0, options={"stride_in_1x1": True})


def test_the_stride_moves_into_the_first_convolution():
    net = load_backbone("resnet26", untrained_seed=0, options={"stride_in_1x1": True})._net
    for stage in (net.layer2, net.layer3, net.layer4):
        assert stage[0].conv1.stride == (2, 2)
        assert stage[0].conv2.stride == (1, 1)
    assert net.layer1[0].conv1.stride == (1, 1)
