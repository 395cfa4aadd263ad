"""Samples, subnets and Jacobians for the tests of the invertible parts."""

import torch
from torch import Tensor, nn

MAP = (5, 2, 3)
VECTOR = (5,)
SCALES = [(5, 4, 6), (5, 2, 3), (5, 1, 2)]


def subnet(kernel: int):
    """Return a factory of subnets that see `kernel` positions, for maps or vectors."""

    def conv(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(i, 7, kernel, padding="same"), nn.Tanh(), nn.Conv2d(7, o, 1))

    def linear(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Linear(i, 7), nn.Tanh(), nn.Linear(7, o))

    return conv if kernel else linear


def sample(dims: tuple[int, ...], rows: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *dims, generator=generator, dtype=torch.float64)


def jacobian_logdet(run, x: Tensor) -> Tensor:
    flat = torch.autograd.functional.jacobian(
        lambda v: run(v.view(1, *x.shape)).flatten(), x.flatten()
    )
    return torch.linalg.slogdet(flat)[1]
