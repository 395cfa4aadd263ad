"""Pairs: joined by key, read alike in and out of memory, found on disk, measured exactly."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from features.images.crops import cut_normal_pairs, source_of
from features.images.pairs import ImageSource, PairMasks, scan_pairs
from heads.judging.pair_metrics import pair_metrics
from heads.pairs.pair_head import DifferenceSource
from heads.pairs.source import Pair, PairSource
from heads.training.sources import TensorSource
from headwater.errors import DataError, ShapeError
from tests.heads.pairs.tiny import pair_source


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


def test_differences_are_absolute_and_symmetric():
    source = pair_source({"a": (3, 4, 4)}, 5, 0)
    read, plain = DifferenceSource(source).read(0, 5), source.read(0, 5)
    assert torch.equal(read["a"], (plain["history:a"] - plain["current:a"]).abs())
    assert DifferenceSource(source).shapes == {"a": (3, 4, 4)}


# --- on disk --------------------------------------------------------------------------------------


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    template = rng.integers(0, 255, (40, 50))
    for split, names in (("train", "abc"), ("test", "d")):
        for name in names:
            mask = np.zeros((40, 50))
            current = template.copy()
            if name != "b":
                mask[3:6, 4:9] = 255
                current[3:6, 4:9] = rng.integers(0, 255, (3, 5))
            write(tmp_path / split / "current" / f"{name}.png", current)
            write(tmp_path / split / "history" / f"{name}.png", template)
            write(tmp_path / split / "mask" / f"{name}.png", mask)
    return tmp_path


def test_scan_finds_pairs_and_shares_templates(folder):
    found = scan_pairs(folder, cache=folder / "cache.sqlite")
    assert [p.key for p in found.pairs] == ["train/a", "train/b", "train/c", "test/d"]
    assert [p.is_normal for p in found.pairs] == [False, True, False, False]
    assert [p.split for p in found.pairs] == ["train"] * 3 + ["test"]
    pair = found.pairs[0]
    assert pair.current.sha256 == hashlib.sha256(pair.current.path.read_bytes()).hexdigest()
    # One template in four pairs is one image; b's current image is the template itself.
    assert len(found.images("history")) == 1
    assert len(found.images()) == 4
    assert {i.kind for i in found.images("current")} == {"good", "changed"}
    assert scan_pairs(folder, cache=folder / "cache.sqlite").hashed == 0


def test_scan_sets_aside_what_it_cannot_use_and_says_so(folder):
    (folder / "train/current/a.png").write_bytes(b"no image")
    (folder / "train/history/c.png").unlink()
    write(folder / "test/mask/d.png", np.zeros((40, 49)))
    found = scan_pairs(folder)
    assert [(p.key, p.mask) for p in found.pairs if p.split == "test"] == [("test/d", None)]
    assert [p.key for p in found.pairs] == ["train/b", "test/d"]
    assert [b.path.name for b in found.broken] == ["a.png"]
    assert any("c.png" in p and "no history" in p for p in found.problems)
    assert any("49x40" in p and "without mask" in p for p in found.problems)
    with pytest.raises(DataError, match="no pairs"):
        scan_pairs(folder / "train" / "mask")


def test_images_and_masks_reach_a_pair_source(folder):
    found = scan_pairs(folder)
    images = ImageSource(found.images(), lambda x: torch.from_numpy(x).permute(2, 0, 1), (40, 50))
    masks = PairMasks(found.pairs, lambda m: m[::2, ::2])
    pairs = [Pair(p.key, p.current.sha256, p.history.sha256) for p in found.pairs]
    source = PairSource(images, images, pairs, masks)
    for batch in source.batches(3, seed=0):
        difference = (batch["current:image"] - batch["history:image"]).abs().amax(1)
        for changed, mask in zip(difference > 0, batch["_mask"][:, 0] > 0, strict=True):
            assert not (changed[::2, ::2] & ~mask).any()
    assert source.mask(1).shape == (20, 25)
    assert not source.mask(1).any()
    bare = [found.pairs[0], found.pairs[1].__class__("k", "train", *_sides(found.pairs[1]), None)]
    with pytest.raises(DataError, match="1 of 2 pairs have no mask, the first k"):
        PairMasks(bare, lambda m: m)


def _sides(pair):
    return pair.current, pair.history


def test_crops_are_unchanged_disjoint_and_repeatable(folder, tmp_path):
    pairs = scan_pairs(folder).pairs
    names = []
    for out in ("one", "two"):
        written = cut_normal_pairs(pairs, tmp_path / out, 12, per_pair=3, margin=2, seed=1)
        names.append([p.name for p in written])
        for path in written:
            assert Image.open(path).size == (12, 12)
    assert names[0] == names[1]
    assert len(names[0]) == 12
    crops = scan_pairs(tmp_path / "one")
    assert all(p.is_normal and p.mask is None for p in crops.pairs)
    taken = {}
    for name in names[0]:
        key, place = name.removesuffix(".png").split("@")
        top, left = place.split("_")
        assert source_of(f"train/{key}@{place}") == f"train/{key}"
        grid = taken.setdefault(key, np.zeros((40, 50), int))
        grid[int(top) : int(top) + 12, int(left) : int(left) + 12] += 1
        current = np.asarray(Image.open(tmp_path / "one/current" / name))
        assert np.array_equal(current, np.asarray(Image.open(tmp_path / "one/history" / name)))
    for key, grid in taken.items():
        assert grid.max() == 1, key
        if key != "train_b":
            assert not grid[1:8, 2:11].any(), key  # the changed square and the margin
    with pytest.raises(DataError, match="has an unchanged square of 40 px"):
        cut_normal_pairs([pairs[0]], tmp_path / "three", 40, margin=3)


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_against_counting_by_hand():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 8, 9)) < 0.3
    maps = np.round(np.clip(rng.normal(0.4 + 0.2 * masks, 0.2), 0, 1), 2)  # with ties
    got = pair_metrics(maps, masks)
    hit = maps > np.float32(0.5)
    tp, fp = (hit & masks).sum(), (hit & ~masks).sum()
    fn, tn = (~hit & masks).sum(), (~hit & ~masks).sum()
    assert got["precision"] == tp / (tp + fp)
    assert got["recall"] == tp / (tp + fn)
    assert got["overall_accuracy"] == (tp + tn) / masks.size
    assert got["f1"] == pytest.approx(2 / ((tp + fp) / tp + (tp + fn) / tp))
    assert got["iou"] == tp / (tp + fp + fn)
    good, bad = maps[~masks][:, None], maps[masks][None]
    assert got["auc"] == pytest.approx(((bad > good) + 0.5 * (bad == good)).mean())
    # The equal error rate by bisection on a dense interpolation of the curve.
    cuts = np.concatenate([[np.inf], np.unique(maps)[::-1]])
    fpr = np.array([(maps[~masks] >= c).mean() for c in cuts])
    miss = np.array([(maps[masks] < c).mean() for c in cuts])
    along = np.linspace(0, len(cuts) - 1, 2_000_001)
    x, y = (np.interp(along, np.arange(len(cuts)), v) for v in (fpr, miss))
    at = np.abs(x - y).argmin()
    assert got["eer"] == pytest.approx(x[at], abs=1e-5)


def test_metrics_at_the_ends():
    mask = np.array([[[True, False, False]]])
    perfect = pair_metrics(np.where(mask, 0.9, 0.1), mask)
    assert all(perfect[k] == 1 for k in ("precision", "recall", "overall_accuracy", "f1", "iou"))
    assert (perfect["auc"], perfect["eer"]) == (1, 0)
    blind = pair_metrics(np.full((1, 1, 3), 0.2), mask)
    assert (blind["auc"], blind["eer"]) == (0.5, 0.5)
    assert "precision" in blind.omitted
    assert (blind["recall"], blind["f1"]) == (0, 0)
    clean = pair_metrics(np.full((1, 1, 3), 0.2), np.zeros((1, 1, 3)))
    assert clean["overall_accuracy"] == 1
    assert set(clean.omitted) == {"precision", "recall", "f1", "iou", "auc", "eer"}
    with pytest.raises(ShapeError):
        pair_metrics(np.zeros((2, 1, 3)), mask)
