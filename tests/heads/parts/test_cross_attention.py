"""CSA-Flow's attentions: what the gate counts, what attention sees."""

import torch

from heads.parts.cross_attention import ChannelGate, CrossScaleSelfAttention
from heads.parts.seeds import seeded
from tests.heads.parts.kit import MAP, SCALES, jacobian_logdet, sample


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
