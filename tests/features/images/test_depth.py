"""More than 8 bits: the range that is found, and what images become between black and white."""

from __future__ import annotations

import numpy as np
import pytest

from features.images.depth import Depth, about_depths, find_range, levels, outside
from headwater.errors import ImageError


def grey(low: int, high: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(low, high + 1, (64, 64), dtype=np.uint16)


def test_range_is_the_normals_with_room_and_no_outlier_moves_it():
    normal = [Depth.of(grey(300, 1000, seed)) for seed in range(12)]
    low, high = find_range(normal)
    assert 220 < low < 235
    assert 1065 < high < 1080
    # A saturated image, a hot pixel, an image of 8 bits: the others decide.
    hot = grey(300, 1000)
    hot[0, 0] = 65535
    saturated = Depth.of(np.full((64, 64), 65535, np.uint16))
    assert find_range([*normal, saturated, None, Depth.of(hot)]) == (low, high)
    assert outside(saturated, (low, high))
    assert not outside(normal[0], (low, high))
    # One that is twice as bright is a normal as well.
    assert find_range([*normal, Depth.of(grey(300, 2000))])[1] > 2000
    assert find_range([Depth.of(grey(5, 65535))]) == (0, 65535)
    assert find_range([Depth.of(grey(7, 7))]) == (7, 8)


def test_range_of_measurements():
    rng = np.random.default_rng(0)
    height = rng.normal(-2.5, 0.01, (64, 64)).astype(np.float32)
    height[0, :4] = np.nan, np.inf, 0, 0  # no measurement, and a few wild ones
    low, high = find_range([Depth.of(height)])
    assert -2.56 < low < -2.52 < -2.48 < high < -2.44
    seen = levels(height, (low, high))
    assert seen.dtype == np.float32
    assert seen[0, 0, 0] == 0
    assert seen[0, 1, 0] == 255
    assert 100 < seen[1:].mean() < 155
    with pytest.raises(ImageError, match="floating-point"):
        levels(height, None)


def test_levels_keep_what_8_bits_lose():
    ramp = np.linspace(300, 340, 64 * 64).astype(np.uint16).reshape(64, 64)
    assert len(np.unique(levels(ramp, None))) == 1
    assert len(np.unique(levels(ramp, (300, 340)))) == 41
    colour = np.dstack([ramp, ramp + 10, ramp + 20])
    seen = levels(colour, (300, 400))
    assert seen.shape == (64, 64, 3)
    assert np.allclose(seen[..., 1], (ramp + 10 - 300.0) * 2.55, atol=1e-3)
    flat = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    assert levels(flat, (300, 400)) is flat


def test_other_depths_are_told():
    deep, flat = Depth.of(grey(300, 1000)), None
    assert about_depths([flat, flat], None) == []
    assert about_depths([deep, deep], (200, 1100)) == []
    assert "65535 is white" in about_depths([deep], None)[0]
    (said,) = about_depths([deep, flat, flat], (200, 1100))
    assert said.startswith("2 image(s) have 8 bits")
    assert "200 and 1100" in said
    assert "cut" in about_depths([deep], (2000, 3000))[0]
