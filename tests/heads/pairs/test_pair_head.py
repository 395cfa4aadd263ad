"""Differences of pairs."""

import torch

from heads.pairs.pair_head import DifferenceSource
from tests.heads.pairs.tiny import pair_source


def test_differences_are_absolute_and_symmetric():
    source = pair_source({"a": (3, 4, 4)}, 5, 0)
    read, plain = DifferenceSource(source).read(0, 5), source.read(0, 5)
    assert torch.equal(read["a"], (plain["history:a"] - plain["current:a"]).abs())
    assert DifferenceSource(source).shapes == {"a": (3, 4, 4)}
