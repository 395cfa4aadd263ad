"""Thresholds and rules that known defects choose: exact, against trying everything."""

import numpy as np
import pytest
import torch

from heads.judging.calibration import Calibration, calibrate, calibrate_out_of_fold
from heads.judging.known import (
    best_rule,
    choose_threshold,
    threshold_for_costs,
    threshold_for_recall,
    thresholds_between,
)
from heads.judging.metrics import auroc
from heads.judging.rules import ChosenRule
from headwater.errors import ConfigError, DataError
from headwater.prices import Prices


@pytest.mark.parametrize("seed", range(60))
def test_no_threshold_finds_as_many_at_fewer_false_alarms(seed):
    """Scores of few values, so that many tie, within a kind and between normals and defects."""
    rng = np.random.default_rng(seed)
    good = rng.integers(0, 6, rng.integers(1, 12)).astype(np.float32)
    bad = rng.integers(2, 9, rng.integers(1, 8)).astype(np.float32)
    every = [-1.0, *sorted({*good.tolist(), *bad.tolist()})]
    for recall in (0.01, 0.3, 0.5, 0.75, 0.9, 1.0):
        least = -(-round(recall * 1000) * len(bad) // 1000)
        can = [t for t in every if (bad > t).sum() >= least]
        found = threshold_for_recall(good, bad, recall)
        assert (bad > found).sum() >= least
        assert (good > found).sum() == min((good > t).sum() for t in can)
        assert (bad > found).sum() == (bad > max(can)).sum()
    for prices in (Prices(1, 1), Prices(10, 1), Prices(1, 10), Prices(0, 1), Prices(1, 0)):

        def cost(t, prices=prices):
            return prices.miss * (bad <= t).sum() + prices.false_alarm * (good > t).sum()

        assert cost(threshold_for_costs(good, bad, prices)) == min(map(cost, every))


def test_a_share_is_not_rounded_up_by_the_number_that_stands_for_it():
    bad = np.arange(1, 21)
    for found in range(1, 21):
        assert (bad > threshold_for_recall([0.5], bad, found / 20)).sum() == found
    assert (bad > threshold_for_recall([0.5], bad, 0.951)).sum() == 20
    for recall in (0, 1.1, -1, np.nan):
        with pytest.raises(ConfigError, match="recall"):
            threshold_for_recall([1], [2], recall)
    with pytest.raises(DataError):
        threshold_for_recall([1], [np.nan], 0.5)


def test_a_score_a_rounding_error_away_is_judged_alike():
    good, bad = np.float32([0.1, 0.2, 0.3]), np.float32([0.25, 0.7, 0.9])
    every = thresholds_between(good, bad)
    assert every[0] < 0.1
    assert every[-1] == bad.max()
    gaps = np.abs(every[1:-1, None] - np.concatenate([good, bad])).min()
    assert gaps == pytest.approx(0.025)


def test_what_is_found_and_what_it_costs_is_told():
    good, bad = np.arange(40.0), np.array([20.5, 50, 60, 70, 80.0])
    before = calibrate_out_of_fold(good, None, {"count": 5})
    found = choose_threshold(before, good, bad, recall=0.8)
    assert (found.threshold, found.rule, found.scores) == (44.5, "recall", before.scores)
    assert found.known["found"] == 4
    assert found.known["false_alarms"] == 0
    assert found.attained_fpr == pytest.approx(1 / 41)
    assert found.caveats == [found.known["told"]]
    assert "finds 4 and calls 0 of 40 normals (0.0%)" in found.caveats[0]
    assert "promises a recall of 66.7%" in found.caveats[0]  # 4 / (5 + 1)
    every = choose_threshold(before, good, bad, recall=0.95)
    assert every.threshold == 20.25
    assert every.attained_fpr == pytest.approx(20 / 41)
    assert "5 known defects can promise 83.3% at best; 95.0% takes 19" in every.caveats[0]
    (said,) = choose_threshold(before, good, bad, recall=1.0).caveats
    assert said.endswith("at best")
    # Missing the one hidden among the normals costs less than calling 19 of them.
    costs = choose_threshold(before, good, bad, prices=Prices(18, 1))
    assert (costs.threshold, costs.known["cost"]) == (44.5, 18 / 45)
    assert choose_threshold(before, good, bad, prices=Prices(20, 1)).threshold == 20.25
    assert Calibration.from_json(costs.to_json()).to_json() == costs.to_json()
    assert "known" not in before.to_json()
    # Below all normals every one of them is called.
    low = choose_threshold(before, good, [-5.0], recall=1.0)
    assert (low.attained_fpr, low.spread) == (1.0, (1.0, 1.0))
    assert choose_threshold(calibrate(good), good, bad, recall=0.8).threshold == 44.5


def test_the_recall_that_is_promised_is_what_happens():
    """Mean and range over sets of as many defects, of new ones from the same."""
    rng, got = np.random.default_rng(0), []
    before = calibrate(np.zeros(10))
    for _ in range(2000):
        bad = rng.gumbel(size=10)
        found = choose_threshold(before, np.zeros(10) - 99, bad, recall=0.8)
        share = 1 - np.exp(-np.exp(-found.threshold))
        got.append(share)
    # The threshold lies half way to the next one below: never less than promised.
    assert 8 / 11 <= np.mean(got) <= 9 / 11


def test_the_rule_is_the_one_that_ranks_best_and_the_default_where_several_do():
    rng = np.random.default_rng(1)
    for trial in range(40):
        rule = ChosenRule(0.03)
        good, bad = rng.normal(size=(9, 4)), rng.normal(0.7, 1, size=(5, 4))
        rule.settle(good)
        default = ("pooled", "max")[trial % 2]
        name, found = rule.choose(good, bad, default)
        labels = np.arange(14) >= 9
        for part in rule.CANDIDATES:
            scores = rule.of_parts(torch.from_numpy(np.concatenate([good, bad])), part)
            assert found[part] == pytest.approx(auroc(scores.float().numpy(), labels))
        best = {part for part, area in found.items() if area > max(found.values()) - 1e-9}
        assert name == default if default in best else name in best
        assert next(iter(found)) == default
        assert np.array_equal(
            rule.scores(bad), rule.of_parts(torch.from_numpy(bad), name).float().numpy()
        )
    assert best_rule({"a": [0.0], "b": [0.0]}, {"a": [1.0], "b": [2.0]})[0] == "a"


def test_a_rule_that_was_chosen_is_saved_and_scores_by_it():
    maps = [torch.rand(6, 8, 8), torch.rand(6, 4, 4)]
    rule = ChosenRule(0.1)
    parts = rule(maps)[1]
    rule.settle(parts.numpy())
    pooled = rule(maps)[0]
    assert torch.equal(pooled, torch.from_numpy(rule.scores(parts.numpy())))
    # Only the mean over all positions tells these from those.
    good, bad = np.zeros((4, 4)), np.array([[0, 0, 0, 1.0]])
    assert rule.choose(good, bad, "pooled")[0] == "mean"
    again = ChosenRule(0.1)
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again(maps)[0], parts[:, rule.PARTS.index("mean")].float())
    assert not torch.equal(again(maps)[0], pooled)
