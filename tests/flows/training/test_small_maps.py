"""Small maps: no peak is lost, they lie where the image was seen, and they come back as kept."""

from dataclasses import replace

import numpy as np
import pytest

from flows.training.small_maps import WHOLE, SmallMap, load, save, small_maps
from headwater.spec import ExtractorSpec, TileSpec

SQUASH = ExtractorSpec("resnet18", "untrained:0", resize=(256, 256))


def one(heat, size=(100, 200), spec=SQUASH, **how):
    made, scale = small_maps([("a", heat, size)], spec, 1.0, **how)
    return made["a"], scale


def test_a_single_pixel_is_seen_in_a_map_a_quarter_as_wide():
    heat = np.zeros((256, 256), np.float32)
    heat[201, 7] = 9
    found, (low, high) = one(heat)
    assert found.values.shape == (64, 64)
    assert found.box == WHOLE
    assert np.argwhere(found.values > 1).tolist() == [[50, 1]]
    assert found.values[50, 1] == 255
    assert low < 1 < high
    # What does not divide evenly loses nothing either, and keeps its aspect.
    heat = np.zeros((150, 100), np.float32)
    heat[149, 99] = 9
    tiled = replace(SQUASH, tiles=TileSpec(100, 20))
    assert one(heat, spec=tiled)[0].values[-1, -1] == 255


def test_values_are_the_scales_and_what_is_not_looked_at_is_nothing():
    heat = np.ma.masked_array(np.full((256, 256), 0.5, np.float32), False)
    heat[:, :128] = np.ma.masked
    found, scale = one(heat, probabilities=True)
    assert scale == (0.0, 1.0)
    assert (found.values[:, :32] == 0).all()
    assert (found.values[:, 32:] == round(1 + 254 * 0.5)).all()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_map_lies_on_what_was_seen_of_the_image(step):
    # Twice as wide as tall, fitted: above and below it is padding.
    fitted = ExtractorSpec("resnet18", "untrained:0", resize=(256, 256), fitting="fit")
    heat = np.zeros((256, 256), np.float32)
    heat[:64] = heat[192:] = 9
    found, _ = one(heat[::step, ::step], spec=fitted, scale=(0.0, 1.0))
    assert found.box == WHOLE
    assert abs(found.values.shape[1] / found.values.shape[0] - 2) < 0.1
    assert (found.values == 1).all()
    # A crop of 7/8: a sixteenth is missing on every side.
    cut = ExtractorSpec("resnet18", "untrained:0", resize=(256, 256), crop=(224, 224))
    found, _ = one(np.zeros((224, 224), np.float32)[::step, ::step], spec=cut)
    assert found.box == (1 / 16, 1 / 16, 7 / 8, 7 / 8)


def test_what_is_kept_comes_back_and_damage_is_as_if_there_were_none(tmp_path):
    rng = np.random.default_rng(0)
    shapes = ((64, 64), (3, 64), (64, 1))
    maps = {
        str(i): SmallMap(rng.integers(0, 256, s).astype(np.uint8), (0.1, 0.2, 0.3, i / 4))
        for i, s in enumerate(shapes)
    }
    file = save(tmp_path / "maps.npz", {"test": maps, "normals": {"0": maps["2"]}})
    found = load(file)
    assert found.keys() == {"test", "normals"}
    for name, kept in maps.items():
        assert np.array_equal(found["test"][name].values, kept.values)
        assert found["test"][name].box == kept.box
    assert np.array_equal(found["normals"]["0"].values, maps["2"].values)
    assert load(save(tmp_path / "none.npz", {})) == {}
    file.write_bytes(file.read_bytes()[:-40])
    assert load(file) == {}
