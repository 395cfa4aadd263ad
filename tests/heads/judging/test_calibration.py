"""Thresholds on held-out normals keep what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from heads.judging.calibration import Calibration, calibrate, threshold_for
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


def test_refusals() -> None:
    with pytest.raises(DataError, match="no held-out"):
        calibrate([])
    with pytest.raises(ConfigError, match="rate"):
        calibrate([1.0], target_fpr=1.5)
    with pytest.raises(DataError, match="finite"):
        calibrate([np.inf])
