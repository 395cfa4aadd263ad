"""How alpha and beta are picked without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heads.catalogue import make_config
from heads.contract import NullProgress
from heads.gallery.f2r import F2R, F2RConfig
from heads.gallery.f2r_grid import POINTS, VALUES
from heads.gallery.f2r_select import _Trial, least_altered, not_worse, select_synthetic
from heads.gallery.synthetic import KINDS, synthetic_defects
from heads.judging.metrics import auroc
from heads.training.sources import TensorSource
from headwater.errors import ConfigError
from tests.heads.gallery.tiny import LAYER, SHAPES, fit_f2r, textures


def test_with_one_held_out_image_nothing_is_picked(fitted: F2R) -> None:
    one = TensorSource({LAYER: textures(1, 7)})
    assert select_synthetic(fitted, one, 0, NullProgress()) == (1.0, 1.0)


def test_selecting_on_synthetic_defects_uses_held_out_normals_alone() -> None:
    assert F2RConfig().select == make_config("f2r", {}, "small").select == "fixed"  # type: ignore[attr-defined]
    head, figures = fit_f2r(select="synthetic", epochs=3)
    assert (round(figures["alpha"], 1), round(figures["beta"], 1)) in POINTS
    assert head.preference.tolist() == pytest.approx([figures["alpha"], figures["beta"]])
    fresh = F2R(head.config, SHAPES, (16, 20))
    fresh.load_state_dict(head.state_dict())
    batch = {LAYER: textures(2, 9)}
    assert torch.equal(fresh.score(batch).maps, head.score(batch).maps)


def test_a_given_factor_is_kept_and_the_other_one_picked() -> None:
    _, figures = fit_f2r(select="synthetic", epochs=3, alpha=0.35)
    assert figures["alpha"] == 0.35
    assert figures["beta"] in VALUES
    _, figures = fit_f2r(select="synthetic", epochs=3, alpha=0.35, beta=1.5)
    assert (figures["alpha"], figures["beta"]) == (0.35, 1.5)
    _, figures = fit_f2r(epochs=3, beta=0.9)
    assert (figures["alpha"], figures["beta"]) == (1.0, 0.9)
    with pytest.raises(ConfigError, match="alpha 'big'"):
        F2RConfig(alpha="big")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="head f2r: alpha 'big'"):  # among several heads
        make_config("f2r", {"alpha": "big"})


def test_the_short_way_of_picking_gives_the_scores_of_the_long_one(fitted: F2R) -> None:
    normal = textures(4, 11)
    trial = _Trial(fitted, normal, seed=3)
    made = synthetic_defects(normal, seed=3)
    for alpha, beta in ((1.0, 1.0), (0.2, 1.1)):
        got = trial.figures(*trial.distances(alpha, beta), range(4))
        gallery = fitted.reversed_features(fitted.members, alpha, beta)
        vectors = made.maps.permute(0, 2, 3, 1).reshape(-1, 8)
        far = torch.cdist(fitted.reversed_features(vectors, alpha, beta), gallery).amin(1)
        # what a defect leaves alone ties with its normal, but for rounding
        far = far.reshape(len(made.maps), -1).mul(1e3).round()
        for k in range(len(KINDS)):
            rows = torch.tensor([*range(4), *range(4 + k, len(far), len(KINDS))])
            # 4 normal and 4 altered images: a pair that ties but for rounding is worth 1 / 32
            altered = made.masks[rows].flatten(1)
            image = auroc(far[rows].amax(1), altered.any(1))
            assert got[k, 0] == pytest.approx(image, abs=0.032)
            pixels = torch.cat([far[:4].flatten(), far[rows][altered]])
            pixel = auroc(pixels, torch.arange(len(pixels)) >= 80)
            assert got[k, 1] == pytest.approx(pixel, abs=5e-3)


def test_a_point_is_taken_only_where_it_loses_on_no_kind_that_can_be_told() -> None:
    plain, chance = (1.0, 1.0), [0.45, 0.46, 0.44]
    base = np.array([chance, [0.8, 0.79, 0.81]])
    noisy = np.array([[0.60, 0.6, 0.6], [0.77, 0.76, 0.78]])  # better at what nobody can tell
    better = np.array([[0.40, 0.4, 0.4], [0.85, 0.84, 0.86]])
    kept = not_worse({plain: base, (0.3, 0.9): noisy, (0.9, 0.3): better}, plain)
    assert set(kept) == {plain, (0.9, 0.3)}
    assert kept[plain].tolist() == [0.8, 0.79, 0.81]  # the first kind does not count
    told = noisy + np.array([[0.1], [0.0]])  # now it is a kind that can be told
    kept = not_worse({plain: base, (0.3, 0.9): told, (0.9, 0.3): better}, plain)
    assert set(kept) == {plain}  # each loses on one
    assert set(not_worse({plain: base - 0.3, (0.9, 0.3): better - 0.3}, plain)) == {plain}


def test_picking_keeps_the_plain_gallery_unless_another_point_is_surely_better() -> None:
    plain, far = np.array([0.9, 0.89, 0.91, 0.9]), np.array([0.91, 0.86, 0.95, 0.92])
    assert least_altered({(1.0, 1.0): plain, (0.3, 0.3): far}) == (1.0, 1.0)  # better by chance
    assert least_altered({(1.0, 1.0): plain, (0.3, 0.3): plain + 0.06}) == (0.3, 0.3)
    near = plain + np.array([0.055, 0.06, 0.06, 0.04])
    table = {(1.0, 1.0): plain, (0.3, 0.3): plain + 0.06, (0.9, 1.0): near}
    assert least_altered(table) == (0.9, 1.0)
    one = {(1.0, 1.0): np.array([0.9]), (0.6, 1.0): np.array([0.96])}  # a single image: no error
    assert least_altered(one) == (0.6, 1.0)
    small = {(1.0, 1.0): plain, (0.0, 0.9): plain + 0.04}  # sure, and not worth it
    assert least_altered(small) == (1.0, 1.0)
