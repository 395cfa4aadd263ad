"""Outputs by module name: nothing more is run, and every kind of output becomes maps."""

from __future__ import annotations

import pytest
import torch

from features.backbones.backbone import load_backbone
from headwater.errors import ConfigError
from tests.features.nets import layers


def test_one_forward_a_scale_and_nothing_behind_the_last_node(backbone, batch):
    backbone.check_weights(layers("layer1", "layer2"))  # looks the net over once
    ran = []
    net = backbone._net
    handles = [
        m.register_forward_hook(lambda m, a, o, k=k: ran.append(k)) for k, m in net.named_modules()
    ]
    calls = backbone.calls
    try:
        backbone.maps(batch[:2], layers("layer1", "layer2", "layer2~mean3"))
        assert backbone.calls == calls + 1
        assert ran.count("conv1.0") == 1
        assert not [k for k in ran if k.startswith(("layer3", "layer4", "fc", "global_pool"))]
        backbone.maps(batch[:2], layers("layer1", "layer1@0.5", "layer2@0.5"))
        assert backbone.calls == calls + 3
        assert ran.count("conv1.0") == 3
    finally:
        for handle in handles:
            handle.remove()


def test_an_output_is_not_overwritten_by_what_follows(backbone, batch):
    # The block adds its shortcut in place to what bn2 gave, and activates in place.
    alone = backbone.maps(batch, layers("layer1.0.bn2"))
    together = backbone.maps(batch, layers("layer1.0.bn2", "layer1", "layer2"))
    assert torch.equal(alone["layer1.0.bn2"], together["layer1.0.bn2"])
    assert alone["layer1.0.bn2"].min() < 0


def test_a_vision_transformer_gives_maps_of_its_patches():
    vit = load_backbone("vit_tiny_patch16_224", untrained_seed=0, options={"depth": 3})
    assert vit.info.tokens
    assert vit.info.depth == 3
    assert vit.info.stages == ("blocks.0", "blocks.1", "blocks.2")
    assert set(vit.info.strides) == {16}
    x = torch.randn(1, 3, 64, 96)
    wanted = layers("blocks.1", "blocks.0+blocks.2~norm~sum", "patch_embed")
    got = vit.maps(x, wanted)
    net = vit._net
    with torch.no_grad():
        tokens = [net._pos_embed(net.patch_embed(x))]
        for block in net.blocks:
            tokens.append(block(tokens[-1]))
    grid = lambda t: t[:, 1:].transpose(1, 2).reshape(1, 192, 4, 6)  # noqa: E731
    assert torch.allclose(got["blocks.1"], grid(tokens[2]), atol=1e-4)
    both = grid(tokens[1]) + grid(net.norm(tokens[3]).detach())
    assert torch.allclose(got["blocks.0+blocks.2~norm~sum"], both, atol=1e-4)
    assert got["patch_embed"].shape == (1, 192, 4, 6)
    with pytest.raises(ConfigError, match=r"60x60 px[\s\S]*224x224"):
        vit.shapes(wanted, (60, 60))
    state = vit.export_state(layers("blocks.1"))
    assert {"pos_embed", "cls_token", "patch_embed.proj.weight"} <= set(state)
    assert "norm.weight" not in state
    assert "norm.weight" in vit.export_state(layers("blocks.1~norm"))


def test_nets_with_channels_last():
    swin = load_backbone(
        "swin_tiny_patch4_window7_224", untrained_seed=0, options={"depths": [1, 1, 1, 1]}
    )
    assert swin.info.channels == (96, 192, 384, 768)
    assert swin.info.strides == (4, 8, 16, 32)
    shapes = swin.shapes(layers("layers.1", "patch_embed.proj"), (224, 224))
    assert shapes == {"layers.1": (192, 28, 28), "patch_embed.proj": (96, 56, 56)}
