"""Pairs: joined by key, read alike in and out of memory."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from heads.pairs.source import Pair, PairSource
from heads.training.sources import TensorSource
from headwater.errors import DataError, ShapeError


def numbered(rows, start):
    """Return a source whose map values tell row and layer."""
    values = torch.arange(start, start + rows, dtype=torch.float32)
    maps = {"a": values.view(-1, 1, 1, 1).expand(-1, 2, 2, 3), "b": -values.view(-1, 1, 1, 1)}
    return TensorSource(maps, [f"i{start + r}" for r in range(rows)])


def joined(count=90, **options):
    """Return pairs in an order of their own; every third shares history image 1000."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3)).tolist()
    pairs = [Pair(f"k{i}", f"i{i}", f"i{1000 + i * (i % 3 > 0)}") for i in order]
    masks = torch.tensor(order).view(-1, 1, 1).expand(-1, 2, 2) % 2
    return PairSource(numbered(count, 0), numbered(count, 1000), pairs, masks, **options), order


def test_pairs_join_by_key_and_carry_their_masks():
    source, order = joined()
    seen = []
    for batch in source.batches(7, seed=1):
        rows = batch["_rows"].tolist()
        wanted = torch.tensor([order[r] for r in rows], dtype=torch.float32)
        assert torch.equal(batch["current:a"][:, 0, 0, 0], wanted)
        assert torch.equal(batch["current:b"][:, 0, 0, 0], -wanted)
        assert torch.equal(batch["history:a"][:, 1, 1, 2], 1000 + wanted * (wanted % 3 > 0))
        assert batch["_mask"].shape == (len(rows), 1, 2, 2)
        assert torch.equal(batch["_mask"][:, 0, 0, 0], wanted % 2)
        seen += rows
    assert sorted(seen) == list(range(90))
    assert seen != sorted(seen)


def test_order_and_content_do_not_depend_on_memory(monkeypatch):
    monkeypatch.setattr("heads.pairs.source.WINDOW_BYTES", 1)  # windows of 64 rows: two of them
    (rich, _), (poor, _) = joined(), joined(memory=0)
    for seed in (None, 4):
        for size in (8, 50):
            batches = list(
                zip(rich.batches(size, seed=seed), poor.batches(size, seed=seed), strict=True)
            )
            assert all(torch.equal(a[k], b[k]) for a, b in batches for k in a)
    assert poor._resident is None
    assert rich._resident is not None
    sent = pickle.loads(pickle.dumps(rich))
    assert sent._resident is None
    together = zip(sent.batches(9), rich.batches(9), strict=True)
    assert all(torch.equal(a[k], b[k]) for a, b in together for k in a)
    first = [b["_rows"].tolist() for b in rich.batches(8, seed=4)]
    assert first == [b["_rows"].tolist() for b in rich.batches(8, seed=4)]
    assert first != [b["_rows"].tolist() for b in rich.batches(8, seed=5)]
    rich.release()
    assert rich._resident is None
    assert first == [b["_rows"].tolist() for b in rich.batches(8, seed=4)]
    assert [len(b["_rows"]) for b in poor.batches(40, seed=1, drop_last=True)] == [40, 40]


def test_subsets_keep_each_pairs_own_mask_and_the_split_is_by_content():
    base, order = joined()
    lazy = PairSource(*base._sources, base.pairs, _ByNumber(order))
    for source in (base, lazy):
        part = pickle.loads(pickle.dumps(source.subset([5, 2, 9]).subset([2, 0])))
        assert part.keys == [source.keys[9], source.keys[5]]
        assert [int(part.mask(r).any()) for r in (0, 1)] == [order[9] % 2, order[5] % 2]
    train, held = source.split(0.2)
    assert 8 <= len(held) <= 28
    assert not set(train.ids) & set(held.ids)
    again, _ = PairSource(*base._sources, base.pairs[::-1]).split(0.2)
    assert set(again.ids) == set(train.ids)


def test_crops_of_one_pair_are_all_trained_on_or_all_held_out():
    base, _ = joined()
    crops = [replace(p, source=f"board {n % 12}") for n, p in enumerate(base.pairs)]
    train, held = PairSource(*base._sources, crops).split(0.2)
    assert len(train) + len(held) == len(base)
    sides = [{p.source for p in s.pairs} for s in (train, held)]
    assert len(sides[0] | sides[1]) == 12
    assert len(sides[1]) >= 2
    assert not sides[0] & sides[1]
    crops = [replace(p, source="board 0") for p in base.pairs]
    with pytest.raises(DataError, match="all of them crops of board 0"):
        PairSource(*base._sources, crops).split(0.2)


class _ByNumber:
    def __init__(self, order):
        self.order = order

    def __call__(self, number):
        return np.full((2, 2), self.order[number] % 2 == 1)


def test_what_cannot_be_joined_is_named():
    current, history = numbered(3, 0), numbered(3, 1000)
    pairs = [Pair("lone", "i1", "i77"), Pair("good", "i2", "i1001")]
    source = PairSource(current, history, pairs, torch.tensor([[[1]], [[0]]]))
    assert (source.missing, source.keys) == (["lone"], ["good"])
    assert not source.mask(0).any()
    with pytest.raises(DataError, match="none of 1 pairs"):
        PairSource(current, history, pairs[:1])
    with pytest.raises(ShapeError, match="2 pairs"):
        PairSource(current, history, pairs, torch.zeros(3, 1, 1))
    with pytest.raises(ShapeError, match="history features"):
        PairSource(current, TensorSource({"a": torch.zeros(3, 2, 2, 2)}), pairs)
    with pytest.raises(DataError, match="without masks"):
        PairSource(current, history, pairs).mask(0)
    assert "_mask" not in PairSource(current, history, pairs).read(0, 1)


def test_views_are_not_joined():
    maps = {"a": torch.arange(4.0).view(4, 1, 1, 1)}
    views = TensorSource(maps, ["x", "x", "y", "y"], [1, 0, 0, 1])
    got = PairSource(views, views, [Pair("k", "x", "y")]).read(0, 1)
    assert (float(got["current:a"]), float(got["history:a"])) == (1.0, 2.0)
