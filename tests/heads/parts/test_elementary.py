"""The one-map parts: inverse, log-determinant per sample and position, seeds."""

import math

import pytest
import torch
from FrEIA.framework import SequenceINN
from torch import Tensor, nn

from heads.parts.coupling import AffineCoupling
from heads.parts.elementary import ActNorm, Permute, Standardise, channel_statistics, soft_clamp
from heads.parts.seeds import seeded
from heads.training.sources import TensorSource
from tests.heads.parts.kit import MAP, VECTOR, jacobian_logdet, sample, subnet

PARTS = {
    "permute": (Permute, {"seed": 3}),
    "standardise": (Standardise, {}),
    "actnorm": (ActNorm, {}),
    "coupling": (AffineCoupling, {"clamp": 3.0}),
    "one-sided": (AffineCoupling, {"clamp": 1.9, "two_sided": False}),
}


def make(name: str, dims: tuple[int, ...], per_position: bool = False) -> nn.Module:
    kind, settings = PARTS[name]
    if kind is AffineCoupling:
        # Per position the log-determinant is that of the position's own vector: 1x1 subnets.
        settings = {
            **settings,
            "subnet": subnet((1 if per_position else 3) if len(dims) > 1 else 0),
        }
    with seeded(5):
        part = kind([dims], per_position=per_position, **settings)
        for parameter in part.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    if isinstance(part, Standardise):
        part.set(torch.linspace(-1, 1, dims[0]), torch.linspace(0.5, 3, dims[0]))
    return part.eval()


@pytest.mark.parametrize("dims", [MAP, VECTOR], ids=["map", "vector"])
@pytest.mark.parametrize("name", PARTS)
def test_inverse_and_log_determinant(name: str, dims: tuple[int, ...]) -> None:
    part, x = make(name, dims).double(), sample(dims)
    (y,), logdet = part((x,))
    (back,), reverse = part((y,), rev=True)
    assert logdet.shape == (3,)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(reverse, -logdet, rtol=1e-10, atol=1e-10)
    for row in range(3):
        truth = jacobian_logdet(lambda v: part((v,))[0][0], x[row])
        torch.testing.assert_close(logdet[row], truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PARTS)
def test_log_determinant_per_position(name: str) -> None:
    part, x = make(name, MAP, per_position=True).double(), sample(MAP)
    _, logdet = part((x,))
    assert logdet.shape == (3, 2, 3)
    for row, i, j in ((0, 0, 0), (1, 0, 2), (2, 1, 1)):

        def at(v: Tensor, row: int = row, i: int = i, j: int = j) -> Tensor:
            maps = x[row : row + 1].clone()
            maps[:, :, i, j] = v
            return part((maps,))[0][0][:, :, i, j]

        truth = jacobian_logdet(at, x[row, :, i, j])
        torch.testing.assert_close(logdet[row, i, j], truth, rtol=1e-9, atol=1e-9)


def test_float32_inverse_of_a_stack_survives_training() -> None:
    net = SequenceINN(8, 4, 4)
    with seeded(1):
        for k in range(6):
            net.append(ActNorm)
            net.append(Permute, seed=k)
            net.append(AffineCoupling, subnet=subnet(3), clamp=1.9)
    x = sample((8, 4, 4), rows=8).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(20):
        if step in (0, 19):
            with torch.no_grad():
                back, _ = net(net(x)[0], rev=True)
            assert float((back - x).abs().max()) < 1e-3
        z, logdet = net(x)
        loss = (0.5 * z.square().flatten(1).sum(1) - logdet).mean() / 128
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_soft_clamp_is_the_arctan_form() -> None:
    s = torch.tensor([-1e6, -0.5, 0.0, 0.5, 1e6], dtype=torch.float64)
    expected = [-1.9, -2 * 1.9 / math.pi * math.atan(0.5 / 1.9), 0.0]
    got = soft_clamp(s, 1.9)
    torch.testing.assert_close(
        got[:3], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(got.flip(0), -got)


def test_actnorm_takes_its_first_batch_and_keeps_it() -> None:
    part = ActNorm([MAP])
    x = sample(MAP, rows=50).float() * 4 + 2
    untouched, _ = part.eval()((x,))
    assert torch.equal(untouched[0], x)
    (y,), _ = part.train()((x,))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(5), atol=1e-4, rtol=0)
    part((x * 10,))
    again = ActNorm([MAP])
    again.load_state_dict(part.state_dict())
    assert torch.equal(again.train()((x,))[0][0], y)
    single = ActNorm([VECTOR]).train()
    assert torch.isfinite(single((torch.ones(1, 5),))[0][0]).all()


def test_permutations_come_from_their_seed_and_are_saved() -> None:
    torch.manual_seed(0)
    first = Permute([(64,)], seed=1)
    torch.manual_seed(1)
    assert torch.equal(first.order, Permute([(64,)], seed=1).order)
    other = Permute([(64,)], seed=2)
    assert not torch.equal(first.order, other.order)
    other.load_state_dict(first.state_dict())
    x = sample((64,))
    assert torch.equal(other((other((x,))[0][0],), rev=True)[0][0], x)
    assert torch.equal(other((x,))[0][0], first((x,))[0][0])


def test_channel_statistics_are_those_of_all_rows() -> None:
    x = sample((4, 3, 5), rows=11).float() * torch.tensor([1, 5, 0, 2.0]).view(4, 1, 1) + 3
    mean, std = channel_statistics(TensorSource({"a": x}), ["a"], size=4)["a"]
    torch.testing.assert_close(mean.float(), x.mean((0, 2, 3)))
    torch.testing.assert_close(std.float(), x.std((0, 2, 3), correction=0), atol=1e-6, rtol=1e-5)
    part = Standardise([(4, 3, 5)])
    part.set(mean, std)
    assert float(part.std[2]) == pytest.approx(0.05 * float(std.median()))  # the dead channel
