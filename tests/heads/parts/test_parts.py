"""The shared invertible parts: inverse, log-determinant per sample and position, seeds."""

import math

import pytest
import torch
from FrEIA.framework import InputNode, Node, OutputNode, SequenceINN
from torch import Tensor, nn

from heads.parts.coupling import AffineCoupling
from heads.parts.cross_attention import ChannelGate, CrossScaleSelfAttention
from heads.parts.cross_scale import CrossScaleCoupling, CrossScaleSubnet, conv_resized, resize
from heads.parts.elementary import ActNorm, Permute, Standardise, channel_statistics, soft_clamp
from heads.parts.invertible import OrderedGraphINN
from heads.parts.linear import linear
from heads.parts.seeds import seeded
from heads.training.sources import TensorSource
from headwater.errors import ConfigError

MAP = (5, 2, 3)
VECTOR = (5,)
PARTS = {
    "permute": (Permute, {"seed": 3}),
    "standardise": (Standardise, {}),
    "actnorm": (ActNorm, {}),
    "coupling": (AffineCoupling, {"clamp": 3.0}),
    "one-sided": (AffineCoupling, {"clamp": 1.9, "two_sided": False}),
}


def subnet(kernel: int):
    """Return a factory of subnets that see `kernel` positions, for maps or vectors."""

    def conv(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(i, 7, kernel, padding="same"), nn.Tanh(), nn.Conv2d(7, o, 1))

    def linear(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Linear(i, 7), nn.Tanh(), nn.Linear(7, o))

    return conv if kernel else linear


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


def sample(dims: tuple[int, ...], rows: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *dims, generator=generator, dtype=torch.float64)


def jacobian_logdet(run, x: Tensor) -> Tensor:
    flat = torch.autograd.functional.jacobian(
        lambda v: run(v.view(1, *x.shape)).flatten(), x.flatten()
    )
    return torch.linalg.slogdet(flat)[1]


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


def test_channel_statistics_are_those_of_all_rows() -> None:
    x = sample((4, 3, 5), rows=11).float() * torch.tensor([1, 5, 0, 2.0]).view(4, 1, 1) + 3
    mean, std = channel_statistics(TensorSource({"a": x}), ["a"], size=4)["a"]
    torch.testing.assert_close(mean.float(), x.mean((0, 2, 3)))
    torch.testing.assert_close(std.float(), x.std((0, 2, 3), correction=0), atol=1e-6, rtol=1e-5)
    part = Standardise([(4, 3, 5)])
    part.set(mean, std)
    assert float(part.std[2]) == pytest.approx(0.05 * float(std.median()))  # the dead channel


SCALES = [(5, 4, 6), (5, 2, 3), (5, 1, 2)]


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


def test_a_fresh_cross_scale_coupling_is_the_identity() -> None:
    part = CrossScaleCoupling(SCALES, lambda i, o: CrossScaleSubnet(i, o, 6, 3, 3))
    xs = [sample(d, seed=k).float() for k, d in enumerate(SCALES)]
    ys, logdet = part(xs)
    assert all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))
    assert torch.equal(logdet, torch.zeros(3))


def test_channel_gate_counts_its_volume() -> None:
    with seeded(1):
        part = ChannelGate([MAP], reduction=2)
    x = sample(MAP)
    part = part.double()
    assert torch.equal(part((x,))[0][0], x)  # it begins at 1
    for parameter in part.parameters():
        parameter.data.add_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
    (y,), logdet = part((x,))
    assert not torch.allclose(y, x)
    (back,), reverse = part((y,), rev=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(reverse, -logdet)
    for row in range(3):
        truth = jacobian_logdet(lambda v: part((v,))[0][0], x[row])
        torch.testing.assert_close(logdet[row], truth)


def test_self_attention_sees_all_positions_of_all_scales() -> None:
    part = CrossScaleSelfAttention(5, 3).double()
    maps = [sample(d, seed=k).requires_grad_() for k, d in enumerate(SCALES)]
    assert all(torch.equal(a, b) for a, b in zip(part(maps), maps, strict=True))
    part.gain.data.fill_(1.0)
    part(maps)[2][0, 0, 0, 0].backward()
    for x in maps:
        assert (x.grad[0].abs().amax(0) > 0).all()
        assert not x.grad[1:].any()  # and none of another image


def test_graph_order_is_the_given_one() -> None:
    def build() -> OrderedGraphINN:
        inputs = [InputNode(4, name=f"in {k}") for k in range(6)]
        parts = [Node(i, Permute, {"seed": k}) for k, i in enumerate(inputs)]
        return OrderedGraphINN([*inputs, *parts, *(OutputNode(p) for p in parts)])

    orders = [[m.order.tolist() for m in build().module_list] for _ in range(5)]
    assert orders == [[Permute([(4,)], seed=k).order.tolist() for k in range(6)]] * 5
    xs = [sample((4,), seed=k) for k in range(6)]
    graph = build()
    back, _ = graph(graph(xs)[0], rev=True)
    assert all(torch.equal(a, b) for a, b in zip(back, xs, strict=True))


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match="one channel"):
        AffineCoupling([(1, 2, 2)], subnet(1))
