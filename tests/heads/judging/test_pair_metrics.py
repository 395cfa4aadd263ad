"""Metrics of change maps against counting by hand."""

import numpy as np
import pytest

from heads.judging.pair_metrics import pair_metrics
from headwater.errors import ShapeError


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
