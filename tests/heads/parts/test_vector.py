"""Glow on vectors: the invertible linear map and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.parts.vector import InvertibleLinear, vector_glow


def test_linear_map_keeps_its_inverse_until_it_changes() -> None:
    part = InvertibleLinear([(6,)], seed=1).eval()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))

    def back() -> Tensor:
        with torch.no_grad():
            return part(part((x,))[0], rev=True)[0][0]

    torch.testing.assert_close(back(), x)
    with torch.no_grad():
        part.log_s.add_(0.5)
        part.packed.add_(0.3)
    torch.testing.assert_close(back(), x)
    part.load_state_dict(InvertibleLinear([(6,)], seed=2).state_dict())
    torch.testing.assert_close(back(), x)


def test_a_step_moves_the_linear_map_by_what_it_moves_the_parameters() -> None:
    """Adam's first step moves every entry by the rate; a badly conditioned map moves far more."""
    part, rate = InvertibleLinear([(256,)], seed=0).eval(), 2e-4
    step = rate * torch.randn(256, 256, generator=torch.Generator().manual_seed(1)).sign()
    with torch.no_grad():
        before = part.weight(torch.float32).clone()
        part.packed.add_(step)
        moved = torch.linalg.matrix_norm(part.weight(torch.float32) - before, 2)
    assert moved < 1.2 * torch.linalg.matrix_norm(step, 2)


def test_a_channel_that_is_dead_in_training_is_not_blown_up_after_it() -> None:
    glow = vector_glow(8, 1, 9, 1.9, 0)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 0
    glow.train()(x)
    alive = x.clone()
    alive[:, 3] = 1
    z, _ = glow.eval()(alive)
    assert float(z.detach().abs().max()) < 50
    torch.testing.assert_close(glow(z, rev=True)[0], alive, rtol=1e-4, atol=1e-4)
