"""The demo's pictures: seeded, in MVTec layout, a mask for each defect."""

import numpy as np
from PIL import Image

from flows.command.demo_images import KINDS, make_demo_images


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


def test_tiles_are_cut_from_photographs(tmp_path):
    folder = make_demo_images(tmp_path, seed=0)
    tile = np.asarray(Image.open(folder / "train/good/brick_0_0.png"))
    assert tile.shape == (128, 128)
    assert tile.std() > 5
