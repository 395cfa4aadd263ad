"""The grid over alpha and beta: its table, its best points, Table 5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from heads.gallery.f2r import F2R
from heads.gallery.f2r_grid import POINTS, GridResult, grid, partial_spearman
from heads.gallery.gallery_head import vectors_of
from heads.gallery.synthetic import synthetic_defects
from heads.judging.metrics import auroc
from heads.training.sources import TensorSource
from tests.heads.gallery.tiny import LAYER, textures


def test_grid_tables_every_point_and_puts_the_head_back(fitted: F2R) -> None:
    normal, before = textures(3, 5), fitted.gallery.vectors.clone()
    made = synthetic_defects(normal, seed=0)
    labels = made.masks.flatten(1).any(1)
    large = made.masks.repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()
    points = [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    told: list[dict[str, float]] = []
    args = (fitted, TensorSource({LAYER: made.maps}), labels.numpy(), list(large))
    result = grid(*args, points=points, told=told.append)
    assert [(r["alpha"], r["beta"]) for r in result.table] == points
    assert result.chosen_on == "oracle"
    assert len({r["pixel_auroc"] for r in result.table}) == 3
    assert torch.equal(fitted.gallery.vectors, before)
    # the grid's short cut scores as the head does
    try:
        fitted.prefer(0.0, 1.0)
        scores = fitted.score({LAYER: made.maps})
        apart = [fitted.gallery.nearest(fitted.features(vectors_of(x)))[0] for x in made.maps]
    finally:
        fitted.prefer(1.0, 1.0)
    row = result.table[0]
    assert row["image_auroc"] == pytest.approx(auroc([float(far.max()) for far in apart], labels))
    # in other batches the last digits differ, and with them the order of a pixel or two
    pixels = auroc(scores.maps.flatten(), large.ravel())
    assert row["pixel_auroc"] == pytest.approx(pixels, abs=1e-5)
    assert result.heat_map("pixel_auroc").shape == (2, 2)
    # a broken grid goes on: points that are there are not scored again
    again: list[dict[str, float]] = []
    resumed = grid(*args, points=points, done=told[:2], told=again.append)
    assert again == [told[2]]
    assert resumed.table == result.table


def test_the_papers_grid_has_169_points() -> None:
    assert len(POINTS) == 169
    assert {(0.0, 0.0), (1.2, 1.2), (0.7, 0.3)} <= set(POINTS)


def test_best_prefers_what_alters_least_among_equals() -> None:
    rows = tuple(
        {"alpha": a, "beta": b, "image_auroc": 0.9, "pixel_auroc": v}
        for a, b, v in [(0.0, 0.0, 0.8), (0.9, 1.0, 0.8), (1.2, 0.5, 0.8), (0.5, 0.5, 0.7)]
    )
    assert GridResult(rows).best("pixel_auroc") == (0.9, 1.0)
    assert GridResult(rows[::-1]).best("image_auroc") == (0.9, 1.0)


def test_correlations_are_spearmans() -> None:
    rng = np.random.default_rng(0)
    x, y, g = rng.random(40), rng.random(40), rng.integers(0, 5, 40)
    got, want = partial_spearman(x, y), stats.spearmanr(x, y)
    assert got.rho == pytest.approx(want.statistic)
    assert got.p_value == pytest.approx(want.pvalue)
    rxy, rxg, ryg = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, g), (y, g)))
    formula = (rxy - rxg * ryg) / np.sqrt((1 - rxg**2) * (1 - ryg**2))
    assert partial_spearman(x, y, g).rho == pytest.approx(formula)
    assert partial_spearman(np.ones(40), y).rho == 0.0


def test_table_5_reads_a_preference_for_local_information() -> None:
    rows = tuple(
        {"alpha": a, "beta": b, "pixel_auroc": a - 0.3 * b + 0.01 * a * b} for a, b in POINTS
    )
    found = GridResult(rows).correlations()
    assert found["alpha"].rho > 0.9
    assert found["beta"].rho < -0.8
    assert found["alpha"].p_value < 1e-20
