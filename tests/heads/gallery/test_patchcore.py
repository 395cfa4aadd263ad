"""PatchCore: scores of one image alone, saving, what it reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from heads.catalogue import make_config
from heads.contract import NullProgress, TrainOptions
from heads.gallery.patchcore import PatchCore, PatchCoreConfig
from heads.training.sources import TensorSource
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo

LAYER = "layer2+layer3~avg3s1"
CPU = TrainOptions(device="cpu")


def _maps(count: int, seed: int, shape: tuple[int, int, int] = (12, 5, 4)) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) + 50


def _fitted(maps: Tensor, **settings: object) -> PatchCore:
    head = PatchCore(
        PatchCoreConfig(**{"ratio": 0.5, "score": "paper", **settings}),  # type: ignore[arg-type]
        {LAYER: tuple(maps.shape[1:])},
        (20, 16),
    )
    head.fit(TensorSource({LAYER: maps}), TensorSource({LAYER: maps[:1]}), CPU, NullProgress())
    return head


def test_score_of_an_image_does_not_depend_on_its_company() -> None:
    head, test = _fitted(_maps(6, 0), reweight=True), _maps(5, 1)
    alone = [head.score({LAYER: one[None]}) for one in test]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 3, 1]):
        together = head.score({LAYER: test[order]})
        for k, i in enumerate(order):
            assert torch.equal(together.image[k], alone[i].image[0])
            assert torch.equal(together.maps[k], alone[i].maps[0])


def test_score_by_definition() -> None:
    train, test = _maps(4, 0), _maps(2, 1)
    head = _fitted(train, ratio=1.0, sigma=0.0, reweight=False)
    bank = train.permute(0, 2, 3, 1).reshape(-1, 12).double()
    got = head.score({LAYER: test})
    for k, one in enumerate(test):
        far = torch.cdist(one.permute(1, 2, 0).reshape(-1, 12).double(), bank)
        near = far.amin(1).reshape(5, 4)
        assert got.image[k].item() == pytest.approx(near.max().item(), rel=1e-5)
        large = torch.nn.functional.interpolate(near[None, None], (20, 16), mode="bilinear")[0, 0]
        assert got.maps[k].double() == pytest.approx(large, rel=1e-5)


def test_reweighting_by_definition() -> None:
    train, test = _maps(4, 0), _maps(1, 1)
    head = _fitted(train, ratio=1.0, reweight=True, neighbours=3)
    bank = train.permute(0, 2, 3, 1).reshape(-1, 12).double()
    far = torch.cdist(test[0].permute(1, 2, 0).reshape(-1, 12).double(), bank)
    patch = int(far.amin(1).argmax())
    nearest = int(far[patch].argmin())
    around = torch.cdist(bank[nearest][None], bank)[0].argsort()[:3]
    s = far[patch, nearest]
    want = (1 - s.exp() / far[patch, around].exp().sum()) * s
    assert head.score({LAYER: test}).image.item() == pytest.approx(want.item(), rel=1e-4)


def test_a_gallery_of_one_vector_still_tells_images_apart() -> None:
    head = _fitted(_maps(4, 0), limit=1)
    assert len(head.gallery) == 1
    near, far = _maps(1, 3), _maps(1, 3) + 5
    scores = head.score({LAYER: torch.cat([near, far])}).image
    assert 0 < scores[0] < scores[1]


def test_layers_are_chosen_by_stride() -> None:
    def layer(info: BackboneInfo, **settings: object) -> str:
        config = dataclasses.replace(PatchCoreConfig(), **settings)  # type: ignore[arg-type]
        return PatchCore.needs(config, info, (256, 256)).layers[0].name

    stages = ("layer1", "layer2", "layer3")
    resnet = BackboneInfo("resnet18", stages, (64, 128, 256), (4, 8, 16))
    assert layer(resnet) == LAYER
    assert layer(resnet, nodes=("layer1",)) == "layer1~avg3s1"
    vit = BackboneInfo("vit", (), (), (), tokens=True, depth=12)
    assert layer(vit) == "blocks.6+blocks.10~avg3s1"
    mobile = BackboneInfo(
        "m", ("blocks.1", "blocks.2", "blocks.4", "blocks.6"), (1,) * 4, (4, 8, 16, 32)
    )
    assert layer(mobile) == "blocks.2+blocks.4~avg3s1"
    one = BackboneInfo("one", ("deep",), (9,), (32,))
    assert layer(one) == "deep~avg3s1"
    with pytest.raises(ConfigError, match="no stages"):
        layer(BackboneInfo("none", (), (), ()))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="ratio"):
        make_config("patchcore", {"ratio": 2.0})
