"""The transformer over a map's positions."""

import pytest
import torch
from torch import nn

from heads.pairs.transformer import MapTransformer
from headwater.errors import ConfigError


def test_the_transformer_sees_all_positions_and_knows_them():
    net = MapTransformer(4, 3, 3, layers=2, embedding=8, heads=2, mlp=16).double().eval()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    y = net(x)
    moved = x.clone()
    moved[..., 0, 0] += 1
    assert ((net(moved) - y).abs().amax(1) > 1e-6).all()
    assert not torch.allclose(net(x.roll(1, 3)), y.roll(1, 3))
    with torch.no_grad():
        net.position.zero_()
    assert torch.allclose(net(x.roll(1, 3)), net(x).roll(1, 3))
    with pytest.raises(ConfigError, match="3 attention heads"):
        MapTransformer(4, 3, 3, layers=1, embedding=8, heads=3, mlp=16)


def test_attention_is_that_of_the_paper():
    layer = MapTransformer(6, 2, 2, layers=1, embedding=6, heads=2, mlp=4).layers[0].double()
    z = torch.randn(3, 4, 6, dtype=torch.float64)
    reference = nn.MultiheadAttention(6, 2, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(layer.query_key_value.weight)
        reference.in_proj_bias.copy_(layer.query_key_value.bias)
        reference.out_proj.weight.copy_(layer.project.weight)
        reference.out_proj.bias.copy_(layer.project.bias)
    assert torch.allclose(layer.attend(z), reference(z, z, z)[0])
