"""Synthetic defects alter a region and nothing else."""

from __future__ import annotations

import torch

from heads.gallery.synthetic import KINDS, blob, synthetic_defects
from tests.heads.gallery.tiny import textures


def test_synthetic_defects_alter_their_mask_and_nothing_else() -> None:
    normal = textures(4, 7)
    made = synthetic_defects(normal, seed=1)
    assert len(made.maps) == 4 * (1 + len(KINDS))
    assert made.masks.flatten(1).any(1).tolist() == [False] * 4 + [True] * 12
    for k, (copy, mask) in enumerate(zip(made.maps[4:], made.masks[4:], strict=True)):
        source = normal[k // len(KINDS)]
        assert mask.any()
        assert torch.equal(copy[:, ~mask], source[:, ~mask])
        assert not torch.equal(copy[:, mask], source[:, mask])
    assert torch.equal(made.maps, synthetic_defects(normal, seed=1).maps)


def test_regions_stay_small_whatever_the_map() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in ((1, 2), (3, 3), (32, 20)):
        for _ in range(20):
            share = blob(*size, generator).float().mean()
            assert 0 < share < 1
            assert share <= 0.13 or size != (32, 20)
