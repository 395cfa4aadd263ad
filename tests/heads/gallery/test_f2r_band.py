"""F²R over a band of points: the mean of their standardised maps, and no choice."""

import numpy as np
import pytest
import torch

from heads.gallery.f2r import F2R, F2RConfig
from heads.gallery.f2r_band import BAND
from heads.gallery.gallery_head import vectors_of
from heads.gallery.neighbours import Gallery
from headwater.errors import ConfigError
from tests.heads.gallery.tiny import LAYER, SHAPES, fit_f2r, textures


def test_the_band_is_near_the_diagonal():
    assert len(BAND) == len(set(BAND)) == 11
    assert BAND[0] == (1.0, 1.0)
    assert all(abs(a - b) < 0.31 and min(a, b) > 0.2 for a, b in BAND)


@pytest.fixture(scope="module")
def banded():
    head, _ = fit_f2r(select="band", score="max", sigma=0.0, epochs=4)
    return head.eval()


def test_its_map_is_the_mean_of_the_points_standardised_maps(banded):
    one = textures(1, 2)[0]
    z, members = banded.latents(vectors_of(one)), banded.latents(banded.members)
    maps = []
    for k, point in enumerate(BAND):
        gallery = Gallery(8)
        gallery.set(banded.reversed_latents(members, *point))
        far = gallery.nearest(banded.reversed_latents(z, *point))[0]
        maps.append(((far - banded.band.mean[k]) / banded.band.deviation[k]).numpy())
    got = banded.score({LAYER: one[None]})
    assert got.image[0] == pytest.approx(np.mean(maps, 0).max(), rel=1e-4)
    assert (banded.band.deviation > 0).all()
    assert len(set(banded.band.mean.tolist())) == len(BAND)


def test_it_is_saved_whole_and_a_point_that_is_asked_for_is_that_point(banded):
    batch = {LAYER: textures(3, 4)}
    again = F2R(banded.config, SHAPES, (16, 20))
    again.load_state_dict(banded.state_dict())
    assert torch.equal(again.eval().score(batch).maps, banded.score(batch).maps)
    alone = again.score({LAYER: batch[LAYER][1:2]})
    assert torch.equal(alone.image[0], again.score(batch).image[1])
    again.prefer(1.0, 1.0)
    plain, _ = fit_f2r(factorize="as_needed", score="max", sigma=0.0)
    assert torch.equal(again.score(batch).maps, plain.score(batch).maps)


def test_a_band_with_a_given_factor_is_refused():
    with pytest.raises(ConfigError, match="neither given"):
        F2RConfig(select="band", alpha=0.5)
