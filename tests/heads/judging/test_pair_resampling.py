"""Figures of pairs over draws are those of the pairs drawn."""

import numpy as np
import pytest

from heads.judging.pair_metrics import pair_metrics
from heads.judging.pair_resampling import resample_pairs
from heads.judging.resampling import draw


def some_pairs(count=8, seed=0):
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(count):
        heat, mask = rng.uniform(size=(24, 24)), np.zeros((24, 24), bool)
        if number % 2:
            mask[4 : 8 + number, 6:12] = True
            heat[mask] = np.clip(heat[mask] + 0.4, 0, 1)
        maps.append(heat.astype(np.float32))
        masks.append(mask)
    return maps, masks


def test_a_draw_is_what_the_metrics_say_of_its_pairs():
    maps, masks = some_pairs()
    changed = [mask.any() for mask in masks]
    scores = [heat.max() for heat in maps]
    exact = pair_metrics(maps, masks, threshold=0.7)
    found = resample_pairs(scores, changed, maps, masks, 0.7, exact=exact, count=5)
    times = draw(np.where(changed, "changed", "good").tolist(), 5)
    assert found.figures.keys() == exact.keys()
    for row in range(5):
        which = np.repeat(np.arange(8), times[row].astype(int))
        own = pair_metrics([maps[i] for i in which], [masks[i] for i in which], threshold=0.7)
        for name, value in own.items():
            # Of curves at some thresholds; counts are exact.
            near = 5e-3 if name in ("auc", "eer") else 1e-9
            assert found.figures[name][row] == pytest.approx(value, abs=near), name


def test_figures_lie_in_their_intervals_and_nothing_comes_of_nothing():
    maps, masks = some_pairs(20)
    changed, scores = [mask.any() for mask in masks], [heat.max() for heat in maps]
    exact = pair_metrics(maps, masks, threshold=0.7)
    found = resample_pairs(scores, changed, maps, masks, 0.7, exact=exact)
    for name in exact:
        low, high = found.interval(name)
        assert low <= exact[name] <= high
        assert low < high
    none = [np.zeros_like(mask) for mask in masks]
    assert resample_pairs(scores, changed, maps, none, 0.7, exact=exact) is None
