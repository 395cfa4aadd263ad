"""Tiny labelled pairs: structured features of which a square changed, and nuisance noise."""

from __future__ import annotations

import torch

from heads.contract import Shape
from heads.pairs.source import Pair, PairSource
from heads.training.sources import TensorSource


def pair_source(
    shapes: dict[str, Shape],
    rows: int,
    seed: int,
    map_size: tuple[int, int] = (16, 16),
    *,
    changed: bool = True,
) -> PairSource:
    """Return pairs whose features differ by noise and, where `changed`, more in one square."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(rows, *map_size)
    for mask in masks if changed else ():
        top, left = (int(torch.randint(0, s // 2, (), generator=g)) for s in map_size)
        mask[top : top + map_size[0] // 2, left : left + map_size[1] // 3] = 1
    history, current = {}, {}
    for name, (c, h, w) in shapes.items():
        history[name] = torch.rand(rows, c, h, w, generator=g)
        noise = 0.1 * torch.randn(rows, c, h, w, generator=g)
        where = torch.nn.functional.adaptive_avg_pool2d(masks[:, None], (h, w))
        shift = where * torch.randn(1, c, 1, 1, generator=torch.Generator().manual_seed(9))
        current[name] = history[name] + noise * (1 + torch.rand(rows, 1, 1, 1, generator=g)) + shift
    ids = [[f"{side}{seed}-{i}" for i in range(rows)] for side in "ch"]
    pairs = [Pair(f"place {i}", a, b) for i, (a, b) in enumerate(zip(*ids, strict=True))]
    return PairSource(TensorSource(current, ids[0]), TensorSource(history, ids[1]), pairs, masks)
