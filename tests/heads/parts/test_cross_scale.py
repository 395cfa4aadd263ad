"""The coupling over scales: inverse, log-determinant, mixing before resizing."""

import pytest
import torch
from torch import Tensor, nn

from heads.parts.cross_scale import CrossScaleCoupling, CrossScaleSubnet, conv_resized, resize
from heads.parts.seeds import seeded
from tests.heads.parts.kit import SCALES, sample


def cross_scale(attention: int = 0) -> CrossScaleCoupling:
    with seeded(2):
        part = CrossScaleCoupling(
            SCALES,
            lambda i, o: CrossScaleSubnet(i, o, 6, 3, 3, attention_depth=attention),
        )
        for parameter in part.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return part.double()


@pytest.mark.parametrize("attention", [0, 2])
def test_cross_scale_coupling_inverts_on_every_scale(attention: int) -> None:
    part = cross_scale(attention)
    xs = [sample(d, seed=k) for k, d in enumerate(SCALES)]
    ys, logdet = part(xs)
    back, reverse = part(ys, rev=True)
    for x, y in zip(xs, back, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(reverse, -logdet)
    sizes = [x[0].numel() for x in xs]

    def run(flat: Tensor) -> Tensor:
        parts = [f.view(1, *d) for f, d in zip(flat.split(sizes), SCALES, strict=True)]
        return torch.cat([z.flatten() for z in part(parts)[0]])

    for row in range(2):
        flat = torch.cat([x[row].flatten() for x in xs])
        jacobian = torch.autograd.functional.jacobian(run, flat, vectorize=True)
        torch.testing.assert_close(logdet[row], torch.linalg.slogdet(jacobian)[1])
    # Each scale's output depends on its neighbours' input, as the method says.
    bumped = [xs[0], xs[1] + 1, xs[2]]
    for k in range(3):
        assert not torch.equal(part(bumped)[0][k], ys[k])


@pytest.mark.parametrize(
    ("kernel", "small", "large"),
    [(3, (6, 6), (12, 12)), (5, (3, 5), (6, 9)), (3, (1, 2), (2, 3)), (1, (4, 4), (8, 8))],
)
def test_mixing_before_resizing_is_the_convolution_of_the_resized(kernel, small, large) -> None:
    with seeded(0):
        conv = nn.Conv2d(9, 4, kernel, padding=kernel // 2).double()
        x = torch.randn(2, 9, *small, dtype=torch.float64, requires_grad=True)
        gradient = torch.randn(2, 4, *large, dtype=torch.float64)
    wanted, got = conv(resize(x, large)), conv_resized(x, conv, large)
    torch.testing.assert_close(got, wanted)
    of = (x, conv.weight, conv.bias)
    for a, b in zip(
        torch.autograd.grad(got, of, gradient), torch.autograd.grad(wanted, of, gradient),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)


def test_a_fresh_cross_scale_coupling_is_the_identity() -> None:
    part = CrossScaleCoupling(SCALES, lambda i, o: CrossScaleSubnet(i, o, 6, 3, 3))
    xs = [sample(d, seed=k).float() for k, d in enumerate(SCALES)]
    ys, logdet = part(xs)
    assert all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))
    assert torch.equal(logdet, torch.zeros(3))
