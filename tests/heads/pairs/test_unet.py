"""The decoder over differenced levels."""

import pytest
import torch

from heads.pairs.unet import SkipDecoder


@pytest.mark.parametrize(
    ("skips", "size"),
    [
        ([(3, 7, 7), (4, 4, 4), (5, 2, 2)], (28, 28)),  # odd sizes: 7 is not twice 4
        ([(3, 4, 6), (3, 4, 6)], (64, 96)),  # levels of one size, as of a transformer
        ([(3, 4, 4)], (50, 50)),  # no power of two up to the image
        ([(3, 16, 16)], (16, 16)),
    ],
)
def test_the_decoder_fits_any_levels(skips, size):
    deep = (6, *skips[-1][1:])
    decoder = SkipDecoder(deep, skips, [4] * len(skips), size)
    maps = [torch.randn(2, *s, requires_grad=True) for s in skips]
    out = decoder(torch.randn(2, *deep), maps)
    assert out.shape == (2, 1, *size)
    out.square().mean().backward()
    assert all(bool(m.grad.any()) for m in maps)
