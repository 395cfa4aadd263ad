"""Every normal is scored by a head that has not learnt from it; what was done is not done again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heads.contract import NullProgress, TrainOptions
from heads.judging.rules import rule_of
from heads.training.folds import Folds
from heads.training.out_of_fold import FoldByFold, leaves_out, score_source, sides
from heads.training.sources import LookedSource
from tests.heads.tiny import TINY, build

OPTIONS = TrainOptions(device="cpu", precision="float32")
HEADS = ["patchcore", "padim", "fast_flow", "f2r", "pair_flow"]


def folds_of(source, count=3):
    images = list(dict.fromkeys(source.ids))
    return Folds({image: i % count for i, image in enumerate(images)}, "test")


@pytest.mark.parametrize("name", HEADS)
def test_each_score_is_that_of_a_head_without_the_fold(name):
    source = TINY[name].data()
    folds = folds_of(source)
    got = FoldByFold(lambda: build(name), source, folds).all(OPTIONS, NullProgress())
    plain = [row for row, view in enumerate(source.views) if view == 0]
    assert list(got.images) == [source.ids[row] for row in plain]
    rest = [row for row, image in enumerate(source.ids) if folds.of[image] != 1]
    head = build(name)
    head.fit(source.subset(rest), source.subset([]), OPTIONS, NullProgress())
    own = [i for i, row in enumerate(plain) if folds.of[source.ids[row]] == 1]
    if got.parts is not None:  # a pooled score: all normals' parts say how they are joined
        rule_of(head).settle(got.parts)
    scores, maps = score_source(head, source.subset([plain[i] for i in own]))
    near = 2e-5 if leaves_out(head) else 0  # padim takes the fold out of its sums instead
    assert np.allclose(got.scores[own], scores, rtol=near, atol=0)
    assert np.allclose(np.asarray(got.maps)[own], np.asarray(maps), rtol=near, atol=0)


def test_what_leaves_images_out_exactly_needs_no_training_more():
    source = TINY["padim"].data()
    alone = Folds({image: i for i, image in enumerate(source.ids)}, "image")
    work = FoldByFold(lambda: build("padim", score="max"), source, alone)
    got = work.all(OPTIONS, NullProgress())
    for fold in (0, 7):
        anew = work.one(fold, OPTIONS, NullProgress())
        assert got.scores[fold] == pytest.approx(anew["scores"][0], rel=2e-5)
        assert np.asarray(got.maps)[fold] == pytest.approx(anew["maps"][0], rel=2e-5)
    # Images of which a part is not looked at have no common sums: the heads learn anew.
    masked = LookedSource(source, lambda image, view: np.ones((4, 3), bool))
    assert leaves_out(work.build(), source)
    assert not leaves_out(work.build(), masked)
    assert not leaves_out(build("patchcore"), source)


def test_an_image_does_not_score_low_because_it_was_learnt():
    # All positions are kept, so what was learnt is at distance 0 of itself.
    source = TINY["patchcore"].data()

    def whole():
        return build("patchcore", ratio=1.0, score="max")

    head = whole()
    head.fit(source, source.subset([]), OPTIONS, NullProgress())
    learnt, _ = score_source(head, source)
    apart = FoldByFold(whole, source, folds_of(source)).all(OPTIONS, NullProgress())
    assert learnt.max() < 1e-3 < apart.scores.min()


class Chooses:
    """A stand-in for a head that chooses, or not."""

    def __init__(self, answer):
        self.answer = answer

    def chooses(self, options):
        return self.answer


def test_what_chooses_does_not_set_the_threshold():
    source = TINY["f2r"].data()  # a view beside each image
    rows = [row for row, image in enumerate(source.ids) if folds_of(source).of[image] != 0]
    train, held_out = sides(Chooses(False), source, rows, 0.25, OPTIONS)
    assert (len(train), len(held_out)) == (len(rows), 0)
    train, held_out = sides(Chooses(True), source, rows, 0.25, OPTIONS)
    known = {source.ids[row] for row in rows}
    assert set(train.ids) | set(held_out.ids) == known
    assert not set(train.ids) & set(held_out.ids)
    assert set(held_out.views) == {0}
    asked = {name: build("f2r", **more).chooses(OPTIONS) for name, more in {
        "plain": {}, "picks": {"select": "synthetic"},
        "told": {"select": "synthetic", "alpha": 1.0, "beta": 0.9},
    }.items()}  # fmt: skip
    assert asked == {"plain": False, "picks": True, "told": False}
    assert build("patchcore").chooses(TrainOptions(early_stop=3))


class Told(NullProgress):
    """Keeps what it is told; may be told to break off."""

    def __init__(self, stop_at=None):
        self.texts, self.stop_at = [], stop_at

    def step(self, done, total, text):
        self.texts.append(text)
        if self.stop_at is not None and text.startswith(self.stop_at):
            raise KeyboardInterrupt


def test_a_broken_calibration_goes_on_where_it_was(tmp_path):
    source = TINY["fast_flow"].data()
    options = TrainOptions(device="cpu", precision="float32", checkpoint_every=0)

    def work(keep):
        return FoldByFold(lambda: build("fast_flow"), source, folds_of(source), keep=keep)

    whole = work(tmp_path / "whole").all(options, NullProgress())
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "broken").all(options, Told(stop_at="fold 2 of 3: epoch 5/8"))
    kept = sorted(p.name for p in (tmp_path / "broken").glob("*.safetensors"))
    assert kept == ["fold-0.safetensors"]
    heard = Told()
    after = work(tmp_path / "broken").all(options, heard)
    assert np.array_equal(after.scores, whole.scores)
    assert np.array_equal(np.asarray(after.maps), np.asarray(whole.maps))
    # The first fold is not trained again, the second goes on from its fourth epoch.
    assert heard.texts[0].startswith("fold 2 of 3: epoch 5/8")
    assert heard.texts[-1].startswith("fold 3 of 3: epoch 8/8")


def test_large_sets_keep_part_of_their_maps(monkeypatch):
    monkeypatch.setattr("heads.training.out_of_fold.MAP_VALUES", 12 * 8 * 8)
    source = TINY["patchcore"].data()
    got = FoldByFold(lambda: build("patchcore"), source, folds_of(source)).all(
        OPTIONS, NullProgress()
    )
    assert (got.maps.shape, got.step) == ((12, 8, 8), 2)
    assert torch.isfinite(torch.from_numpy(np.asarray(got.maps))).all()
