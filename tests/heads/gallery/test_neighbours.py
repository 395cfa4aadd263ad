"""Exact distances to a gallery, maps of them, and the vectors it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heads.gallery.neighbours import Gallery, MapMaker, collect_vectors
from heads.training.sources import TensorSource

LAYER = "layer2+layer3~avg3s1"


def _maps(count: int, seed: int, shape: tuple[int, int, int] = (12, 5, 4)) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) + 50


@pytest.mark.parametrize("chunk", [3, 1000])
def test_distances_are_exact_far_from_the_origin(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.gallery.neighbours._CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    vectors, queries = (torch.randn(n, 7, generator=generator) * 0.1 + 1000 for n in (40, 25))
    queries[0] = vectors[11]
    gallery = Gallery(7)
    gallery.set(vectors)
    distance, rows = gallery.nearest(queries)
    want = torch.cdist(queries.double(), vectors.double()).min(1)
    assert torch.equal(rows, want.indices)
    assert distance.double() == pytest.approx(want.values, rel=1e-5)
    assert distance[0] == 0


def test_smoothing_keeps_constants_and_blurs() -> None:
    make, sharp = (MapMaker((8, 9), (64, 72), sigma=sigma) for sigma in (0.5, 0.0))
    assert make(torch.full((8, 9), 3.0)) == pytest.approx(torch.full((64, 72), 3.0), rel=1e-6)
    spot = torch.zeros(8, 9)
    spot[4, 4] = 1.0
    assert make(spot).max() < 0.8 * sharp(spot).max()
    assert make(spot).sum() == pytest.approx(sharp(spot).sum().item(), rel=1e-3)


def test_collecting_leaves_out_views_and_keeps_every_bit() -> None:
    maps = _maps(40, 0)
    views = [k % 3 for k in range(40)]
    for stored, dtype in ((maps.half(), torch.float16), (maps, torch.float32)):
        got = collect_vectors(TensorSource({LAYER: stored}, views=views), LAYER)
        assert got.dtype == dtype
        want = stored[::3].permute(0, 2, 3, 1).reshape(-1, 12)
        assert torch.equal(got, want)
