"""What is not looked at, padding or what lies outside a region of interest, never counts."""

import functools

import numpy as np
import pytest
import torch

from heads.catalogue import all_heads, get_head
from heads.contract import NullProgress, TrainOptions
from heads.flow.flow_head import FlowHead
from heads.judging.calibration import calibrate
from heads.judging.metrics import evaluate
from heads.looking import LOOKED, looking, positions
from heads.pairs.source import PairSource
from heads.training.sources import LookedSource, TensorSource
from tests.heads.tiny import TINY, build, shake

OPTIONS = TrainOptions(device="cpu", precision="float32", threads=1)
HEADS = [name for name in all_heads() if name in TINY]
#: f2r's flow head is over single vectors, of which it takes those that are looked at.
FLOWS = [n for n in HEADS if issubclass(get_head(n), FlowHead) and n != "f2r"]

#: Of most images the left half is looked at, of each fifth the whole.
HALF, WHOLE = np.zeros((16, 16), bool), np.ones((16, 16), bool)
HALF[:, :8] = True


def where(name, view=0):
    digits = "".join(c for c in name.rpartition("-")[2] if c.isdigit())
    return WHOLE if int(digits) % 5 == 4 else HALF


def everywhere(name, view=0):
    return WHOLE


def spoilt(source, seed, mask=where):
    """Return the source as looked at by `mask`, with noise of `seed` where it is not."""
    if isinstance(source, PairSource):
        sides = [spoilt(side, seed + k, mask) for k, side in enumerate(source._sources)]
        return PairSource(*sides, source._all_pairs, source._masks)
    generator, maps = torch.Generator().manual_seed(seed), {}
    masks = torch.stack([torch.from_numpy(mask(i)) for i in source.ids])
    for layer, x in source.read(0, len(source)).items():
        seen = positions(masks, x.shape[2:])[:, None]
        maps[layer] = torch.where(seen, x, 7 * torch.rand(x.shape, generator=generator))
    return LookedSource(TensorSource(maps, source.ids, source.views), mask)


@functools.cache
def scores_of(name, seed, mask=where, wrap=True):
    def data(kind, rows=None):
        source = TINY[name].data(kind, rows)
        return spoilt(source, seed, mask) if wrap else source

    head = build(name)
    head.fit(data(0), data(1, 5), OPTIONS, NullProgress())
    return head.eval(), head.score(data(2, 6).read(0, 6))


@pytest.mark.parametrize("name", HEADS)
def test_what_is_not_looked_at_changes_neither_training_nor_scores(name):
    (_, one), (_, other) = scores_of(name, 10), scores_of(name, 20)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.maps, other.maps)
    # Where nothing is looked at the map has its lowest value: 6 images, the fifth is whole.
    for k, heat in enumerate(one.maps):
        if k != 4:
            assert (heat[:, 8:] == heat[:, :8].min()).all()
    assert one.maps[:, :, :8].std() > 0


@pytest.mark.parametrize("name", HEADS)
def test_images_that_are_looked_at_whole_are_as_ever(name):
    (_, one), (_, other) = scores_of(name, 0, everywhere), scores_of(name, 0, wrap=False)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.maps, other.maps)


@pytest.mark.parametrize("name", HEADS)
def test_a_score_belongs_to_one_image_whatever_is_looked_at_of_others(name):
    head, together = scores_of(name, 10)
    batch = spoilt(TINY[name].data(2, 6), 10).read(0, 6)
    for row in range(6):
        alone = head.score({k: x[row : row + 1] for k, x in batch.items()})
        torch.testing.assert_close(alone.image[0], together.image[row], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.maps[0], together.maps[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_the_log_determinant_is_that_of_what_is_looked_at(name):
    head = shake(build(name).double())
    batch = {
        k: x.double() if x.is_floating_point() else x
        for k, x in spoilt(TINY[name].data(2, 2), 10).read(0, 1).items()
    }
    with looking(batch):
        given = [x.detach() for x in head.inputs(batch)]
        seen = [positions(batch[LOOKED], x.shape[2:])[:, None].expand_as(x) for x in given]
        assert not all(s.all() for s in seen)

        def latent(flat):
            parts, at = [], 0
            for x, s in zip(given, seen, strict=True):
                count = int(s.sum())
                parts.append(x.masked_scatter(s, flat[at : at + count]))
                at += count
            z = head.latent_of(parts)[0]
            return torch.cat([part[s] for part, s in zip(z, seen, strict=True)])

        flat = torch.cat([x[s] for x, s in zip(given, seen, strict=True)])
        jacobian = torch.autograd.functional.jacobian(latent, flat)
        claimed = head.latent_of(given)[1]
    truth = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(claimed[0], truth, rtol=1e-8, atol=1e-8)


def test_a_position_counts_where_half_of_it_is_looked_at():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, :, :5] = True
    mask[1, 3, 3] = True  # less than half of any position: then the one with the most
    found = positions(mask, (2, 4))
    assert found[0].tolist() == [[True, True, True, False]] * 2
    assert found[1].tolist() == [[False, True, False, False], [False] * 4]


def test_masked_pixels_count_neither_in_metrics_nor_in_thresholds():
    rng = np.random.default_rng(0)
    maps = rng.random((4, 12, 12)).astype(np.float32)
    truth = np.zeros((4, 12, 12), bool)
    truth[2:, 2:5, 2:6] = True
    maps += truth
    scores, labels = maps.max((1, 2)), [False, False, True, True]
    plain = evaluate(scores, maps, labels, list(truth), pixel_threshold=0.7)
    # A border of wild values, and of false truth, that nobody looks at.
    wide = np.pad(maps, ((0, 0), (3, 3), (3, 3)), constant_values=99)
    outside = np.pad(np.zeros_like(truth), ((0, 0), (3, 3), (3, 3)), constant_values=True)
    masks = [np.pad(t, 3, constant_values=k == 2) for k, t in enumerate(truth)]
    seen = np.ma.masked_array(wide, outside)
    assert evaluate(scores, seen, labels, masks, pixel_threshold=0.7) == plain
    assert calibrate([1, 2, 3], seen) == calibrate([1, 2, 3], maps)
