"""From the maps of an image to its score: every rule, no ties, what a pooled score learns."""

from functools import cache

import numpy as np
import pytest
import torch

from heads.catalogue import all_heads, get_head, make_config
from heads.contract import NullProgress, TrainOptions
from heads.judging.rules import POOLED, RULES, Rule, RuledHead, by_rule, rule_of
from heads.looking import LOOKED, looking
from heads.training.folds import Folds
from heads.training.out_of_fold import FoldByFold, score_source
from headwater.errors import ConfigError
from tests.heads.tiny import TINY, build

OPTIONS = TrainOptions(device="cpu", precision="float32", threads=1)
HEADS = [n for n in all_heads() if n in TINY and issubclass(get_head(n), RuledHead)]
IMAGES = [n for n in HEADS if not get_head(n).pairs]


def maps(rows=5):
    draw = np.random.default_rng(0)
    return [draw.exponential(size=(rows, *size)) for size in ((4, 6), (2, 3))]


def torched(arrays):
    return [torch.from_numpy(a) for a in arrays]


def test_each_rule_is_what_it_says():
    fine, coarse = maps()
    double = fine.copy()  # of one size, so that nothing is resized
    joint = (fine + double) / 2
    found = {r: by_rule(r, torched([fine, double]), 0.25).numpy() for r in ("max", "top")}
    assert np.allclose(found["max"], joint.max((1, 2)))
    assert np.allclose(found["top"], np.sort(joint.reshape(5, -1))[:, -6:].mean(1))
    mean, scales = (by_rule(r, torched([fine, coarse]), 0.25).numpy() for r in ("mean", "scales"))
    assert np.allclose(mean, (fine.sum((1, 2)) + coarse.sum((1, 2))) / 30)
    assert np.allclose(scales, (fine.mean((1, 2)) + coarse.mean((1, 2))) / 2)


@pytest.mark.parametrize("rule", RULES[1:])
def test_what_is_not_looked_at_has_no_say(rule):
    where = torch.zeros(5, 8, 12, dtype=torch.bool)
    where[:, :, :4] = True
    plain = torched(maps())
    loud = [m.clone() for m in plain]
    for m in loud:
        m[:, :, m.shape[2] // 3 :] = 1e9
    with looking({LOOKED: where}):
        quiet = Rule(rule, 0.1)(plain)[0]
        assert torch.equal(quiet, Rule(rule, 0.1)(loud)[0])
    assert not torch.equal(quiet, Rule(rule, 0.1)(plain)[0])


@cache
def fitted(name, rule):
    brief = {"epochs": 1} if "epochs" in TINY[name].config else {}
    head = build(name, score=rule, **brief)
    head.fit(TINY[name].data(), TINY[name].data(seed=1, rows=5), OPTIONS, NullProgress())
    return head.eval()


def far_out(name):
    """Return one image, ever farther from what is normal: up to squares of 1e12."""
    batch = TINY[name].data(seed=2, rows=1).read(0, 1)
    factors = torch.tensor([1, 10, 1e2, 1e3, 1.001e3, 1e4, 1e5, 1e6])
    return {k: v * factors.view(-1, *[1] * (v.ndim - 1)) for k, v in batch.items()}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("rule", RULES[1:])
def test_no_images_tie_however_far_out_they_are(name, rule):
    # Other weights are learnt under no rule, so one training does for all.
    head = build(name, score=rule)
    learnt = fitted(name, "max").state_dict()
    head.load_state_dict(head.state_dict() | learnt)
    found = head.eval().score(far_out(name)).image
    assert torch.isfinite(found).all()
    assert (found.diff() > 0).all(), found


def test_the_papers_likelihoods_do_tie():
    found = fitted("ms_flow", "paper").score(far_out("ms_flow")).image
    assert (found[1:] == found[-1]).sum() > 3


@pytest.mark.parametrize("name", ["fast_flow", "padim"])  # in folds, and leaving out exactly
def test_a_pooled_score_is_scaled_by_all_normals_out_of_fold(name):
    source = TINY[name].data()
    folds = Folds({image: i % 3 for i, image in enumerate(source.ids)}, "test")
    got = FoldByFold(lambda: build(name, score="pooled"), source, folds).all(
        OPTIONS, NullProgress()
    )
    assert got.parts.shape == (len(source), len(POOLED))
    want = ((got.parts - got.parts.mean(0)) / got.parts.std(0)).mean(1)
    assert np.allclose(got.scores, want, atol=1e-5)
    head = fitted(name, "pooled")
    before, _ = score_source(head, source)
    rule_of(head).settle(got.parts)
    after, _ = score_source(head, source)
    assert not np.allclose(before, after)
    # What was learnt is saved with the head, and is one image's business.
    again = build(name, score="pooled")
    again.load_state_dict(head.state_dict())
    one, _ = score_source(again.eval(), source.subset([3]))
    assert one[0] == pytest.approx(after[3], rel=1e-4)


def test_the_map_of_joined_tiles_is_scored_by_the_rule_of_what_is_seen_of_it():
    heat = np.ma.masked_array(maps()[0][0].astype(np.float32), np.zeros((4, 6), bool))
    heat[0] = np.ma.masked
    seen = heat.compressed()
    assert rule_of(build("pair_diff")).of_map(heat)[0] == seen.max()
    assert Rule("paper", 0.03).of_map(heat)[0] == Rule("auto", 0.03).of_map(heat)[0] == seen.max()
    assert Rule("mean", 0.03).of_map(heat)[0] == pytest.approx(seen.mean())
    pooled = Rule("pooled", 0.2)
    parts = pooled.of_map(heat)[1]
    assert parts == pytest.approx([seen.max(), np.sort(seen)[-4:].mean(), seen.mean()])
    pooled.settle(np.stack([parts, parts + 2]))
    assert pooled.of_map(heat)[0] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"score": "best"}, "one of auto, paper, max"), ({"top_share": 1.5}, "0 to 1")],
)
def test_a_rule_that_is_none_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        make_config("padim", settings)
