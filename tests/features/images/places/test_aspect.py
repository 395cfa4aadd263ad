"""What is said of images whose shape is not the size's."""

import pytest

from features.images.places.aspect import about_shapes


@pytest.mark.parametrize(
    ("sizes", "target", "said"),
    [
        ([(256, 256)] * 3, (128, 128), ""),
        ([(300, 300), (97, 97)], (128, 128), ""),
        ([(1000, 1040)] * 3, (128, 128), "squashed a little to 128x128"),
        ([(480, 640)] * 3, (384, 512), ""),
        ([(480, 640)] * 3, (256, 256), "images are 480x640 px, and are squashed to 256x256"),
        ([(750, 150)] * 9, (128, 128), "--size 288x64 hardly distorts them"),
        ([(300, 300)] * 8 + [(300, 200)], (128, 128), "1 of 9 images are as 300x200 px"),
    ],
)
def test_the_sentence(sizes, target, said):
    why = about_shapes(sizes, target)
    assert said in why
    assert bool(said) == bool(why)
