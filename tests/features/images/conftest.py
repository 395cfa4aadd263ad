"""A folder of pairs, for all who read one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.features.imagekit import save


@pytest.fixture
def pair_folder(tmp_path):
    """Four pairs, of which b's images are the same and the others show a change."""
    rng = np.random.default_rng(0)
    template = rng.integers(0, 255, (40, 50), dtype=np.uint8)
    for split, names in (("train", "abc"), ("test", "d")):
        for name in names:
            mask = np.zeros((40, 50), np.uint8)
            current = template.copy()
            if name != "b":
                mask[3:6, 4:9] = 255
                current[3:6, 4:9] = rng.integers(0, 255, (3, 5))
            save(tmp_path / split / "current" / f"{name}.png", current)
            save(tmp_path / split / "history" / f"{name}.png", template)
            save(tmp_path / split / "mask" / f"{name}.png", mask)
    return tmp_path
