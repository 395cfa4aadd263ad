"""Folds are blocks of neighbours, the same every time, and what belongs together stays together."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from heads.training.folds import Folds, assign_folds, looks_of, natural
from heads.training.sources import TensorSource
from headwater.errors import DataError


def names(count):
    return [f"frame {i}.png" for i in range(count)]


def by_name(images):
    return {"file order": [natural(image) for image in images]}


def walk(count, seed=0, step=0.3):
    """Looks that drift from frame to frame, as those of one part after the other do."""
    return np.random.default_rng(seed).normal(size=(count, 6)).cumsum(0) * step


@pytest.mark.parametrize(("count", "folds"), [(2, 5), (3, 5), (9, 5), (10, 5), (97, 5), (30, 7)])
def test_every_fold_is_a_block_of_its_share(count, folds):
    images = names(count)
    made = assign_folds(images, by_name(images), count=folds)
    numbers = list(made.of.values())
    assert list(made.of) == images
    assert numbers == sorted(numbers)  # blocks, frame 10 after frame 9
    sizes = Counter(numbers)
    assert made.count == len(sizes) == min(count, folds)
    assert max(sizes.values()) - min(sizes.values()) <= 1
    # Whatever order they are given in: nothing is drawn.
    back = images[::-1]
    assert assign_folds(back, by_name(back), count=folds).of == made.of
    assert Folds.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_one_image_has_no_folds():
    with pytest.raises(DataError, match="1 normal image"):
        assign_folds(["a"], by_name(["a"]))


def test_groups_stay_whole_and_no_order_tears_them():
    images = names(24)
    groups = [f"part {i % 8}" for i in range(24)]  # one after the other, thrice
    made = assign_folds(images, by_name(images), groups=groups, looks=walk(24), count=4)
    assert made.by == "group"
    folds = {g: {made.of[i] for i, other in zip(images, groups, strict=True) if other == g}
             for g in groups}  # fmt: skip
    assert all(len(of) == 1 for of in folds.values())
    assert set(Counter(made.of.values()).values()) == {6}
    # Images without a group are their own; a single group says nothing.
    some = assign_folds(images, by_name(images), groups=["p"] * 4 + [""] * 20, count=4)
    assert len({some.of[i] for i in images[:4]}) == 1
    assert some.count == 4
    one = assign_folds(images, by_name(images), groups=["p"] * 24, count=4)
    assert (one.by, one.count) == ("file order", 4)


@pytest.mark.parametrize("big", [0, 1, 2])
def test_a_group_of_nearly_all_leaves_folds_for_the_others(big):
    images = names(12)
    groups = [f"part {i}" for i in (0, 1, 2)]
    own = [groups[big]] * 10
    own = [*groups[:big], *own, *groups[big + 1 :]]
    made = assign_folds(images, by_name(images), groups=own, count=5)
    assert sorted(Counter(made.of.values()).values()) == [1, 1, 10]


def test_neighbours_are_those_of_the_order_that_shows_it():
    images, looks = names(60), walk(60)
    shuffled = np.random.default_rng(1).permutation(60)
    arrival = {"order of arrival": list(range(60))}
    mixed = {"file order": shuffled.tolist()}
    made = assign_folds(images, mixed | arrival, looks=looks)
    assert made.by == "order of arrival"
    assert made.correlation > 0.5
    assert list(made.of.values()) == sorted(made.of.values())
    # Where nothing shows, the first order it is, and what it shows is told.
    noise = np.random.default_rng(2).normal(size=(60, 6))
    plain = assign_folds(images, mixed | arrival, looks=noise)
    assert plain.by == "file order"
    assert abs(plain.correlation) < 0.3


def test_images_are_left_out_alone_where_nothing_says_that_they_are_like_others():
    images, noise = names(30), np.random.default_rng(2).normal(size=(30, 40))
    noise[7] = noise[3] + 1e-4
    made = assign_folds(images, by_name(images), looks=noise, alone=True)
    assert (made.by, made.count) == ("image", 29)
    assert made.of[images[7]] == made.of[images[3]]
    groups = [f"part {i % 6}" for i in range(30)]
    assert assign_folds(images, by_name(images), looks=noise, groups=groups, alone=True).count == 5
    # Only a twentieth at a time, however few folds are asked for.
    assert assign_folds(images, by_name(images), looks=walk(30), alone=True).count == 20
    assert assign_folds(images, by_name(images), alone=True).count == 5  # nothing was looked at


def test_what_is_nearly_the_same_stays_in_one_fold():
    images = names(40)
    looks = np.random.default_rng(0).normal(size=(40, 30))
    looks[35] = looks[2] + 1e-3
    looks[20] = looks[4] * (1 + 1e-4)
    made = assign_folds(images, by_name(images), looks=looks)
    assert made.together == 2
    assert made.of[images[35]] == made.of[images[2]]
    assert made.of[images[20]] == made.of[images[4]]
    # A video in which every frame is like the next is no single fold: blocks they are.
    still = np.random.default_rng(0).normal(size=(1, 30)) + walk(40, step=1e-3)[:, :1]
    film = assign_folds(images, by_name(images), looks=still)
    assert film.count == 5
    assert max(Counter(film.of.values()).values()) <= 12


def test_looks_are_of_the_plain_rows_in_their_order():
    maps = torch.arange(6 * 3 * 4 * 4, dtype=torch.float32).view(6, 3, 4, 4)
    source = TensorSource({"m": maps}, list("aabbcc"), [0, 1, 0, 1, 0, 1])
    looks = looks_of(source, [4, 0])
    assert looks.shape == (2, 12)
    assert looks[1, 0] == maps[0, 0, :2, :2].mean()
    assert looks[0, 11] == maps[4, 2, 2:, 2:].mean()
