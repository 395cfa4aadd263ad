"""Pixels to what the backbone sees: resize, crop, masks, views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from features.images.places.regions import looked
from features.images.preprocess import (
    blank_colour,
    make_view,
    map_to_image,
    mask_to_input,
    own_map,
    own_picture,
    picture,
    preprocess,
)
from headwater.errors import ConfigError
from headwater.geometry import place
from headwater.spec import ExtractorSpec, ViewSpec


def spec(**kw) -> ExtractorSpec:
    return ExtractorSpec("resnet18", "untrained:0", **kw)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(97, 131), (16, 24), (24, 16), (8, 300)])
def test_resize_is_that_of_pillow(size):
    image = noise(*size, 3)
    got = picture(image, spec(resize=(24, 16))).astype(int)
    want = Image.fromarray(image).resize((16, 24), Image.Resampling.BILINEAR)
    assert abs(got - np.asarray(want, int)).max() <= 1


def test_crop_and_normalisation():
    image = noise(20, 30, 3)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    x = preprocess(image, spec(resize=(20, 30), crop=(10, 12), mean=mean, std=std))
    want = (image[5:15, 9:21] / 255 - np.array(mean)) / np.array(std)
    assert x.shape == (3, 10, 12)
    assert x.dtype == torch.float32
    assert torch.allclose(x, torch.from_numpy(want).permute(2, 0, 1).float(), atol=1e-5)
    assert torch.equal(
        x, preprocess(image, spec(resize=(20, 30), crop=(10, 12), mean=mean, std=std))
    )


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="crop 40x40"):
        preprocess(noise(50, 50, 3), spec(resize=(32, 32), crop=(40, 40)))
    with pytest.raises(ConfigError, match="lanczos"):
        preprocess(noise(50, 50, 3), spec(interpolation="lanczos"))


def test_a_mask_stays_on_its_defect():
    image, mask = np.zeros((90, 120, 3), np.uint8), np.zeros((90, 120), bool)
    mask[30:60, 45:90] = True
    image[mask] = 255
    s = spec(resize=(48, 48), crop=(40, 40))
    bright = picture(image, s)[..., 0] > 127
    got = mask_to_input(mask, s)
    assert got.shape == (40, 40)
    assert got.dtype == bool
    assert (got ^ bright).sum() <= 0.05 * bright.sum()
    assert mask_to_input(np.ones((9, 7), bool), s).all()


def test_views_depend_on_image_seed_and_number_alone():
    image, views = noise(40, 52, 3), ViewSpec(count=3, rotation=30)
    made = [make_view(image, "ab" * 32, k, views) for k in range(4)]
    assert made[0] is image
    assert all(v.shape == image.shape and v.dtype == np.uint8 for v in made)
    assert len({v.tobytes() for v in made}) == 4
    np.random.default_rng(0).random()
    assert np.array_equal(made[2], make_view(image, "ab" * 32, 2, ViewSpec(count=9, rotation=30)))
    assert not np.array_equal(made[2], make_view(image, "cd" * 32, 2, views))
    other = make_view(image, "ab" * 32, 2, ViewSpec(count=3, rotation=30, seed=1))
    assert not np.array_equal(made[2], other)
    with pytest.raises(ConfigError, match="view 4"):
        make_view(image, "ab" * 32, 4, views)


def test_a_rotation_reflects_at_the_border_and_keeps_the_centre():
    yy, xx = np.mgrid[:61, :81]
    smooth = (128 + 60 * np.sin(yy / 9) + 60 * np.cos(xx / 11)).astype(np.uint8)
    image = np.repeat(smooth[:, :, None], 3, axis=2)
    for k in (1, 2, 3):
        view = make_view(image, "00" * 32, k, ViewSpec(count=3, rotation=180))
        assert abs(int(view[30, 40, 0]) - int(image[30, 40, 0])) <= 8
        assert view.min() >= image.min() - 1, "black corners: the outside was not reflected"
        step = np.abs(np.diff(view[..., 0].astype(int), axis=1)).max()
        assert step <= 16, "a seam"


def test_flips_come_on_top_of_the_same_angles():
    image = noise(30, 30, 3)
    still = ViewSpec(count=16, rotation=0, flip=True)
    seen = {make_view(image, "ab" * 32, k, still).tobytes() for k in range(1, 17)}
    flips = {image.tobytes(), image[::-1].tobytes(), image[:, ::-1].tobytes()}
    assert seen == flips | {image[::-1, ::-1].tobytes()}
    turned = make_view(image, "ab" * 32, 1, ViewSpec(rotation=30))
    both = make_view(image, "ab" * 32, 1, ViewSpec(rotation=30, flip=True))
    assert any(
        np.array_equal(both, t) for t in (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1])
    )


@pytest.mark.parametrize("fitting", ["fit", "crop"])
def test_an_image_of_the_sizes_aspect_is_what_squashing_gives(fitting):
    image = noise(60, 90, 3)
    for more in ({}, {"crop": (30, 50)}):
        one, other = spec(resize=(40, 60), **more), spec(resize=(40, 60), fitting=fitting, **more)
        assert torch.equal(preprocess(image, one), preprocess(image, other))


def test_fit_shows_the_whole_image_and_pads_with_what_normalises_to_nothing():
    image = noise(30, 90, 3)
    image[:, -1] = 255  # the last column is seen
    s = spec(resize=(48, 48), fitting="fit")
    seen = picture(image, s)
    want = Image.fromarray(image).resize((48, 16), Image.Resampling.BILINEAR)
    assert abs(seen[16:32].astype(int) - np.asarray(want, int)).max() <= 1
    assert (seen[:16] == blank_colour(s)).all()
    assert (seen[32:] == blank_colour(s)).all()
    assert preprocess(image, s)[:, :16].abs().max() < 0.01
    covered = picture(image, spec(resize=(48, 48), fitting="crop"))
    want = Image.fromarray(image).resize((144, 48), Image.Resampling.BILINEAR)
    assert abs(covered.astype(int) - np.asarray(want, int)[:, 48:96]).max() <= 1


@pytest.mark.parametrize("fitting", ["squash", "fit", "crop"])
def test_a_map_comes_back_onto_its_defect_in_the_images_own_geometry(fitting):
    s = spec(resize=(48, 48), fitting=fitting)
    mask = np.zeros((120, 200), bool)
    mask[20:50, 80:110] = True
    image = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, 2)
    looked = None if fitting != "fit" else np.pad(np.ones((29, 48), bool), ((10, 9), (0, 0)))
    heat, seen = own_map(mask_to_input(mask, s).astype(np.float32), looked, 120, 200, s)
    shown = own_picture(image, s)[..., 0] > 127
    assert heat.shape == shown.shape
    assert ((heat > 0.5) ^ shown).sum() <= 0.15 * shown.sum()
    if fitting == "crop":  # the map is of the whole image, of which the sides were not seen
        assert heat.shape == (48, 80)
        assert seen is not None
        assert seen[:, 16:64].all()
        assert not seen[:, :16].any()
        assert not seen[:, 64:].any()
    else:
        assert seen is None
        assert heat.shape == ((48, 48) if fitting == "squash" else (29, 48))


@pytest.mark.parametrize("fitting", ["squash", "fit", "crop"])
@pytest.mark.parametrize("crop", [None, (40, 32)])
def test_a_map_lies_on_the_pixels_of_its_image(fitting, crop):
    s = spec(resize=(48, 48), crop=crop, fitting=fitting)
    rows, columns = np.mgrid[:120, :200].astype(np.float32)
    # A map that says of each pixel of the input where it comes from says so of the image's.
    ramps = [np.repeat((ramp[..., None] / 2).astype(np.uint8), 3, 2) for ramp in (rows, columns)]
    for ramp, image in zip((rows, columns), ramps, strict=True):
        seen = preprocess(image, s).numpy()[0] * s.std[0] + s.mean[0]
        heat = np.ma.masked_array(seen * 510, ~looked(120, 200, s))
        back = map_to_image(heat, 120, 200, s)
        kept = ~np.ma.getmaskarray(back)
        assert kept.mean() == pytest.approx(looked_share(s, crop), abs=0.02)
        inner = ndimage.binary_erosion(kept, iterations=6)
        assert abs(back - ramp)[inner].max() < 4
    assert isinstance(back, np.ma.MaskedArray) == (not kept.all())


def looked_share(s, crop):
    """Share of a 120 x 200 image that the input shows."""
    where = place(120, 200, s)
    rows, columns = where.shown
    shown = (rows.stop - rows.start) * (columns.stop - columns.start)
    return shown / (where.scaled[0] * where.scaled[1])
