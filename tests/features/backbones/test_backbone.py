"""Maps of a backbone are those of its modules, as the layers' specifications say."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from features.backbones.backbone import restore_backbone
from tests.features.nets import NET, layers, state_of


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


def test_bfloat16_stays_close(backbone, batch):
    exact = backbone.maps(batch, layers("layer3"))["layer3"]
    rough = backbone.maps(batch, layers("layer3"), "bfloat16")["layer3"]
    assert not torch.equal(exact, rough)
    assert F.cosine_similarity(exact.flatten(1), rough.flatten(1)).min() > 0.999


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
