"""Thresholds on held-out normals keep what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from heads.judging.calibration import (
    Calibration,
    calibrate,
    calibrate_out_of_fold,
    threshold_for,
)
from heads.judging.odd import standing_out
from headwater.errors import ConfigError, DataError


@pytest.mark.parametrize(("n", "target"), [(19, 0.05), (50, 0.1), (76, 0.05)])
def test_mean_false_positive_rate_is_at_most_the_target(n: int, target: float) -> None:
    rng = np.random.default_rng(n)
    rates = []
    for _ in range(2000):
        t, attained, rule = threshold_for(rng.random(n), target)
        rates.append(1 - t)  # of uniform scores the share above t
        assert rule == "conformal"
        assert attained <= target
    assert np.mean(rates) == pytest.approx(attained, abs=4 * np.std(rates) / 2000**0.5)


def test_exact_rank_where_the_product_is_an_integer() -> None:
    # (9 + 1)(1 - 0.1) = 9: the largest of nine; in floats the product is a little above 9
    assert threshold_for(np.arange(9.0), 0.1) == (8.0, pytest.approx(0.1), "conformal")


def test_too_few_images_say_so_and_go_beyond_the_largest() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    result = calibrate(scores, target_fpr=0.05)
    assert result.rule == "tail"
    assert result.attained_fpr == pytest.approx(1 / 6)
    assert result.threshold == pytest.approx(5 + 1.5 * np.log(1 / (6 * 0.05)))
    said = "5 held-out normals promise a false-positive rate of 16.67%, not 5.00% (that takes 19)"
    assert result.caveats == [f"thresholds are extrapolated: {said}"]
    assert not calibrate(np.arange(19.0), target_fpr=0.05).caveats
    shifted = calibrate(-100 + 3 * scores, target_fpr=0.05)
    assert shifted.threshold == pytest.approx(-100 + 3 * result.threshold)


def test_a_threshold_beyond_few_bounded_scores_can_still_be_exceeded() -> None:
    # max(P) - P with P falling exponentially: the shape of every likelihood head's scores
    surprise = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    bounded = 0.6 - np.exp(-surprise)
    plain, _, _ = threshold_for(bounded, 0.05)
    assert plain > 0.6  # no defect, however strange, would ever be found
    limited, attained, rule = threshold_for(bounded, 0.05, upper=0.6)
    assert (attained, rule) == (pytest.approx(1 / 6), "tail")
    # the same as on the unbounded scale, which orders alike
    assert -np.log(0.6 - limited) == pytest.approx(threshold_for(surprise, 0.05)[0])
    at_limit, _, _ = threshold_for([0.6, 0.6, 0.5], 0.05, upper=0.6)
    assert at_limit <= 0.6
    # with enough images the limit plays no part
    many = np.linspace(0, 0.59, 50)
    assert threshold_for(many, 0.1, upper=0.6) == threshold_for(many, 0.1)


def test_pixel_threshold_and_json_round_trip() -> None:
    maps = np.arange(2000, dtype=np.float32).reshape(2, 20, 50)
    result = calibrate([1.0] * 20, list(maps), pixel_fpr=0.01)
    assert (maps > result.pixel_threshold).mean() <= 0.01
    assert (maps >= result.pixel_threshold).mean() >= 0.01
    assert Calibration.from_json(json.loads(json.dumps(result.to_json()))) == result


def out_of_fold(scores, target=0.05, maps=None):
    return calibrate_out_of_fold(scores, maps, {"by": "file order"}, target_fpr=target)


@pytest.mark.parametrize(("n", "target"), [(10, 0.1), (39, 0.05), (90, 0.05), (320, 0.02)])
def test_the_promise_and_its_spread_are_what_happens(n: int, target: float) -> None:
    rng = np.random.default_rng(n)
    found = [out_of_fold(rng.random(n), target) for _ in range(4000)]
    rates = np.array([1 - one.threshold for one in found])
    (promised,) = {one.attained_fpr for one in found}  # uniform scores: none stands out
    ((low, high),) = {one.spread for one in found}
    assert promised <= target + 1e-9
    assert rates.mean() == pytest.approx(promised, abs=4 * rates.std() / len(rates) ** 0.5)
    assert np.mean((rates > low) & (rates < high)) == pytest.approx(0.9, abs=0.02)


def test_a_new_normal_has_a_small_p_value_as_rarely_as_it_says() -> None:
    rng, small = np.random.default_rng(0), []
    for _ in range(4000):
        scores = rng.random(19)
        found, new = out_of_fold(scores, 0.1), rng.random()
        p = found.p_value(new)
        assert p == (1 + (scores >= new).sum()) / 20
        # The same question twice: p below the target where the verdict is "anomalous".
        assert (new > found.threshold) == (p <= 0.1)
        small.append([p <= a for a in (0.05, 0.1, 0.3)])
    assert np.mean(small, 0) == pytest.approx([0.05, 0.1, 0.3], abs=0.02)
    tied = out_of_fold([1.0, 2.0, 2.0, 3.0])
    assert [tied.p_value(s) for s in (0.0, 2.0, 3.0, 4.0)] == [1.0, 0.8, 0.4, 0.2]
    assert calibrate([1.0, 2.0, 3.0]).p_value(2.0) == 0.75


def test_too_few_say_what_they_can_promise_and_how_many_it_takes() -> None:
    found = out_of_fold(np.arange(1.0, 13.0))
    assert (found.rule, found.threshold, found.least_fpr) == ("largest", 12.0, 1 / 13)
    assert found.attained_fpr == pytest.approx(1 / 13)
    (said,) = found.caveats
    assert "12 normals can promise a false-positive rate of 7.69%, not 5.00%: that takes 19" in said
    assert not out_of_fold(np.arange(1.0, 20.0)).caveats


@pytest.mark.parametrize("n", [8, 12, 20, 50, 90, 320])
@pytest.mark.parametrize("how_far", [1.5, 4.0, 30.0, 1e6])
def test_one_odd_normal_moves_the_threshold_by_a_rank_at_most(n: int, how_far: float) -> None:
    scores = np.sort(np.random.default_rng(n).gamma(4, size=n))
    before = out_of_fold(scores)
    odd = scores.copy()
    odd[0] = scores[-1] * how_far
    after = out_of_fold(odd)
    assert after.odd == standing_out(odd).sum() <= 1
    if how_far >= 30:
        assert after.odd == 1
    if after.odd or n >= 39:
        # By a rank, and never to where the odd one is.
        rank = int(np.searchsorted(scores, before.threshold))
        assert after.threshold <= scores[min(rank + 1, n - 1)]
    if after.odd:
        (said,) = [x for x in after.caveats if "far above" in x]
        assert f"1 of {n} normals" in said
        # What it costs is bounded, and told.
        assert after.attained_fpr <= after.clean_fpr + 2 / (n + 1)
        k = int((np.sort(odd) <= after.threshold).sum())
        assert after.attained_fpr == pytest.approx((n + 1 - k) / (n + 1))
        assert after.clean_fpr == pytest.approx((n - k) / n)


def test_ordinary_tails_seldom_stand_out_and_few_may() -> None:
    rng = np.random.default_rng(3)
    told = [standing_out(draw(size=60)) for _ in range(500) for draw in (rng.normal, rng.gumbel)]
    assert np.mean([out.any() for out in told]) < 0.02
    assert standing_out([*np.arange(47.0), *[1e3] * 3]).sum() == 3
    assert standing_out([*np.arange(47.0), *[1e6] * 5]).sum() == 5  # of 52: a tenth
    assert not standing_out([1.0] * 30 + [2.0]).any()  # no scale to measure by


def test_what_is_known_to_be_normal_counts_however_far_it_stands_out() -> None:
    scores = np.append(np.arange(1.0, 19.0), 500.0)
    assert out_of_fold(scores).odd == 1
    found = calibrate_out_of_fold(scores, None, {}, accepted=scores == 500)
    assert (found.odd, found.threshold, found.rule) == (0, 500.0, "conformal")
    assert not found.caveats


def test_an_odd_normals_map_does_not_set_the_pixel_threshold() -> None:
    maps = np.random.default_rng(0).random((20, 16, 16)).astype(np.float32)
    scores = maps.max((1, 2))
    before = out_of_fold(scores, maps=maps).pixel_threshold
    maps[3, :8] += 50
    scores[3] = 51
    after = out_of_fold(scores, maps=maps)
    assert after.odd == 1
    assert after.pixel_threshold == pytest.approx(before, abs=0.005)
    assert after.pixel_n == 19 * 256
    assert Calibration.from_json(json.loads(json.dumps(after.to_json()))) == after


def test_a_calibration_of_before_still_opens() -> None:
    old = {
        "threshold": 1.5, "target_fpr": 0.05, "attained_fpr": 0.1, "n": 9, "rule": "tail",
        "pixel_threshold": None, "pixel_target_fpr": None, "pixel_n": 0, "median": 1.0,
    }  # fmt: skip
    found = Calibration.from_json(old)
    assert (found.p_value(2.0), found.folds, found.odd) == (None, None, 0)
    assert "9 held-out normals" in found.caveats[0]


def test_refusals() -> None:
    with pytest.raises(DataError, match="no held-out"):
        calibrate([])
    with pytest.raises(ConfigError, match="rate"):
        calibrate([1.0], target_fpr=1.5)
    with pytest.raises(DataError, match="finite"):
        calibrate([np.inf])
