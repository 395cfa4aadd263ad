"""How images are brought to a size, chosen by their own shapes."""

import pytest

from features.images.places.aspect import choose_fitting


@pytest.mark.parametrize(
    ("sizes", "target", "how", "said"),
    [
        ([(256, 256)] * 3, (128, 128), "squash", ""),
        ([(300, 300), (97, 97)], (128, 128), "squash", ""),
        ([(1000, 1040)] * 3, (128, 128), "squash", "squashed a little to 128x128"),
        ([(480, 640)] * 3, (384, 512), "squash", ""),
        ([(480, 640)] * 3, (256, 256), "fit", "images are 480x640 px: they keep their aspect"),
        ([(750, 150)] * 9, (128, 128), "fit", "--size 288x64 needs next to no padding"),
        ([(300, 300)] * 8 + [(300, 200)], (128, 128), "fit", "1 of 9 images are as 300x200 px"),
    ],
)
def test_the_rule(sizes, target, how, said):
    found, why = choose_fitting(sizes, target)
    assert found == how
    assert said in why
    assert bool(said) == bool(why)
