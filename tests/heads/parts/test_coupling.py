"""Affine coupling."""

import math

import pytest
import torch

from heads.parts.coupling import AffineCoupling, affine
from headwater.errors import ConfigError
from tests.heads.parts.kit import subnet


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match="one channel"):
        AffineCoupling([(1, 2, 2)], subnet(1))


def test_soft_clamp_of_equation_7():
    raw = torch.randn(3, 8, 2, 2) * 9
    log_scale = affine(torch.zeros(3, 4, 2, 2), raw, 2.0, False)[1]
    assert torch.allclose(log_scale, 2 * 2.0 / math.pi * torch.arctan(raw[:, :4] / 2.0))
