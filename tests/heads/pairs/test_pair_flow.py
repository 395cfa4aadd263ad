"""The flow head on differences of normal pairs: exact likelihood, no labels, bounded at zero."""

import math
from functools import cache

import pytest
import torch

from heads.catalogue import make_config
from heads.contract import NullProgress, TrainOptions
from heads.pairs.pair_flow import PairFlow
from heads.pairs.pair_head import differences
from headwater.errors import ConfigError, NotFittedError, ShapeError
from headwater.spec import BackboneInfo
from tests.heads.pairs.tiny import pair_source

SHAPES = {"one": (4, 4, 4), "two": (5, 2, 3)}
TINY = {"steps": 2, "epochs": 15, "batch_size": 6, "lr": 5e-3}
OPTIONS = TrainOptions(device="cpu", precision="float32", threads=1)


def build(**settings):
    return PairFlow(make_config("pair_flow", {**TINY, **settings}), SHAPES, (8, 8))


@cache
def trained(**settings):
    head = build(**settings)
    data = [pair_source(SHAPES, n, s, (8, 8), changed=False) for n, s in ((24, 0), (6, 1))]
    head.fit(*data, OPTIONS, NullProgress())
    return head


@pytest.mark.parametrize("scoring", ["density", "energy", "likelihood"])
def test_it_finds_changes_it_never_saw(scoring):
    head = trained(scoring=scoring)
    source = pair_source(SHAPES, 12, 7, (8, 8))
    scores, masks = head.score(source.read(0, 12)), source.read(0, 12)["_mask"][:, 0] > 0
    same = head.score(pair_source(SHAPES, 12, 8, (8, 8), changed=False).read(0, 12))
    assert float(scores.image.median()) > float(same.image.max())
    for found, mask in zip(scores.maps, masks, strict=True):
        assert found[mask].mean() > 1.05 * found[~mask].mean()


def test_labels_are_not_looked_at():
    labelled = trained()
    plain = build()
    train, held = (pair_source(SHAPES, n, s, (8, 8), changed=False) for n, s in ((24, 0), (6, 1)))
    for source in (train, held):
        source._masks = None
    plain.fit(train, held, OPTIONS, NullProgress())
    for (name, a), b in zip(
        labelled.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_roots_are_modelled_and_no_difference_stays_zero():
    head = trained(root=True)
    batch = pair_source(SHAPES, 5, 3, (8, 8)).read(0, 5)
    with torch.no_grad():
        back = head.reverse(head.latent(batch)[0])
    for layer, x in zip(SHAPES, back, strict=True):
        assert torch.allclose(x, differences(batch)[layer].sqrt(), atol=1e-4)
    data = pair_source(SHAPES, 24, 0, (8, 8), changed=False).read(0, 24)
    standard = head.standardised(head.inputs(data))[0]
    for x in standard:  # a root mean square of 1 per channel, about zero
        torch.testing.assert_close(x.square().mean((0, 2, 3)), torch.ones(x.shape[1]))
    same = {k: batch["current:" + k.split(":")[1]] for k in batch if ":" in k}
    assert not any(x.any() for x in head.standardised(head.inputs(same))[0])


def test_the_score_is_the_likelihood_spread_over_positions():
    head = trained()
    batch = pair_source(SHAPES, 3, 3, (8, 8)).read(0, 3)
    maps = head.standardised(head.inputs(batch))[0]
    parts = [stack(x) for stack, x in zip(head.stacks, maps, strict=True)]
    nll = [0.5 * z.square().mean(1) - log_det / z.shape[1] for z, log_det in parts]
    dims = [math.prod(s) for s in SHAPES.values()]
    total = sum(m.mean((1, 2)) * d for m, d in zip(nll, dims, strict=True)) / sum(dims)
    fixed = head.standardised(head.inputs(batch))[1] / sum(dims)
    torch.testing.assert_close(total - fixed, head.nll(batch), rtol=1e-4, atol=1e-4)
    large = [torch.nn.functional.interpolate(m[:, None], (8, 8), mode="bilinear") for m in nll]
    maps = torch.stack(large).mean(0)[:, 0]
    torch.testing.assert_close(head.score(batch).maps, maps, rtol=1e-4, atol=1e-4)


def test_noise_keeps_the_likelihood_bounded_where_pairs_agree_exactly():
    # Half of the positions agree to the last bit, as synthetic or 1-bit images do.
    def source(rows, seed):
        found = pair_source(SHAPES, rows, seed, (8, 8), changed=False)
        for layer in SHAPES:
            current, history = (s._maps[layer] for s in found._sources)
            half = current.shape[3] // 2
            current[..., :half] = history[..., :half]
        return found

    lowest, heads = {}, {}
    for noise in (0.0, 0.1):
        heads[noise] = build(noise=noise, epochs=30, lr=2e-2)
        figures = heads[noise].fit(source(24, 0), source(6, 1), OPTIONS, NullProgress())
        lowest[noise] = figures["train_nll"]
    # No density of noisy points has a lower cross-entropy than the noise's own entropy.
    parts = zip(heads[0.1].scale, SHAPES.values(), strict=True)
    entropy = [(0.5 + (0.1 * p.std).log()).repeat_interleave(h * w) for p, (_, h, w) in parts]
    assert lowest[0.1] > float(torch.cat(entropy).mean())
    assert lowest[0.0] < lowest[0.1] - 0.2


def test_needs_and_mistakes():
    info = BackboneInfo("resnet18", ("a", "b", "c"), (8, 8, 8), (4, 8, 16))
    needs = PairFlow.needs(make_config("pair_flow", {}), info, (128, 128))
    assert [x.name for x in needs.layers] == ["a", "b", "c"]
    assert needs.resize is None
    small = make_config("pair_flow", {"strides": (8, 2, 4)})
    assert [x.name for x in PairFlow.needs(small, info, (128, 128)).layers] == ["a", "b"]
    with pytest.raises(ConfigError, match="no stage of stride 2"):
        PairFlow.needs(make_config("pair_flow", {"strides": (2,)}), info, (128, 128))
    batch = pair_source(SHAPES, 2, 0, (8, 8)).read(0, 2)
    with pytest.raises(NotFittedError, match="pair_flow"):
        build().score(batch)
    head = trained()
    with pytest.raises(ShapeError, match="current:one"):
        head.score(differences(batch))
    for wrong in ({"noise": -1.0}, {"scoring": "both"}, {"steps": 0}, {"strides": ()}):
        with pytest.raises(ConfigError):
            make_config("pair_flow", wrong)
