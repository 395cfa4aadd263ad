"""Pixel truth: masks as they were drawn, maps brought up to them, and what nobody can see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from flows.extraction.samples import Sample
from flows.training.truth import truth_of
from heads.judging.metrics import evaluate, rank_pixels
from headwater.samples import IMAGE
from headwater.spec import ExtractorSpec

SIZE = (96, 160)


def sample(folder, name, mask=None, size=SIZE):
    """A test image, defective where it has a mask."""
    path = None
    if mask is not None:
        path = folder / f"{name}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    kind = "good" if mask is None else "spot"
    return Sample(f"{name}.png", "test", kind, (name,), (folder / name,), path, size=size)


def marked(*boxes):
    mask = np.zeros(SIZE, bool)
    for top, left, side in boxes:
        mask[top : top + side, left : left + side] = True
    return mask


def known(samples, maps, **spec):
    made = ExtractorSpec("net", "0" * 64, **spec)
    notes: list[str] = []
    return *truth_of(SimpleNamespace(spec=made, kind=IMAGE), samples, maps, notes), notes


def test_pixel_figures_are_those_of_the_masks_as_they_were_drawn(tmp_path):
    # The nearest of 8 pixels of a mask brought down to the input would miss all but the largest.
    mask = marked((10, 11, 3), (40, 90, 2), (70, 30, 24))
    samples = [sample(tmp_path, "a"), sample(tmp_path, "b", mask)]
    maps = np.random.default_rng(0).random((2, 12, 20), np.float32)
    maps[1] += mask[4::8, 4::8]
    _, truth, notes = known(samples, maps, resize=(12, 20))
    assert not notes
    assert rank_pixels(truth.maps, truth.masks).components == 3
    found = evaluate([0, 1], truth.maps, [False, True], truth.masks)
    up = torch.nn.functional.interpolate(torch.from_numpy(maps)[:, None], SIZE, mode="bilinear")
    labels = np.stack([np.zeros(SIZE, bool), mask])
    want = roc_auc_score(labels.ravel(), up.numpy().ravel())
    assert found["pixel_auroc"] == pytest.approx(want, abs=1e-6)
    shown = truth.shown()[1]
    assert shown.shape == (12, 20)
    assert ndimage.label(shown, np.ones((3, 3)))[1] == 3


def test_a_defect_that_the_crop_cuts_away_is_told(tmp_path):
    inside, beside, both = marked((40, 70, 9)), marked((2, 3, 9)), marked((40, 70, 9), (2, 3, 9))
    samples = [sample(tmp_path, *one) for one in zip("abc", (inside, beside, both), strict=True)]
    samples.append(sample(tmp_path, "good"))
    maps = np.ones((4, 12, 20), np.float32)
    told, truth, notes = known(samples, maps, resize=(24, 40), crop=(12, 20))
    assert told == samples
    assert len(notes) == 1
    assert notes[0].startswith("1 of 3 anomalous test image(s) have all that is to be found in ")
    assert "such as b.png" in notes[0]
    assert "1 more have a part" in notes[0]
    # Of the whole image a quarter is looked at; of the one that nobody can find no pixel counts.
    figures = rank_pixels(truth.maps, truth.masks)
    assert figures.components == 2
    assert figures.normal == 3 * 48 * 80 - 2 * 81


def test_images_of_other_sizes_lie_side_by_side_and_large_ones_are_bounded(tmp_path):
    large = np.zeros((3000, 300), bool)
    large[1500:1502, 150:152] = True  # less than a pixel of the smaller mask
    samples = [
        sample(tmp_path, "a", large, large.shape),
        sample(tmp_path, "b", marked((48, 80, 2))),
    ]
    for fitting in ("squash", "fit", "crop"):
        maps = np.ones((2, 16, 16), np.float32)
        _, truth, _ = known(samples, maps, resize=(16, 16), fitting=fitting)
        assert [m.shape for m in truth.masks] == [(1024, 102), SIZE]
        assert [m.shape for m in truth.maps] == [(1024, 102), SIZE]
        looked = [~np.ma.getmaskarray(m) for m in truth.maps]
        assert all(one.all() for one in looked) == (fitting != "crop")
    _, truth, _ = known(samples, np.ones((2, 16, 16), np.float32), resize=(16, 16))
    assert [int(m.sum()) for m in truth.masks] == [1, 4]
