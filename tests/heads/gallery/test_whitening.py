"""Whitening is settled by what normal features show, and makes all directions count alike."""

import pytest
import torch

from heads.contract import NullProgress, TrainOptions
from heads.gallery.patchcore import PatchCore, PatchCoreConfig
from heads.gallery.whitening import MOST, Whitening
from heads.training.sources import TensorSource
from headwater.errors import ConfigError

CPU = TrainOptions(device="cpu")


def vectors(loud=1.0, n=600, channels=20):
    draw = torch.randn(n, channels, generator=torch.Generator().manual_seed(0))
    return torch.cat([draw[:, :1] * loud, draw[:, 1:]], 1)


@pytest.mark.parametrize(("loud", "used"), [(1.0, False), (3.0, False), (4.0, True)])
def test_auto_goes_by_the_share_of_the_largest_channels(loud, used):
    # 9/28 of the variance in one of twenty channels, and 16/35
    white = Whitening(20, "auto")
    told = white.learn(vectors(loud))
    assert (told["top_channels_variance"] >= MOST) == used == white.used == bool(told["whitened"])


def test_whitened_vectors_vary_alike_in_all_directions():
    x = vectors(8.0)
    x[:, 3] += x[:, 2]
    white = Whitening(20, "always")
    white.learn(x)
    values = torch.linalg.eigvalsh(torch.cov(white(x).T))
    assert values.min() > 0.8 * values.max()  # but for the ridge
    assert torch.equal(Whitening(20, "never")(x), x)


def fitted(loud, **settings):
    maps = vectors(loud, 6 * 4 * 5).reshape(6, 4, 5, 20).permute(0, 3, 1, 2)
    config = PatchCoreConfig(ratio=1.0, sigma=0.0, score="max", **settings)
    head = PatchCore(config, {"m": (20, 4, 5)}, (4, 5))
    figures = head.fit(TensorSource({"m": maps}), TensorSource({"m": maps}), CPU, NullProgress())
    return head, figures


def test_a_defect_in_quiet_channels_shows_and_the_model_keeps_what_it_takes():
    head, figures = fitted(300.0)
    assert figures["whitened"] == 1
    assert len(head.remarks) == 1
    assert "whitened" in head.remarks[0]
    plain, _ = fitted(300.0, whiten="never")
    batch = torch.randn(9, 20, 4, 5, generator=torch.Generator().manual_seed(3)) * 0.5
    batch[:, 0] *= 300
    batch[4, 5:15, 1, 1] += 3.0
    white, bare = (h.score({"m": batch}).image for h in (head, plain))
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert white[4] > 1.2 * white[others].max()
    assert bare[4] < bare[others].max()
    again = PatchCore(head.config, head.shapes, (4, 5))
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.score({"m": batch}).maps, head.score({"m": batch}).maps)


def test_where_no_channel_stands_out_nothing_changes():
    (auto, figures), (never, _) = fitted(1.0), fitted(1.0, whiten="never")
    assert (figures["whitened"], auto.remarks) == (0, [])
    batch = {"m": torch.randn(3, 20, 4, 5, generator=torch.Generator().manual_seed(3))}
    assert torch.equal(auto.score(batch).maps, never.score(batch).maps)
    with pytest.raises(ConfigError, match="auto, always or never"):
        PatchCoreConfig(whiten="maybe")
