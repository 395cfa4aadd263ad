"""Images and masks as heads read them that look at pixels."""

from __future__ import annotations

import pytest
import torch

from features.images.pairs import scan_pairs
from features.images.sources import ImageSource, PairMasks
from heads.pairs.source import Pair, PairSource
from headwater.errors import DataError


def test_images_and_masks_reach_a_pair_source(pair_folder):
    found = scan_pairs(pair_folder)
    images = ImageSource(found.images(), lambda x: torch.from_numpy(x).permute(2, 0, 1), (40, 50))
    masks = PairMasks([(p.key, p.mask) for p in found.pairs], lambda m: m[::2, ::2])
    pairs = [Pair(p.key, p.current.sha256, p.history.sha256) for p in found.pairs]
    source = PairSource(images, images, pairs, masks)
    for batch in source.batches(3, seed=0):
        difference = (batch["current:image"] - batch["history:image"]).abs().amax(1)
        for changed, mask in zip(difference > 0, batch["_mask"][:, 0] > 0, strict=True):
            assert not (changed[::2, ::2] & ~mask).any()
    assert source.mask(1).shape == (20, 25)
    assert not source.mask(1).any()
    bare = [("a", found.pairs[0].mask), ("k", None)]
    with pytest.raises(DataError, match="1 of 2 pairs have no mask, the first k"):
        PairMasks(bare, lambda m: m)
