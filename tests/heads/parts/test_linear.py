"""Products of vectors."""

import torch
from torch import nn

from heads.parts.linear import linear
from heads.parts.seeds import seeded


def test_wide_products_of_vectors_are_those_of_a_linear_layer() -> None:
    with seeded(0):
        x = torch.randn(17, 256, requires_grad=True)
        weight, bias = torch.randn(300, 256, requires_grad=True), torch.randn(300)
        gradient = torch.randn(17, 300)
    got, wanted = linear(x, weight, bias), nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for a, b in zip(
        torch.autograd.grad(got, (x, weight), gradient),
        torch.autograd.grad(wanted, (x, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
