"""Metrics against scikit-learn and against the definitions, spelt out pixel by pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sk

from heads.judging import metrics as own
from headwater.errors import DataError, ShapeError


def _tied(rng: np.random.Generator, *shape: int, levels: int = 7) -> np.ndarray:
    return (rng.integers(-levels, levels, shape) / 8).astype(np.float32)


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_image_metrics_equal_sklearn_with_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores, labels = _tied(rng, 200, levels=levels), rng.random(200) < 0.3
    assert own.auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert own.average_precision(scores, labels) == pytest.approx(
        sk.average_precision_score(labels, scores), abs=1e-12
    )
    at = own.at_threshold(scores, labels, 0.25)
    called = scores > 0.25
    assert at["f1"] == pytest.approx(sk.f1_score(labels, called, zero_division=0))
    assert at["precision"] == pytest.approx(sk.precision_score(labels, called, zero_division=0))
    assert at["recall"] == pytest.approx(sk.recall_score(labels, called))
    assert at["accuracy"] == pytest.approx(sk.accuracy_score(labels, called))
    assert at["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, called))


def _aupro_by_definition(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Walk over every threshold and every component."""
    regions = []
    for i, mask in enumerate(masks):
        parts, n = ndimage.label(mask, np.ones((3, 3)))
        regions += [(i, parts == k) for k in range(1, n + 1)]
    x, y = [0.0], [0.0]
    for t in np.unique(maps)[::-1]:
        called = maps >= t
        x.append(float((called & ~masks).sum() / (~masks).sum()))
        y.append(float(np.mean([called[i][r].mean() for i, r in regions])))
    grid = sorted({*x, limit})
    area = 0.0
    for a, b in itertools.pairwise(grid):
        if b <= limit:  # on ]a, b[ the curve is one straight piece
            left = max(yy for xx, yy in zip(x, y, strict=True) if xx <= a)
            i = max(k for k, xx in enumerate(x) if xx <= a)
            end = x[i + 1]
            right = left + (y[i + 1] - left) * (b - a) / (end - a)
            area += (b - a) * (left + right) / 2
    return area / limit


@pytest.mark.parametrize("levels", [2, 5, 10_000])
@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_pixel_metrics_equal_definition(
    levels: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_BLOCK", block)
    rng = np.random.default_rng(levels)
    masks = ndimage.binary_dilation(rng.random((5, 12, 9)) < 0.03, np.ones((1, 2, 2)))
    maps = _tied(rng, *masks.shape, levels=levels) + (masks * 0.1).astype(np.float32)
    labels = masks.any((1, 2))
    got = own.evaluate(maps.max((1, 2)), maps, labels, list(masks))
    flat, truth = maps.ravel(), masks.ravel()
    assert got["pixel_auroc"] == pytest.approx(sk.roc_auc_score(truth, flat), abs=1e-12)
    assert got["pixel_ap"] == pytest.approx(sk.average_precision_score(truth, flat), abs=1e-12)
    assert got["aupro"] == pytest.approx(_aupro_by_definition(maps, masks, 0.3), abs=1e-12)


def test_diagonal_pixels_are_one_component() -> None:
    ranking = own.rank_pixels([np.zeros((3, 3))], [np.eye(3, dtype=bool)])
    assert ranking.components == 1


def test_zeros_of_both_signs_tie() -> None:
    maps = np.array([[[0.0, -0.0]]], np.float32)
    mask = np.array([[True, False]])
    assert own.rank_pixels(list(maps), [mask]).figures()["pixel_auroc"] == 0.5


def test_a_defective_image_without_mask_counts_for_the_image_alone() -> None:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((4, 5, 5)).astype(np.float32), np.zeros((4, 5, 5), bool)
    masks[2, 1:3, 1:3] = True
    labels = [False, False, True, True]
    got = own.evaluate([0.1, 0.2, 0.3, 0.05], maps, labels, [None, None, masks[2], None])
    want = own.evaluate([0.1, 0.2, 0.3], maps[:3], labels[:3], list(masks[:3]))
    assert got["image_auroc"] == pytest.approx(0.5)
    assert got["pixel_auroc"] == want["pixel_auroc"]
    assert got["aupro"] == want["aupro"]


def test_what_is_undefined_is_named_with_its_reason() -> None:
    maps = np.zeros((2, 3, 3), np.float32)
    got = own.evaluate([1.0, 2.0], maps, [False, False], [None, None], threshold=1.5)
    assert got["false_positive_rate"] == 0.5
    assert not {"image_auroc", "pixel_auroc", "aupro", "recall", "f1"} & set(got)
    assert all(got.omitted[k] for k in ("image_auroc", "pixel_auroc", "aupro", "recall", "f1"))


def test_oracle_threshold_separates_what_can_be_separated() -> None:
    scores, labels = [0.1, 0.4, 0.4, 0.9], [False, True, False, True]
    t = own.oracle_threshold(scores, labels)
    at = own.at_threshold(scores, labels, t)
    assert at["recall"] - at["false_positive_rate"] == pytest.approx(0.5)
    found = own.evaluate(scores, None, labels, None)
    assert (found["oracle.youden_recall"], found["oracle.youden_accuracy"]) == (
        at["recall"], at["accuracy"],
    )  # fmt: skip
    t = own.oracle_threshold([0.0, 1.0], [False, True])
    assert own.at_threshold([0.0, 1.0], [False, True], t)["f1"] == 1.0


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="number 1"):
        own.auroc([0.0, np.nan], [False, True])
    with pytest.raises(ShapeError, match="mask"):
        own.rank_pixels([np.zeros((2, 2))], [np.zeros((3, 2), bool)])
    with pytest.raises(DataError, match="both classes"):
        own.auroc([0.0, 1.0], [True, True])
