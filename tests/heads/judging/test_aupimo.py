"""AUPIMO against its definition, taken at its word."""

import numpy as np
import pytest

from heads.judging.aupimo import TopPixels, aupimo
from heads.judging.resampling import draw
from headwater.errors import ShapeError


def plainly(maps, masks, low, high, points=4001):
    """Look at every threshold and, at rates evenly apart on a logarithmic axis, take the best."""
    maps = [np.asarray(m, np.float64) for m in maps]
    normal = [m for m, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = np.unique(np.concatenate([m.ravel() for m in maps]))
    thresholds = np.append(thresholds, np.inf)
    rates = np.array([np.mean([(m >= t).mean() for m in normal]) for t in thresholds])
    axis = np.geomspace(low, high, points)
    scores = []
    for heat, mask in zip(maps, masks, strict=True):
        if mask.any():
            recalls = np.array([(heat[mask] >= t).mean() for t in thresholds])
            best = [recalls[rates <= z * (1 + 1e-9)].max() for z in axis]
            scores.append(np.trapezoid(best, np.log(axis)) / np.log(high / low))
    return np.array(scores)


@pytest.mark.parametrize("levels", [0, 12], ids=["distinct", "ties"])
@pytest.mark.parametrize("sizes", [[(20, 30)] * 6, [(20, 30), (9, 8), (25, 11)] * 2])
def test_it_is_what_the_definition_says(levels, sizes):
    rng = np.random.default_rng(len(sizes[1]) + levels)
    maps, masks = [], []
    for number, size in enumerate(sizes):
        heat, mask = rng.normal(size=size), np.zeros(size, bool)
        if number < 3:
            mask[2:6, 1 : 4 + number] = True
            heat[mask] += 2.5
        maps.append((np.round(heat * levels) / levels if levels else heat).astype(np.float32))
        masks.append(mask)
    low, high = 0.004, 0.08
    got = aupimo(maps, masks, low=low, high=high)
    assert got == pytest.approx(plainly(maps, masks, low, high), abs=2e-3)
    assert 0 < got.min() < got.max() < 1


@pytest.mark.parametrize("levels", [0, 9], ids=["distinct", "ties"])
def test_a_draw_is_the_figure_of_its_images(levels, monkeypatch):
    rng = np.random.default_rng(levels)
    maps, masks = [], []
    for number in range(9):
        heat, mask = rng.normal(size=(130, 130)), np.zeros((130, 130), bool)
        if number >= 6:
            mask[3:20, 5 : 9 + number] = True
            heat[mask] += 3
        maps.append((np.round(heat * levels) / levels if levels else heat).astype(np.float32))
        masks.append(mask)
    times = draw(["good"] * 6 + ["x"] * 3, count=12)
    monkeypatch.setattr("heads.judging.aupimo._DRAWS", 5)
    (found,) = TopPixels.of(maps, masks).figures(times).values()
    for one, value in zip(times.astype(int), found, strict=True):
        drawn = [i for i, often in enumerate(one) for _ in range(often)]
        exact = aupimo([maps[i] for i in drawn], [masks[i] for i in drawn])
        assert value == pytest.approx(exact.mean(), abs=1e-12)
    assert TopPixels.of(maps[:1] * 3 + maps[8:], masks[:3] + masks[8:]).figures(times[:, :4]) == {}


def test_it_is_one_where_all_of_a_defect_is_above_all_normal_pixels_and_none_without_enough():
    good, bad = np.zeros((400, 400), np.float32), np.zeros((400, 400), np.float32)
    mask = np.zeros((400, 400), bool)
    mask[:3, :3] = True
    bad[mask] = 1
    none = np.zeros_like(mask)
    assert aupimo([good, bad], [none, mask]).tolist() == [1.0]
    assert aupimo([good, good], [none, mask]).tolist() == [0.0]  # all ties
    # Defect-free pixels of a defective image are none of a normal one.
    bad[200:, :] = 2
    assert aupimo([good, bad], [none, mask]).tolist() == [1.0]
    assert aupimo([bad, good], [none, none]) is None
    assert aupimo([bad, bad], [mask, mask]) is None
    assert aupimo([good, bad], [None, mask]) is None
    assert aupimo([good[:100, :100], bad], [none[:100, :100], mask]) is None  # 1e-5 of 10,000
    unseen = np.ma.masked_array(good + 5, np.ones_like(mask))
    assert aupimo([good, unseen, bad], [none, none, mask]).tolist() == [1.0]
    with pytest.raises(ShapeError, match="map 0"):
        aupimo([good[:5]], [none])
