"""A challenger goes in service only if it is no worse; each condition alone keeps it out."""

import numpy as np
import pytest

from flows.retraining.gate import Answer, Judgement, checks_of, limit_check, made_check
from flows.retraining.judging import choose
from flows.runtime.sections import RetrainSettings

MARGINS = RetrainSettings()


def answers(scores, threshold=0.5):
    """Answers to a locked test by kind: ``{"good": [...], "crack": [...]}``."""
    return {
        f"{kind}{i}": Answer(kind, float(score), score > threshold)
        for kind, some in scores.items()
        for i, score in enumerate(some)
    }


def failed(champion, challenger, **margins):
    found = checks_of(champion, challenger, MARGINS.model_copy(update=margins))
    return [check.name for check in found if check.passed is False]


GOOD, BAD = np.linspace(0, 0.45, 40), np.linspace(0.55, 1, 20)
CHAMPION = answers({"good": GOOD, "crack": BAD, "dent": BAD})


def test_one_that_says_the_same_passes():
    found = checks_of(CHAMPION, CHAMPION, MARGINS)
    assert [c.name for c in found] == [
        "image AUROC", "false positives", "recall of crack", "recall of dent"
    ]  # fmt: skip
    assert all(c.passed for c in found)
    assert "difference +0.000, in 19 of 20 draws of the test above +0.000" in found[0].said


def test_a_lost_kind_is_seen_though_the_whole_is_as_good():
    lost = answers({"good": GOOD, "crack": BAD, "dent": [*BAD[2:], 0.46, 0.47]})
    assert failed(CHAMPION, lost) == ["recall of dent"]  # 2 of 20 at a margin of .05
    assert failed(CHAMPION, lost, recall_margin=0.1) == []
    # As many gained as lost are no loss.
    champion = answers({"good": GOOD, "dent": [0.46, *BAD[1:]]})
    assert failed(champion, answers({"good": GOOD, "dent": [*BAD[1:], 0.46]})) == []


def test_false_alarms_keep_it_out():
    more = answers({"good": [*GOOD[3:], 0.51, 0.52, 0.53], "crack": BAD, "dent": BAD})
    assert failed(CHAMPION, more) == ["false positives"]  # 3 of 40
    assert failed(CHAMPION, more, fpr_margin=0.08) == []


def test_a_worse_order_keeps_it_out_where_it_is_no_chance():
    rng = np.random.default_rng(0)
    noisy = answers({"good": rng.normal(0, 0.1, 40), "crack": rng.normal(0.2, 0.1, 20)}, 9)
    same = answers({"good": rng.normal(0, 0.1, 40), "crack": rng.normal(0, 0.1, 20)}, 9)
    assert failed(noisy, same) == ["image AUROC"]
    assert failed(same, noisy) == []
    # Paired: the same small change in all scores leaves a narrow interval, though both vary.
    shifted = {k: Answer(a.kind, a.score + 0.001, a.called) for k, a in noisy.items()}
    assert failed(noisy, shifted, auroc_margin=0.001) == []


@pytest.mark.parametrize("kinds", [{"good": GOOD}, {"crack": BAD}])
def test_what_the_test_cannot_tell_is_said_and_holds_nobody_back(kinds):
    found = checks_of(answers(kinds), answers(kinds), MARGINS)
    assert [c.passed for c in found].count(None) == 2
    assert all("has no" in c.said for c in found if c.passed is None)
    judged = Judgement("s.a", "2", "a", "s.a version 1", found)
    assert judged.passed
    assert "not asked" not in judged.why


def test_limits_and_made_defects():
    assert limit_check("time", 31, 30, "ms").passed is False
    assert limit_check("time", 29, 30, "ms").passed is True
    assert made_check(0.8, 0.76, 50, 0.05).passed
    assert not made_check(0.8, 0.7, 50, 0.05).passed


def test_the_test_does_not_choose_among_those_that_pass():
    bad = checks_of(CHAMPION, answers({"good": GOOD, "crack": BAD - 0.5, "dent": BAD}), MARGINS)
    a, b = (Judgement(f"s.{h}", "2", h, "s.b version 1") for h in "ab")
    c = Judgement("s.c", "2", "c", "s.b version 1", bad)
    assert choose([c], "b", {}) is None
    assert choose([a, b, c], "b", {}) is b  # the champion's head
    assert choose([a, b, c], "c", {}) is a  # the first that was asked for
    assert choose([a, b], "b", {"s.a/2": 0.9, "s.b/2": 0.8}) is a  # known defects say so
    assert choose([a, b], "b", {"s.a/2": 0.9}) is b  # of both, or of none
