"""Any timm backbone with any head for which it has the maps; a clear error otherwise."""

from functools import cache

import pytest
import torch

from features.backbones.backbone import Backbone, load_backbone
from features.backbones.outline import outline
from heads.catalogue import all_heads, get_head, make_config
from headwater.errors import ConfigError

SIZES = {
    "convnext_atto": 256,
    "densenet121": 256,
    "efficientnet_b0": 256,
    "inception_v3": 299,  # pads nothing: its stages have no whole strides
    "swin_tiny_patch4_window7_224": 224,  # channels last
    "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,  # two tokens that are no patches
}
#: What a transformer's maps, all of one size, do not give, and why.
REFUSED = {
    "gca_flow": "no stage of stride 4, 8",
    "ms_flow": "no stage of stride 4, 8",
    "cs_flow": r"no whole number of \w+'s patches",  # 224 px at scale 0.25 are 3.5 patches
    "csa_flow": r"no whole number of \w+'s patches",
}


@cache
def backbone(name: str) -> Backbone:
    return load_backbone(name, untrained_seed=0)


@pytest.mark.parametrize("head", sorted(all_heads()))
@pytest.mark.parametrize("name", SIZES)
def test_a_head_is_built_on_what_the_backbone_gives(name: str, head: str) -> None:
    size = (SIZES[name], SIZES[name])
    cls, config, net = get_head(head), make_config(head, {}, "small"), backbone(name)
    if net.info.tokens and head in REFUSED:
        with pytest.raises(ConfigError, match=f"{head}.*{REFUSED[head]}") as caught:
            cls.needs(config, net.info, size)
        assert caught.value.remedy
        return
    shapes = net.shapes(cls.needs(config, net.info, size).layers, size)
    with torch.device("meta"):
        built = cls(config, shapes, size)
    assert list(built.shapes) == list(shapes)


#: What goes into whole patches and, for cs_flow, into whole patches of a quarter.
RECTANGLES = {
    "resnet18": (192, 320),
    "inception_v3": (299, 411),
    "swin_tiny_patch4_window7_224": (224, 336),
    "vit_tiny_patch16_224": (256, 320),
    "vit_small_patch14_reg4_dinov2": (224, 280),
}


@pytest.mark.parametrize("head", sorted(all_heads()))
@pytest.mark.parametrize("name", RECTANGLES)
def test_a_head_is_built_on_rectangles(name: str, head: str) -> None:
    net, size = outline(name).backbone, RECTANGLES[name]
    cls, config = get_head(head), make_config(head, {}, "small")
    if net.info.tokens and head in ("gca_flow", "ms_flow"):
        with pytest.raises(ConfigError, match="no stage of stride"):
            cls.needs(config, net.info, size)
        return
    # A size that is given comes before a head's own.
    shapes = net.shapes(cls.needs(config, net.info, size).layers, size)
    for channels, height, width in shapes.values():
        assert channels > 3
        assert height < width, "height and width are exchanged"
    with torch.device("meta"):
        built = cls(config, shapes, size)
    assert list(built.shapes) == list(shapes)


def test_cs_flow_takes_a_transformer_whose_patches_fill_the_smallest_image() -> None:
    net = load_backbone("vit_tiny_patch16_224", options={"img_size": 256}, untrained_seed=0)
    with pytest.raises(ConfigError, match="224x224") as caught:
        get_head("cs_flow").needs(make_config("cs_flow", {}), net.info, (224, 224))
    assert "img_size=256" in caught.value.remedy
    layers = get_head("cs_flow").needs(make_config("cs_flow", {}), net.info, (256, 256)).layers
    assert [s[1:] for s in net.shapes(layers, (256, 256)).values()] == [(16, 16), (8, 8), (4, 4)]


def test_a_backbone_without_stages_is_named() -> None:
    info = backbone("convnext_atto").info
    empty = type(info)("some_net", (), (), ())
    for head in all_heads():
        with pytest.raises(ConfigError, match="some_net"):
            get_head(head).needs(make_config(head, {}, "small"), empty, (256, 256))
