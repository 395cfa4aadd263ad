"""Outputs by module name: nothing more is run, and every kind of output becomes maps."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from features.backbones.backbone import load_backbone
from features.backbones.nodes import to_map
from headwater.errors import ConfigError, WeightsError
from tests.features.nets import layers, state_of


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
    with pytest.raises(ConfigError, match=r"60x60 px[\s\S]*whole patches, as 64x64"):
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
    assert swin.shapes(layers("layers.1"), (224, 448)) == {"layers.1": (192, 28, 56)}


DINO = "vit_small_patch14_reg4_dinov2"


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model."])
def test_register_tokens_are_no_part_of_the_map(tmp_path, prefix):
    # A rectangle, to which the codes of 4x4 positions are stretched; 5 tokens stand in front.
    options = {"img_size": 56, "depth": 2}
    state = state_of(DINO, **options)
    file = tmp_path / f"{DINO}.own.safetensors"
    save_file({prefix + k: v for k, v in state.items()}, file)
    vit = load_backbone(DINO, file, options=options)
    wanted = layers("blocks.0", "blocks.1", "patch_embed")
    vit.check_weights(wanted)
    x = torch.randn(2, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    got, net = vit.maps(x, wanted), vit._net
    with torch.no_grad():
        tokens = net.blocks[0](net._pos_embed(net.patch_embed(x)))
    assert tokens.shape == (2, 5 + 4 * 6, 384)
    by_hand = torch.stack([tokens[:, 5 + 6 * i : 5 + 6 * i + 6] for i in range(4)], 1)
    assert torch.allclose(got["blocks.0"], by_hand.permute(0, 3, 1, 2), atol=1e-5)
    # Content that moves is met where it moved to: no row and column are exchanged.
    for row, column in ((0, 0), (0, 5), (3, 0), (2, 4)):
        other = x.clone()
        other[:, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] += 3
        for name, maps in vit.maps(other, wanted).items():
            moved = (maps - got[name]).square().sum(1).flatten(1).argmax(1)
            assert moved.tolist() == [6 * row + column] * 2, name
    state.pop("reg_token")
    save_file({prefix + k: v for k, v in state.items()}, file)
    with pytest.raises(WeightsError, match=r"lack 1 tensors[\s\S]*reg_token"):
        load_backbone(DINO, file, options=options).check_weights(wanted)


def test_tokens_that_nothing_stands_in_front_of_keep_all():
    # 5 rows of 6 patches: without five of them they would make a grid of 5x5, too.
    output = torch.arange(30.0)[None, :, None].expand(1, 30, 8)
    made = to_map(output, (70, 84), 5, False)
    assert made.shape == (1, 8, 5, 6)
    assert torch.equal(made[0, 0], torch.arange(30.0).reshape(5, 6))
    behind = torch.cat([torch.full((1, 5, 8), -1.0), output], 1)
    assert torch.equal(to_map(behind, (70, 84), 5, False), made)


def test_what_moves_in_an_image_moves_in_maps_with_channels_last():
    name = "swin_tiny_patch4_window7_224"
    swin = load_backbone(name, untrained_seed=0, options={"depths": [2, 1, 1, 1]})
    x = torch.zeros(1, 3, 112, 168)
    plain = swin.maps(x, layers("layers.0", "layers.1"))
    assert {k: tuple(v.shape[1:]) for k, v in plain.items()} == {
        "layers.0": (96, 28, 42), "layers.1": (192, 14, 21)
    }  # fmt: skip
    for top, left in ((0, 0), (0, 144), (96, 0), (48, 120)):
        other = x.clone()
        other[:, :, top : top + 8, left : left + 8] = 3
        for layer, maps in swin.maps(other, layers("layers.0", "layers.1")).items():
            stride = 4 if layer == "layers.0" else 8
            far = (maps - plain[layer])[0].square().sum(0)
            row, column = divmod(int(far.argmax()), far.shape[1])
            assert abs(row * stride - top) <= 8, layer
            assert abs(column * stride - left) <= 8, layer
