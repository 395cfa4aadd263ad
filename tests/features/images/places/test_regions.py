"""What is looked at: no padding, and the region of interest alone."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from features.backbones.backbone import load_backbone
from features.extract import Job, extract
from features.images.places.regions import Looked, Regions, looked, read_region, region_on, turned
from features.images.places.tiles import about_tiles, parts_seen, seen_shapes
from features.images.preprocess import blanked, make_view
from headwater.errors import ConfigError, ImageError
from headwater.spec import ExtractorSpec, LayerSpec, TileSpec, ViewSpec

SPEC = ExtractorSpec("resnet18", "untrained:0", resize=(48, 48), fitting="fit")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_padding_is_not_looked_at():
    where = looked(30, 90, SPEC)
    assert where[16:32].all()
    assert where.sum() == 16 * 48


def test_a_region_follows_its_image():
    region = np.zeros((60, 180), bool)
    region[:30, 90:] = True  # the upper right quarter
    where = looked(30, 90, SPEC, region_on(region, 30, 90))
    assert where[16:24, 24:].all()
    assert where.sum() == 8 * 24


def test_regions_that_fit_no_image_are_refused():
    with pytest.raises(ImageError, match="60x60 pixels and the image 30x90"):
        region_on(np.ones((60, 60), bool), 30, 90)
    with pytest.raises(ImageError, match="is black"):
        region_on(np.zeros((30, 90), bool), 30, 90)
    corner = np.zeros((30, 90), bool)
    corner[:, :5] = True
    with pytest.raises(ImageError, match="cuts off"):
        looked(30, 90, ExtractorSpec("r", "w", resize=(48, 48), fitting="crop"), corner)


def test_of_tiles_a_region_is_looked_at_to_its_last_pixel():
    spec = ExtractorSpec("r", "w", resize=(16, 16), tiles=TileSpec(64, 0))
    region = np.zeros((128, 128), bool)
    region[3, 61] = region[100, 5] = True  # less than a pixel of the input of their tiles
    where = Looked(spec, lambda sha: (128, 128), Regions())
    assert where.parts("a") == (1, 2, 3, 4)
    assert where("a", 4).all()
    assert parts_seen(128, 128, spec.tiles, region) == [1, 3]
    seen = looked(64, 64, spec, region[:64, :64])
    assert np.argwhere(seen).tolist() == [[0, 15]]


def test_tiles_of_a_set_are_told_and_what_cannot_be_numbered_is_refused():
    assert seen_shapes([(100, 300)] * 2, TileSpec(128)) == [(100, 128)] * 2
    assert seen_shapes([(100, 300)], TileSpec(128, 0, True)) == [(100, 128), (100, 300)]
    spec = ExtractorSpec("r", "w", resize=(64, 64))
    said = about_tiles([(100, 300), (64, 64)], spec, TileSpec(64, 0, True))
    assert said.startswith("11 tiles of 64 pixels, neighbours share 0: 1 to 10 an image, each")
    assert said.endswith("seen at 64x64, as is the whole of it")
    about_tiles([(8192, 8192)], spec, TileSpec(64, 16))
    with pytest.raises(ConfigError, match="has 29,241 tiles of 64 pixels, and 4 views of each"):
        about_tiles([(8192, 8192)], spec, TileSpec(64, 16), views=4)


def test_nothing_outside_of_a_region_reaches_the_features(tmp_path):
    region = np.zeros((40, 70), bool)
    region[5:30, 13:61] = True
    Image.fromarray(region).save(tmp_path / "roi.png")
    image = noise(40, 70, 3)
    other = np.where(region[..., None], image, noise(40, 70, 3, seed=1))
    jobs = []
    for name, pixels in (("a", image), ("b", other)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        jobs.append(Job(sha, path, 0, tmp_path / "roi.png"))
    backbone, layers = load_backbone("resnet18", untrained_seed=0), (LayerSpec(("layer1",)),)
    spec = backbone.default_spec(48, precision="float32", fitting="fit", region="ab" * 32)
    (block,) = extract(jobs, backbone, spec, layers)
    one, two = block.maps["layer1"]
    assert (one == two).all()
    assert one.std() > 0
    (free,) = extract([Job(j.sha256, j.path) for j in jobs], backbone, spec, layers)
    assert not (free.maps["layer1"][0] == free.maps["layer1"][1]).all()


def test_the_region_of_a_view_turns_with_it():
    views = ViewSpec(count=2, rotation=40, flip=True)
    spec = ExtractorSpec("r", "w", resize=(48, 48), views=views)
    region = np.zeros((48, 48), bool)
    region[4:20, 10:40] = True
    white = np.full((48, 48, 3), 255, np.uint8)
    black = blanked(white, region, ExtractorSpec("r", "w", mean=(0, 0, 0)))
    for view in (1, 2):
        seen = make_view(black, "ab" * 32, view, views)[..., 0] > 127
        assert (turned(region, "ab" * 32, view, spec) == seen).all()


def test_a_set_asks_by_image_and_shares_what_is_alike(tmp_path):
    sizes = {"a": (30, 90), "b": (60, 180), "c": (90, 30), "d": (30, 90)}
    whole = Looked(SPEC, sizes.__getitem__, Regions())
    assert whole.partly
    assert whole("a") is whole("d")
    assert (whole("a") == whole("b")).all()
    assert (whole("c") == whole("a").T).all()
    assert not Looked(ExtractorSpec("r", "w"), sizes.__getitem__, Regions()).partly
    mask = np.zeros((30, 90), np.uint8)
    mask[:, 45:] = 255
    Image.fromarray(mask).save(tmp_path / "own.png")
    own = Looked(SPEC, sizes.__getitem__, Regions(None, {"a": tmp_path / "own.png"}))
    assert own("a").sum() * 2 == own("d").sum()
    assert read_region(tmp_path / "own.png", 60, 180).sum() == 60 * 90
