"""Made defects: seeded, at the picture's depth, masked to the pixel, inside of a region."""

import numpy as np
import pytest
from skimage import data

from features.images.made.defects import KINDS, made_defects, make_defect
from features.images.made.shapes import perlin
from headwater.errors import ConfigError, DataError


def pictures():
    """Real pictures, grey and coloured, in 8 and 16 bits and floats."""
    grey, colour = data.brick()[:160, :200], data.coffee()[100:300, 100:340]
    ten_bits = (grey.astype(np.uint16) << 2) | (grey >> 6)
    with_gap = (grey / 255).astype(np.float32)
    with_gap[:5, :7] = np.nan
    return {
        "8 grey": grey,
        "8 grey as colour": np.repeat(grey[..., None], 3, 2),
        "8 colour": colour,
        "10 in 16 grey": ten_bits,
        "16 colour": colour.astype(np.uint16) * 257,
        "float grey": (grey / 255).astype(np.float32),
        "float with NaN": with_gap,
        "float below 0": (grey / 255 - 0.5).astype(np.float32),
    }


def differs(one, other):
    found = (one != other) & ~(np.isnan(one.astype(float)) & np.isnan(other.astype(float)))
    return found if found.ndim == 2 else found.any(axis=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", pictures())
def test_the_mask_is_exactly_where_pixels_changed(name, kind):
    normal = pictures()[name]
    before = normal.copy()
    for seed in range(3):
        made = make_defect(normal, kind, np.random.default_rng(seed))
        assert np.array_equal(normal, before, equal_nan=True)
        assert (made.image.dtype, made.image.shape) == (normal.dtype, normal.shape)
        assert np.array_equal(differs(made.image, normal), made.mask)
        share = made.mask.mean()
        assert 0.0005 < share < 0.25
        here = made.image[made.mask]
        assert np.isfinite(here).all()
        if normal.dtype != np.uint8:
            assert here.min() >= np.nanmin(normal)
            assert here.max() <= np.nanmax(normal)
        if name == "8 grey as colour":
            assert (made.image == made.image[..., :1]).all()
        # To be seen: more than the picture itself varies there, on the whole.
        change = np.abs(made.image.astype(float) - normal)[made.mask]
        assert np.nanmean(change) > 0.1 * np.nanstd(normal.astype(float))


def test_they_follow_from_seed_and_number_alone():
    normals = [data.brick()[:128, i * 90 : i * 90 + 128] for i in range(4)]
    some, more = (list(made_defects(normals, n, 5)) for n in (7, 12))
    other = list(made_defects(normals, 7, 6))
    for one, same in zip(some, more, strict=False):
        assert np.array_equal(one.image, same.image)
        assert np.array_equal(one.mask, same.mask)
    assert [m.kind for m in more[: len(KINDS)]] == list(KINDS)
    assert {m.source for m in more} == {0, 1, 2, 3}
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(some, other, strict=True))
    assert len({m.image.tobytes() for m in more}) == 12


def test_files_are_read_and_nothing_is_drawn_outside_of_a_region(tmp_path):
    from PIL import Image

    file = tmp_path / "n.png"
    Image.fromarray(data.brick()[:150, :190]).save(file)
    roi = np.zeros((150, 190), bool)
    roi[60:110, 20:80] = True
    for made in made_defects([file], 15, 1, rois=roi):
        assert made.mask.any()
        assert not made.mask[~roi].any()
        assert made.image.shape == (150, 190, 3)
    with pytest.raises(DataError, match="region"):
        make_defect(data.brick(), "paste", np.random.default_rng(0), roi=np.zeros((512, 512), bool))
    with pytest.raises(DataError, match="no normal"):
        next(made_defects([], 1, 0))
    with pytest.raises(ConfigError, match="dent"):
        make_defect(data.brick(), "dent", np.random.default_rng(0))


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_one_value_and_tiny_ones_take_one_too(kind, value):
    for shape in ((8, 8), (40, 300)):
        flat = np.full(shape, value, np.uint8)
        made = make_defect(flat, kind, np.random.default_rng(2))
        assert made.mask.any()
        assert np.array_equal(made.image != flat, made.mask)
        assert not made.mask.all()


def test_noise_is_smooth_and_about_nought():
    field = perlin((200, 300), 40, np.random.default_rng(3), 1)
    assert abs(field.mean()) < 0.1
    assert 0.3 < abs(field).max() <= 1.5
    assert np.abs(np.diff(field, axis=0)).max() < 0.15
    assert field[0, 0] == field[40, 80] == pytest.approx(0, abs=1e-6)  # nought on its grid
