"""Position codes and the convolution that sees them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from heads.parts.position import CodedConv2d, PositionCode, position_code
from headwater.errors import ConfigError


def test_position_code():
    code = position_code(8, 3, 5)
    for channel in range(8):
        axis = 1 if channel < 4 else 0
        i = channel % 4 // 2
        wave = math.cos if channel % 2 else math.sin
        for y in range(3):
            for x in range(5):
                at = x if axis else y
                assert code[channel, y, x] == pytest.approx(
                    wave(at / 10000 ** (2 * i / 4)), abs=1e-6
                )
    with pytest.raises(ConfigError, match="multiple of 4"):
        position_code(6, 2, 2)


def test_convolution_with_code_is_that_over_the_concatenation():
    position = PositionCode(4, 5, 6)
    conv = CodedConv2d(3, 7, 3, position)
    x = torch.randn(2, 3, 5, 6)
    whole = F.conv2d(
        torch.cat([x, position.code.expand(2, -1, -1, -1)], 1), conv.weight, conv.bias, padding=1
    )
    assert torch.allclose(conv(x), whole, atol=1e-5)
