"""The lazy coreset chooses what plain greedy chooses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heads.gallery.coreset import coreset_size, k_center, project
from headwater.errors import ConfigError


def _plain_greedy(x: Tensor, count: int, start: int) -> tuple[list[int], float]:
    """All distances, every step; the first of equally far rows; stop at duplicates."""
    x = x.double()
    chosen, far = [start], (x - x[start]).square().sum(1)
    while far.max() > 0 and len(chosen) < count:
        chosen.append(int(far.argmax()))
        far = torch.minimum(far, (x - x[chosen[-1]]).square().sum(1))
    return chosen, float(far.max()) ** 0.5


@pytest.mark.parametrize("block", [1, 2, 17, 64, 10_000])
@pytest.mark.parametrize("kind", ["normal", "grid", "duplicates", "clusters", "half"])
def test_same_choice_as_plain_greedy(kind: str, block: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 6, generator=generator)
    if kind == "grid":  # small integers: sums are exact and most distances tie
        x = torch.randint(-2, 3, (400, 3), generator=generator).float()
    elif kind == "duplicates":
        x = x[torch.randint(40, (400,), generator=generator)]
    elif kind == "clusters":
        x = x + 5 * torch.randint(-3, 4, (400, 1), generator=generator)
    elif kind == "half":
        x = x.half()
    got = k_center(x, 120, seed=7, block=block)
    chosen, radius = _plain_greedy(x, 120, int(got.indices[0]))
    if kind == "duplicates":  # which of equal rows is a matter of the last bit
        assert torch.equal(x[got.indices], x[chosen])
    else:
        assert got.indices.tolist() == chosen
    assert got.radius == pytest.approx(radius, rel=1e-4, abs=1e-6)


def test_radius_covers_every_vector() -> None:
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    got = k_center(x, 50, seed=5, block=30)
    nearest = torch.cdist(x.double(), x[got.indices].double()).amin(1)
    assert float(nearest.max()) == pytest.approx(got.radius, rel=1e-5)
    assert len(set(got.indices.tolist())) == 50
    assert torch.equal(got.indices, k_center(x, 50, seed=5, block=30).indices)
    assert not torch.equal(got.indices, k_center(x, 50, seed=6, block=30).indices)


def test_all_rows_can_be_chosen_and_equal_rows_only_once() -> None:
    x = torch.arange(9.0)[:, None]
    assert sorted(k_center(x, 9, block=4).indices.tolist()) == list(range(9))
    assert k_center(torch.full((50, 3), 0.1), 10, block=4).indices.numel() == 1


def test_projection_keeps_distances() -> None:
    x = torch.randn(60, 300, generator=torch.Generator().manual_seed(0))
    ratio = torch.pdist(project(x, 256, seed=1)) / torch.pdist(x)
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert ratio.std() < 0.08
    assert torch.equal(project(x, 8, seed=1, rows=7), project(x, 8, seed=1))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="ratio"):
        coreset_size(10, 0.0)
    with pytest.raises(ConfigError, match="coreset of 11"):
        k_center(torch.zeros(10, 2), 11)
    assert coreset_size(5, 0.01) == 1
