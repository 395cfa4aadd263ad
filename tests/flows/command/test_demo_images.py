"""The demo's pictures: seeded, in MVTec layout, masks that say where the image was changed."""

import numpy as np
import pytest
from PIL import Image

from flows.command.demo_images import KINDS, draw_defect, make_demo_images


def test_layout_and_seed(tmp_path):
    first = make_demo_images(tmp_path / "a", seed=1)
    again = make_demo_images(tmp_path / "b", seed=1)
    files = sorted(p.relative_to(first) for p in first.rglob("*.png"))
    assert len(list((first / "train/good").iterdir())) == 70
    for kind in KINDS:
        assert len(list((first / "test" / kind).iterdir())) == 12
        masks = {p.stem.removesuffix("_mask") for p in (first / "ground_truth" / kind).iterdir()}
        assert masks == {p.stem for p in (first / "test" / kind).iterdir()}
    assert all((first / f).read_bytes() == (again / f).read_bytes() for f in files)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_where_the_image_was_changed(kind):
    rng = np.random.default_rng(0)
    tile = rng.integers(90, 160, (128, 128), dtype=np.uint8)
    other = rng.integers(0, 255, (256, 256), dtype=np.uint8)
    image, mask = draw_defect(tile, kind, np.random.default_rng(3), other)
    changed = np.abs(image.astype(int) - tile) > 12
    assert 30 < mask.astype(bool).sum() < 3000
    assert changed[mask == 255].mean() > 0.6
    far = np.ones_like(changed)
    ys, xs = np.nonzero(mask)
    far[max(ys.min() - 4, 0) : ys.max() + 5, max(xs.min() - 4, 0) : xs.max() + 5] = False
    assert not changed[far].any()


def test_tiles_are_cut_from_photographs(tmp_path):
    folder = make_demo_images(tmp_path, seed=0)
    tile = np.asarray(Image.open(folder / "train/good/brick_0_0.png"))
    assert tile.shape == (128, 128)
    assert tile.std() > 5
