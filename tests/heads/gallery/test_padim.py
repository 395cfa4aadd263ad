"""PaDiM against its definition, position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from heads.contract import NullProgress, TrainOptions
from heads.gallery.padim import PaDiM, PaDiMConfig
from heads.training.sources import TensorSource
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo

LAYER = "layer1+layer2+layer3"
CPU = TrainOptions(device="cpu")


def _maps(count: int, seed: int) -> Tensor:
    return torch.randn(count, 10, 4, 3, generator=torch.Generator().manual_seed(seed)) * 2 + 5


def _fitted(maps: Tensor, views: list[int] | None = None, **settings: object) -> PaDiM:
    config = PaDiMConfig(**{"channels": 6, "sigma": 0.0, "score": "paper", **settings})  # type: ignore[arg-type]
    head = PaDiM(config, {LAYER: (10, 4, 3)}, (4, 3))
    head.fit(
        TensorSource({LAYER: maps}, views=views),
        TensorSource({LAYER: maps[:1]}),
        CPU,
        NullProgress(),
    )
    return head


def test_distances_are_mahalanobis_per_position() -> None:
    train, test = _maps(20, 0), _maps(3, 1)
    head = _fitted(train)
    got = head.score({LAYER: test})
    kept = head.drawn.numpy()
    assert len(set(kept.tolist())) == 6
    for i in range(4):
        for j in range(3):
            x = train[:, kept, i, j].double().numpy()
            precision = np.linalg.inv(np.cov(x, rowvar=False) + 0.01 * np.eye(6))
            for k in range(3):
                away = test[k, kept, i, j].double().numpy() - x.mean(0)
                want = np.sqrt(away @ precision @ away)
                assert got.maps[k, i, j].item() == pytest.approx(want, rel=1e-4)
    assert torch.equal(got.image, got.maps.amax((1, 2)))


def test_blocks_of_positions_and_views_do_not_matter() -> None:
    train = _maps(20, 0)
    whole = _fitted(train, channels=10)
    small = _fitted(torch.cat((train, _maps(5, 9))), [0] * 20 + [1] * 5, channels=10)
    assert torch.equal(whole.factor, small.factor)
    many = PaDiM(PaDiMConfig(channels=200, memory=1), {LAYER: (300, 4, 3)}, (4, 3))
    large = torch.randn(8, 300, 4, 3, generator=torch.Generator().manual_seed(0))
    many.fit(TensorSource({LAYER: large}), TensorSource({LAYER: large}), CPU, NullProgress())
    reference = PaDiM(PaDiMConfig(channels=200, memory=512), {LAYER: (300, 4, 3)}, (4, 3))
    reference.fit(TensorSource({LAYER: large}), TensorSource({LAYER: large}), CPU, NullProgress())
    torch.testing.assert_close(many.factor, reference.factor)


def test_the_seed_draws_the_channels() -> None:
    assert not torch.equal(_fitted(_maps(5, 0), seed=1).drawn, _fitted(_maps(5, 0), seed=2).drawn)


def test_layers_by_stride_and_refusals() -> None:
    net = BackboneInfo("r", ("layer1", "layer2", "layer3"), (64, 128, 256), (4, 8, 16))
    assert PaDiM.needs(PaDiMConfig(), net, (256, 256)).layers[0].name == LAYER
    vit = BackboneInfo("v", (), (), (), tokens=True, depth=12)
    assert (
        PaDiM.needs(PaDiMConfig(), vit, (224, 224)).layers[0].name == "blocks.2+blocks.5+blocks.8"
    )
    with pytest.raises(ConfigError, match="ridge"):
        PaDiMConfig(ridge=0.0)
