"""A tiny `f2r` on maps that there is something to factorize in."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.catalogue import make_config
from heads.contract import NullProgress, TrainOptions
from heads.gallery.f2r import F2R
from heads.training.sources import TensorSource

LAYER = "layer2+layer3~avg3s1"
CPU = TrainOptions(device="cpu", precision="float32", threads=1)
SHAPES = {LAYER: (8, 4, 5)}
TINY = {"epochs": 30, "views": 0, "batch_size": 4, "lr": 3e-3, "ratio": 0.5, "steps": 3}
TINY |= {"select": "fixed", "factorize": "always"}


def textures(count: int, seed: int) -> Tensor:
    """Texture in the first channels, position in the last ones: something to factorize."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, 8, 4, 5, generator=generator)
    found[:, 4] += torch.linspace(-2, 2, 5)
    found[:, 5] += torch.linspace(-2, 2, 4)[:, None]
    return found + 3


def fit_f2r(**settings: object) -> tuple[F2R, dict[str, float]]:
    head = F2R(make_config("f2r", {**TINY, **settings}), SHAPES, (16, 20))  # type: ignore[arg-type]
    source, held = TensorSource({LAYER: textures(12, 0)}), TensorSource({LAYER: textures(4, 1)})
    return head, head.fit(source, held, CPU, NullProgress())
