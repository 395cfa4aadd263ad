"""Heads that grow: what comes in and goes out, against heads that are fitted to the same anew."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from heads.catalogue import all_heads, get_head
from heads.contract import Head, NullProgress, TrainOptions
from heads.gallery.gallery_head import vectors_of
from heads.gallery.moments import packed, unpacked
from heads.training.growing import GrowingHead, Growth, grow, grows
from heads.training.sources import TensorSource
from headwater.errors import GrowthError
from tests.heads.tiny import TINY, build

OPTIONS = TrainOptions(device="cpu", precision="float32", threads=1)
GROWING = [n for n, head in all_heads().items() if n in TINY and grows(head) and not head.pairs]
EXACT = [n for n in GROWING if get_head(n).grows_exactly]  # type: ignore[attr-defined]


def source(name: str, rows: int = 24) -> TensorSource:
    """Images as a store has them, in float16."""
    made = TINY[name].data(0, rows)
    assert isinstance(made, TensorSource)
    return TensorSource({k: v.half() for k, v in made._maps.items()}, made.ids, made.views)


def fitted(name: str, images: TensorSource, **settings: object) -> GrowingHead:
    head = build(name, **settings)
    head.fit(images, images.subset([]), OPTIONS, NullProgress())
    assert isinstance(head, GrowingHead)
    return head.eval()


def reopened(head: Head) -> GrowingHead:
    """As it is opened again from its files: it remembers nothing but its state."""
    made = type(head)(head.config, head.shapes, head.map_size)
    made.load_state_dict(load(save({k: v.contiguous() for k, v in head.state_dict().items()})))
    assert isinstance(made, GrowingHead)
    return made


def growth(
    head: GrowingHead, images: TensorSource, new: list[int], gone: list[int], **more: object
) -> Growth:
    left = [i for i in range(len(images)) if i not in gone]
    parts = (images.subset(new), images.subset(gone), images.subset(left))
    kept = load(save(head.keepsake())) if head.keepsake() else {}
    return Growth(kept, *parts, OPTIONS, NullProgress(), **more)  # type: ignore[arg-type]


def answers(head: Head, name: str) -> tuple[Tensor, Tensor]:
    found = head.score(TINY[name].data(3, 9).read(0, 9))
    return found.image, found.maps


def apart(a: Head, b: Head, name: str) -> float:
    """Return the largest difference of scores and maps, in units of the scores' spread."""
    (one, heat), (other, warm) = answers(a, name), answers(b, name)
    return float(max((one - other).abs().max(), (heat - warm).abs().max()) / other.std())


@pytest.mark.parametrize("name", EXACT)
def test_a_grown_head_is_the_one_fitted_to_all(name: str) -> None:
    images = source(name)
    anew, first = fitted(name, images), fitted(name, images.subset(range(15)))
    assert apart(first, anew, name) > 0.05
    grown = reopened(first)
    grow(grown, growth(first, images, list(range(15, 20)), []))
    again = reopened(grown)  # and once more
    grow(again, growth(grown, images, list(range(20, 24)), []))
    assert apart(again, anew, name) < 1e-6


@pytest.mark.parametrize("name", EXACT)
def test_taking_images_out_undoes_putting_them_in(name: str) -> None:
    images = source(name)
    left = [i for i in range(24) if i not in (3, 7, 20)]
    anew, all_ = fitted(name, images.subset(left)), fitted(name, images)
    assert apart(all_, anew, name) > 0.01
    less = reopened(all_)
    grow(less, growth(all_, images, [], [3, 7, 20]))
    assert apart(less, anew, name) < 1e-6
    back = reopened(less)
    grow(back, growth(less, images, [3, 7, 20], []))
    assert apart(back, all_, name) < 1e-6


def test_forty_bits_hold_what_a_float_loses() -> None:
    x = torch.randn(50, 6, 6, dtype=torch.float64) * 1e4
    x = x @ x.mT
    back = unpacked(*packed(x))
    assert torch.equal(back, back.mT)
    assert float(((back - x) / x).abs().max()) < 2**-31
    assert float(((x.float().double() - x) / x).abs().max()) > 2**-26


def uncovered(head: GrowingHead, images: TensorSource) -> float:
    """Return how far the farthest position of images lies from a gallery."""
    maps = images.read(0, len(images))["m"]
    gallery = head.gallery.vectors.double()  # type: ignore[union-attr, operator]
    return max(float(torch.cdist(vectors_of(one).double(), gallery).amin(1).max()) for one in maps)


@pytest.mark.parametrize(
    "settings",
    [{"whiten": "never"}, {"whiten": "never", "projection": 7}],
)
def test_a_gallery_grows_by_what_it_does_not_cover_and_forgets_what_goes(
    settings: dict[str, object],
) -> None:
    images = source("patchcore")
    known = images.subset(range(15))
    head = fitted("patchcore", known, ratio=0.2, **settings)
    before, radius = head.gallery.vectors.clone(), float(head.keepsake()["radius"])  # type: ignore
    free = "projection" not in settings  # else the radius is one of projections
    assert not free or uncovered(head, known) <= radius * (1 + 1e-5) < uncovered(head, images)
    grown = reopened(head)
    told = grow(grown, growth(head, images, list(range(15, 24)), []))
    assert 0 < told["gallery_new"] < 9 * 12
    assert torch.equal(grown.gallery.vectors[: len(before)], before)  # type: ignore
    assert not free or uncovered(grown, images) <= radius * (1 + 1e-5)
    # An image goes: no vector of it is left, and what it alone covered is covered by others.
    less = reopened(grown)
    told = grow(less, growth(grown, images, [], [2, 18]))
    assert told["gallery_gone"] > 0
    left = images.subset([i for i in range(24) if i not in (2, 18)])
    assert not free or uncovered(less, left) <= radius * (1 + 1e-5)
    gone = torch.cat([vectors_of(images.read(i, i + 1)["m"][0]) for i in (2, 18)])
    assert not (less.gallery.vectors[:, None] == gone[None]).all(2).any()  # type: ignore
    names = bytes(less.keepsake()["names"].tolist()).decode().split("\n")
    assert not {images.ids[2], images.ids[18]} & set(names)


def test_a_gallery_of_all_grows_by_all() -> None:
    images = source("patchcore")
    head = fitted("patchcore", images.subset(range(20)), ratio=1.0, whiten="never")
    grown = reopened(head)
    grow(grown, growth(head, images, [20, 21, 22, 23], [5]))
    anew = fitted(
        "patchcore", images.subset([i for i in range(24) if i != 5]), ratio=1.0, whiten="never"
    )
    assert len(grown.gallery) == len(anew.gallery)  # type: ignore[arg-type]
    assert apart(grown, anew, "patchcore") < 1e-5


@pytest.mark.parametrize("name", [n for n in GROWING if not get_head(n).keeps])  # type: ignore
def test_a_flow_head_goes_on_from_its_weights(name: str) -> None:
    images = source(name)
    head = fitted(name, images.subset(range(16)))
    curves: dict[str, list[float]] = {}

    class Told(NullProgress):
        def metric(self, name: str, value: float, epoch: int) -> None:
            curves.setdefault(name, []).append(value)

    grown = reopened(head)
    more = growth(head, images, list(range(16, 24)), [], share=0.25)._replace(progress=Told())
    figures = grow(grown, more)
    assert figures["epochs"] == -(-head.config.epochs // 4) < head.config.epochs
    fresh = build(name)
    anew: list[float] = []

    class Anew(NullProgress):
        def metric(self, name: str, value: float, epoch: int) -> None:
            if name == "train_nll":
                anew.append(value)

    fresh.fit(images, images.subset([]), OPTIONS, Anew())
    assert curves["train_nll"][0] < anew[0] - 0.01  # it begins where the other had come to
    assert apart(grown, head, name) > 0
    with pytest.raises(GrowthError, match="cannot be taken out"):
        grow(reopened(head), growth(head, images, [], [3]))


def test_what_cannot_grow_says_so() -> None:
    images = source("padim")
    head = fitted("padim", images)
    old = growth(head, images, [1], [])._replace(kept={})
    with pytest.raises(GrowthError, match="kept nothing to grow from"):
        grow(reopened(head), old)
    with pytest.raises(GrowthError, match="does not fit"):
        other = fitted("padim", images, channels=4)
        grow(reopened(head), growth(other, images, [1], []))
    with pytest.raises(GrowthError, match="limited to 5"):
        limited = fitted("patchcore", images, limit=5)
        grow(reopened(limited), growth(limited, images, [1], []))
    with pytest.raises(GrowthError, match="whitened by images that are gone"):
        white = fitted("patchcore", images, whiten="always")
        grow(reopened(white), growth(white, images, [], [1]))
    with pytest.raises(GrowthError, match="f2r learns all images together"):
        grow(build("f2r"), old)
