"""Ground truth: what counts in masks of all makers, soft edges, other sizes."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from features.images.masks import look_at_mask, read_mask, same_view, scaled
from tests.features.imagekit import save

TRUTH = np.zeros((64, 80), bool)
TRUTH[20:40, 24:56] = True


def test_masks_of_all_makers(tmp_path):
    for name, value in (("one.png", 1), ("full.png", 255), ("smeared.jpg", 255), ("deep.tif", 300)):
        save(
            tmp_path / name,
            (TRUTH * np.array(value)).astype(np.uint16 if value > 255 else np.uint8),
        )
        got = look_at_mask(tmp_path / name)
        assert got.marked.dtype == bool
        assert not got.soft
        wrong = (got.marked != TRUTH).mean()
        assert wrong == 0 if name != "smeared.jpg" else wrong < 0.05, name
    # Every label counts, whatever its number, beside or inside another; so does any colour.
    labels = TRUTH.astype(np.uint8) * 60
    labels[24:30, 30:50], labels[30:36, 30:50], labels[50:60, 60:70] = 120, 180, 240
    save(tmp_path / "labels.png", labels)
    assert np.array_equal(look_at_mask(tmp_path / "labels.png").marked, labels > 0)
    assert not look_at_mask(tmp_path / "labels.png").soft
    red = np.zeros((64, 80, 3), np.uint8)
    red[TRUTH] = 9, 0, 0
    save(tmp_path / "red.png", red)
    assert np.array_equal(read_mask(tmp_path / "red.png"), TRUTH)
    # What is transparent is background, whatever its colour.
    layer = np.full((64, 80, 4), 255, np.uint8)
    layer[~TRUTH, 3] = 0
    save(tmp_path / "layer.png", layer)
    assert np.array_equal(read_mask(tmp_path / "layer.png"), TRUTH)


def test_soft_edges_are_cut_at_half(tmp_path):
    fine = np.kron(TRUTH, np.ones((4, 4), bool))
    fine = np.roll(fine, (1, 2), (0, 1))
    for how in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS):
        soft = Image.fromarray(fine.astype(np.uint8) * 255).resize((80, 64), how)
        soft.save(tmp_path / "soft.png")
        mask = look_at_mask(tmp_path / "soft.png")
        assert mask.soft
        assert np.asarray(soft).astype(bool).sum() > TRUTH.sum() * 1.05
        assert abs(mask.marked.sum() / TRUTH.sum() - 1) < 0.04
    # A faint defect beside it is cut at half of its own.
    faint = np.asarray(soft).copy()
    faint[50:53, 60:70] = 40
    save(tmp_path / "faint.png", faint)
    assert read_mask(tmp_path / "faint.png")[50:53, 60:70].all()


def test_masks_of_another_size_cover_the_same_place(tmp_path):
    small = np.zeros((32, 40), np.uint8)
    small[10:20, 12:28] = 255
    save(tmp_path / "half.png", small)
    assert np.array_equal(read_mask(tmp_path / "half.png", (64, 80)), TRUTH)
    save(tmp_path / "large.png", np.kron(TRUTH.astype(np.uint8) * 255, np.ones((3, 3), np.uint8)))
    assert np.array_equal(read_mask(tmp_path / "large.png", (64, 80)), TRUTH)
    thin = np.zeros((640, 800), bool)
    thin[100, 100:700] = True
    assert 10 < scaled(thin, (64, 80)).sum() < 130  # too thin for half of a pixel, and still there
    assert not scaled(np.zeros((9, 9), bool), (18, 18)).any()
    assert same_view((400, 375), (800, 750))
    assert same_view((133, 75), (267, 150))
    assert not same_view((120, 200), (160, 160))


def test_no_mark_is_too_small_to_be_scaled_down():
    rng = np.random.default_rng(0)
    marks = np.zeros((700, 900), bool)
    for top, left in rng.integers(0, (69, 89), (40, 2)) * 10:
        marks[top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = True
    small = scaled(marks, (70, 90))
    pieces, number = ndimage.label(marks, np.ones((3, 3)))
    for rows, columns in ndimage.find_objects(pieces):
        around = small[
            max(0, rows.start // 10 - 1) : rows.stop // 10 + 2,
            max(0, columns.start // 10 - 1) : columns.stop // 10 + 2,
        ]
        assert around.any()
    assert small.sum() <= 2 * number  # nothing else grew
