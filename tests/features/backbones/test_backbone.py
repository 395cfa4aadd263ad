import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from features.backbones import precision as precision_module
from features.backbones.backbone import load_backbone, restore_backbone
from headwater.errors import ConfigError, LayerError
from tests.features.nets import NET, layers, state_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"{NET}.whole.safetensors"
    save_file(state_of(), path)
    return path


@pytest.fixture(scope="module")
def backbone(weights):
    return load_backbone(NET, weights)


def plain_stages(x: torch.Tensor, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import timm

    net = timm.create_model(NET, pretrained=False).eval()
    net.load_state_dict(state)
    found = {}
    with torch.no_grad():
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            found[name] = x = getattr(net, name)(x)
    return found


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return torch.randn(5, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_maps_are_the_modules_outputs(backbone, batch):
    want = plain_stages(batch, state_of())
    got = backbone.maps(batch, layers("layer1", "layer3"))
    for name in ("layer1", "layer3"):
        assert got[name].dtype == torch.float32
        assert torch.allclose(got[name], want[name], atol=1e-4, rtol=1e-4)
    shapes = backbone.shapes(layers("layer1", "layer3"), (64, 96))
    assert shapes == {k: tuple(v.shape[1:]) for k, v in got.items()}


def test_scale_pooling_and_fusion_are_as_the_specification_says(backbone, batch):
    names = [
        "layer1~avg3s2",
        "layer2~mean3",
        "layer2+layer3~mean3",
        "layer3@0.5",
        "layer3+layer3~sum",
    ]
    got = backbone.maps(batch, layers(*names))
    want = plain_stages(batch, state_of())
    half = F.interpolate(batch, size=(32, 48), mode="bilinear", antialias=True)

    def mean3(x: torch.Tensor) -> torch.Tensor:
        ones = F.conv2d(torch.ones_like(x[:1, :1]), torch.ones(1, 1, 3, 3), padding=1)
        kernel = torch.ones(x.shape[1], 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1]) / ones

    deep = F.interpolate(mean3(want["layer3"]), size=want["layer2"].shape[2:], mode="bilinear")
    expected = {
        names[0]: F.avg_pool2d(want["layer1"], 3, 2, 1),
        names[1]: mean3(want["layer2"]),
        names[2]: torch.cat([mean3(want["layer2"]), deep], dim=1),
        names[3]: plain_stages(half, state_of())["layer3"],
        names[4]: 2 * want["layer3"],
    }
    assert list(got) == names
    for name in names:
        assert torch.allclose(got[name], expected[name], atol=1e-4, rtol=1e-4), name


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_maps_do_not_depend_on_the_company_or_the_threads(backbone, precision):
    images = torch.randn(11, 3, 64, 64)
    wanted = layers("layer2", "layer3@0.5")
    whole = backbone.maps(images, wanted, precision)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        turned = backbone.maps(images.flip(0), wanted, precision)
        torch.set_num_threads(1)
        single = backbone.maps(images[3:4], wanted, precision)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    for name, maps in whole.items():
        assert torch.equal(maps, turned[name].flip(0))
        assert torch.equal(maps[3:4], single[name])


def test_an_output_is_not_overwritten_by_what_follows(backbone, batch):
    # The block adds its shortcut in place to what bn2 gave, and activates in place.
    alone = backbone.maps(batch, layers("layer1.0.bn2"))
    together = backbone.maps(batch, layers("layer1.0.bn2", "layer1", "layer2"))
    assert torch.equal(alone["layer1.0.bn2"], together["layer1.0.bn2"])
    assert alone["layer1.0.bn2"].min() < 0


def test_bfloat16_stays_close(backbone, batch):
    exact = backbone.maps(batch, layers("layer3"))["layer3"]
    rough = backbone.maps(batch, layers("layer3"), "bfloat16")["layer3"]
    assert not torch.equal(exact, rough)
    assert F.cosine_similarity(exact.flatten(1), rough.flatten(1)).min() > 0.999


def test_missing_nodes_are_named_with_their_neighbours(backbone):
    with pytest.raises(LayerError, match=r"no node 'layer9'[\s\S]*layer1, layer2, layer3, layer4"):
        backbone.check_weights(layers("layer9"))
    with pytest.raises(LayerError, match=r"near it:.*layer3\.0\.conv1"):
        backbone.maps(torch.zeros(1, 3, 64, 64), layers("layer3.0.conv9"))
    with pytest.raises(LayerError, match="no map"):
        backbone.shapes(layers("fc"), (64, 64))
    with pytest.raises(LayerError, match="cannot be summed"):
        backbone.shapes(layers("layer2+layer3~sum"), (64, 64))
    with pytest.raises(LayerError, match="no final norm"):
        backbone.shapes(layers("layer3~norm"), (64, 64))
    with pytest.raises(ConfigError, match="odd"):
        backbone.shapes(layers("layer3~mean2"), (64, 64))


def test_untrained_weights_come_from_their_seed_only():
    a, b, c = (load_backbone(NET, untrained_seed=s) for s in (3, 3, 4))
    x = torch.randn(1, 3, 64, 64)
    first, second, third = (n.maps(x, layers("layer2"))["layer2"] for n in (a, b, c))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert a.weights_id == "untrained:3"
    a.check_weights(layers("layer4"))


def test_the_exported_state_gives_the_same_maps(backbone, batch):
    wanted = layers("layer2", "layer1@0.5")
    state = backbone.export_state(wanted)
    assert not [k for k in state if k.startswith(("layer3", "fc"))]
    copy = restore_backbone(NET, state, weights_id=backbone.weights_id)
    copy.check_weights(wanted)
    mine, its = backbone.maps(batch, wanted), copy.maps(batch, wanted)
    assert all(torch.equal(mine[k], its[k]) for k in mine)
    assert copy.default_spec(64, precision="float32") == backbone.default_spec(
        64, precision="float32"
    )


def test_unknown_models_and_options_are_errors():
    with pytest.raises(ConfigError, match=r"'resnet81' is unknown.*resnet"):
        load_backbone("resnet81", untrained_seed=0)
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


def test_the_precision_is_what_the_hardware_and_a_measurement_say(backbone, monkeypatch):
    monkeypatch.setattr(precision_module, "_BEST", {})
    monkeypatch.setattr(precision_module, "_cpu_has_bfloat16", lambda: False)
    calls = backbone.calls
    assert backbone.best_precision() == "float32"
    monkeypatch.setattr(precision_module, "_cpu_has_bfloat16", lambda: True)
    assert backbone.best_precision() == "float32", "remembered for the process"
    for slower in ("float32", "bfloat16"):
        monkeypatch.setattr(precision_module, "_BEST", {})
        maps = type(backbone).maps

        def slow(self, batch, wanted, precision, slower=slower, maps=maps):
            if precision == slower:
                time.sleep(0.2)
            return maps(self, batch[:1, :, :32, :32], wanted, precision)

        with monkeypatch.context() as patch:
            patch.setattr(type(backbone), "maps", slow)
            assert backbone.best_precision() == ({"float32", "bfloat16"} - {slower}).pop()
    assert backbone.calls == calls


def test_threads_share_a_backbone(backbone):
    x = torch.randn(4, 3, 64, 64)
    want = {n: backbone.maps(x, layers(n))[n] for n in ("layer1", "layer2", "layer3")}
    wrong = []

    def work(name: str) -> None:
        for _ in range(5):
            if not torch.equal(backbone.maps(x, layers(name))[name], want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(n,)) for n in want]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
