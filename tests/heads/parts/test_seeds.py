"""Seeded construction."""

import torch
from torch import Tensor, nn

from heads.parts.seeds import seeded


def test_seeded_puts_the_generators_back() -> None:
    def draw(seed: int) -> tuple[Tensor, dict]:
        with seeded(seed):
            return torch.randn(3), nn.Linear(2, 2).state_dict()

    torch.manual_seed(9)
    state = torch.get_rng_state()
    first, second, third = draw(1), draw(1), draw(2)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1]["weight"], second[1]["weight"])
    assert not torch.equal(first[0], third[0])
    assert torch.equal(torch.get_rng_state(), state)
