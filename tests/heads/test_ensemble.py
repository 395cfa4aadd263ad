"""An ensemble: the standardised mean of what its members give, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from heads.catalogue import all_heads, get_head, saved_config
from heads.contract import NullProgress, TrainOptions
from heads.ensemble import Ensemble, EnsembleConfig, join_out_of_fold, telling
from heads.judging.rules import rule_of
from heads.looking import LOOKED
from heads.training.folds import Folds
from heads.training.kept import keep, kept, rounded
from heads.training.out_of_fold import FoldByFold, OutOfFold
from heads.training.sources import LookedSource
from headwater.errors import ConfigError, DataError, NotFittedError
from tests.heads.tiny import STAGES, TINY, build, structured

OPTIONS = TrainOptions(device="cpu", precision="float32", threads=1)
NAMES = ("patchcore", "padim", "fast_flow")
SHAPES = {**TINY["patchcore"].shapes, **STAGES}
SOURCE = structured(SHAPES, 13, 0)
#: Each its own, as a head that leaves images out at no cost has them.
FOLDS = {"patchcore": 3, "padim": 13, "fast_flow": 3}


@cache
def trained(name):
    """A head of all images, and its out-of-fold scores."""
    folds = Folds({image: i % FOLDS[name] for i, image in enumerate(SOURCE.ids)}, "test")
    apart = FoldByFold(lambda: build(name), SOURCE, folds).all(OPTIONS, NullProgress())
    head = build(name)
    head.fit(SOURCE, SOURCE.subset([]), OPTIONS, NullProgress())
    if apart.parts is not None:
        rule_of(head).settle(apart.parts)
    return head.eval(), apart


def empty(names=NAMES):
    told = tuple(
        {"head": n, "config": asdict(trained(n)[0].config), "layers": list(TINY[n].shapes)}
        for n in names
    )
    return Ensemble(EnsembleConfig(members=told), SHAPES, (16, 16)).eval()


def joined(names=NAMES):
    made = empty(names)
    made.adopt([trained(n)[0] for n in names])
    return made, join_out_of_fold(made, [trained(n)[1] for n in names])


def by_hand(names, given, normal):
    """The mean of `given` by mean and deviation of `normal`, an array a member."""
    return np.mean(
        [
            (g - x.mean(dtype=float)) / x.std(dtype=float)
            for g, x in zip(given, normal, strict=True)
        ],
        axis=0,
    )


def test_scores_and_maps_are_the_standardised_mean_of_the_members():
    ensemble, apart = joined()
    batch = structured(SHAPES, 6, 5).read(0, 6)
    got = ensemble.score(batch)
    own = [trained(n)[0].score(batch) for n in NAMES]
    outs = [trained(n)[1] for n in NAMES]
    for values, given, normal in (
        (got.image, [x.image.numpy() for x in own], [x.scores for x in outs]),
        (got.maps, [x.maps.numpy() for x in own], [x.maps for x in outs]),
    ):
        np.testing.assert_allclose(values, by_hand(NAMES, given, normal), rtol=1e-6, atol=1e-6)
    # Out of fold likewise, whatever the folds of each; those that are told are the coarsest.
    normal = [x.scores for x in outs]
    np.testing.assert_allclose(apart.scores, by_hand(NAMES, normal, normal), rtol=1e-6, atol=1e-6)
    normal = [x.maps for x in outs]
    np.testing.assert_allclose(apart.maps, by_hand(NAMES, normal, normal), rtol=1e-5, atol=1e-6)
    assert apart.folds.count == 3
    assert np.mean(apart.scores) == pytest.approx(0, abs=1e-6)


def test_a_score_belongs_to_one_image():
    ensemble = joined()[0]
    batch = structured(SHAPES, 6, 5).read(0, 6)
    batch = {k: torch.cat([v[:5], v[5:] * 20]) for k, v in batch.items()}
    whole = ensemble.score(batch)
    for rows in ([0], [5], [3, 5, 1]):
        part = ensemble.score({k: v[rows] for k, v in batch.items()})
        torch.testing.assert_close(part.image, whole.image[rows], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(part.maps, whole.maps[rows], rtol=1e-5, atol=1e-5)


def test_it_is_saved_and_opened_like_any_head(tmp_path):
    ensemble = joined()[0]
    save_file({k: v.contiguous() for k, v in ensemble.state_dict().items()}, tmp_path / "head")
    told = json.loads(json.dumps(asdict(ensemble.config)))
    again = get_head("ensemble")(saved_config("ensemble", told), SHAPES, (16, 16))
    assert again.config == dataclasses.replace(ensemble.config, members=again.config.members)
    batch = structured(SHAPES, 4, 6).read(0, 4)
    with pytest.raises(NotFittedError):
        again.score(batch)
    again.load_state_dict(load_file(tmp_path / "head"), strict=True)
    one, other = ensemble.score(batch), again.eval().score(batch)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.maps, other.maps)
    # A setting that came later is what it was then, in members, too.
    del told["members"][0]["config"]["score"]
    older = get_head("ensemble")(saved_config("ensemble", told), SHAPES, (16, 16))
    assert [one.config.score for one in older.heads] == ["paper", "auto", "auto"]


def test_by_held_out_images_it_is_settled_as_by_out_of_fold_ones():
    held = structured(SHAPES, 5, 9)
    ensemble = empty()
    ensemble.adopt([trained(n)[0] for n in NAMES])
    scores = ensemble.settle_by(held, batch=2)
    own = [trained(n)[0].score(held.read(0, 5)) for n in NAMES]
    np.testing.assert_allclose(scores, np.stack([x.image for x in own], 1), rtol=1e-6)
    got = ensemble.score(held.read(0, 5))
    for values, parts in (
        (got.image, [x.image.numpy() for x in own]),
        (got.maps, [x.maps.numpy() for x in own]),
    ):
        np.testing.assert_allclose(values, by_hand(NAMES, parts, parts), rtol=1e-5, atol=1e-5)


def test_what_is_not_looked_at_says_nothing():
    where = np.ones((16, 16), bool)
    where[:, 9:] = False

    def settled(noise):
        maps = {k: v.clone() for k, v in structured(SHAPES, 6, 9).read(0, 6).items()}
        for one in maps.values():
            one[..., -(one.shape[-1] // 4) or one.shape[-1] :] += noise  # outside, all of it
        source = LookedSource(
            type(SOURCE)(maps, [str(i) for i in range(6)]), lambda image, view: where
        )
        ensemble = empty(("patchcore",) * 2)
        ensemble.adopt([trained("patchcore")[0]] * 2)
        ensemble.settle_by(source)
        return ensemble, ensemble.score(source.read(0, 6))

    (one, got), (other, same) = settled(0.0), settled(7.0)
    for pool, twin in ((one.heat, other.heat), (one.image, other.image)):
        assert torch.equal(pool.mean, twin.mean)
        assert torch.equal(pool.deviation, twin.deviation)
    assert torch.equal(got.image, same.image)
    seen = torch.from_numpy(where)
    assert torch.equal(got.maps[:, seen], same.maps[:, seen])
    assert torch.equal(got.maps[:, ~seen].amax(1), got.maps[:, seen].amin(1))
    assert LOOKED  # the entry of the batch that says it


def test_members_that_were_calibrated_by_other_images_are_refused():
    first = trained("patchcore")[1]
    ensemble = empty()
    ensemble.adopt([trained(n)[0] for n in NAMES])
    fewer = dataclasses.replace(
        first, images=first.images[:-1], scores=first.scores[:-1], maps=first.maps[:-1]
    )
    with pytest.raises(DataError, match="padim was calibrated by other normals than patchcore: 1"):
        join_out_of_fold(ensemble, [fewer, trained("padim")[1], trained("fast_flow")[1]])
    # In another order they are the same images.
    turned = slice(None, None, -1)
    other = dataclasses.replace(
        first, images=first.images[turned], scores=first.scores[turned], maps=first.maps[turned]
    )
    rest = [trained("padim")[1], trained("fast_flow")[1]]
    expected = joined()[1]
    found = join_out_of_fold(ensemble, [other, *rest])
    assert found.images == expected.images[turned]
    np.testing.assert_allclose(found.scores[turned], expected.scores, rtol=1e-6, atol=1e-6)


def test_only_what_tells_normals_apart_is_joined():
    good, saturated = np.arange(9.0), np.array([1.0] * 5 + [2, 3, 4, 5])
    assert telling("abc", [good, saturated, good * 2]) == [0, 2]
    with pytest.raises(DataError, match="b give most normals one score"):
        telling("ab", [good, saturated])


def test_it_learns_nothing_and_is_no_head_to_ask_for():
    assert "ensemble" not in all_heads()
    with pytest.raises(ConfigError, match="0 head"):
        get_head("ensemble")(EnsembleConfig(), SHAPES, (16, 16))
    with pytest.raises(ConfigError, match="learns nothing"):
        joined()[0].fit(SOURCE, SOURCE.subset([]), OPTIONS, NullProgress())
    assert joined()[0].score_limit is None


@pytest.mark.parametrize("masked", [False, True])
def test_out_of_fold_scores_come_back_from_their_file(tmp_path, masked):
    rng = np.random.default_rng(0)
    # Far beyond float16, whose end is 65,504, and of a small spread.
    maps = rng.normal(1e6, 1e3, (70, 301, 299)).astype(np.float32)
    outside = np.zeros(maps.shape, bool)
    outside[3, 5:, 9:] = masked
    heat = np.ma.masked_array(maps, outside) if masked else maps
    folds = Folds({f"i{n}": n % 5 for n in range(70)}, "test", 0.25, 1)
    whole = OutOfFold(folds, list(folds.of), rng.normal(size=70).astype(np.float32), heat, 1.5)
    got, told = kept(keep(whole, tmp_path / "f")), rounded(whole)
    assert (tmp_path / "f").stat().st_size < 9e6
    assert (got.folds, got.images, got.seconds, got.step) == (folds, whole.images, 1.5, 2)
    for one in (got, told):
        assert np.array_equal(one.scores, whole.scores)
        assert np.array_equal(np.ma.getdata(one.maps), np.ma.getdata(told.maps))
        assert np.array_equal(np.ma.getmaskarray(one.maps), outside[:, ::2, ::2])
    off = np.ma.getdata(got.maps) - maps[:, ::2, ::2]
    assert np.abs(off).max() < 5e-4 * (maps.max() - maps.min())
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:1000])
    with pytest.raises(DataError, match="out-of-fold"):
        kept(tmp_path / "f")
