"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and images; skips where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the real weights and images of {path}, which is not there")
    return path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database, migrated once; copy it to ``HOME/mlflow.db`` (60 ms instead of 3 s)."""
    from storage.registry_mlflow import prepare_database

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare_database(path)
    return path


@pytest.fixture
def tiny_set(tmp_path: Path) -> Path:
    """A folder in MVTec layout: 6 training images, 2 good and 3 + 2 defective test images.

    32x40 px textures; defects are bright squares. ``spot`` has masks, ``dent`` has none.
    """
    root = tmp_path / "tiny"
    rng = np.random.default_rng(0)

    def texture() -> np.ndarray:
        return rng.integers(60, 120, (32, 40, 3), dtype=np.uint8)

    def save(pixels: np.ndarray, name: str) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for i in range(6):
        save(texture(), f"train/good/{i:03}.png")
    for i in range(2):
        save(texture(), f"test/good/{i:03}.png")
    for kind, count in (("spot", 3), ("dent", 2)):
        for i in range(count):
            pixels, mask = texture(), np.zeros((32, 40), np.uint8)
            mask[8 : 16 + i, 10:20] = 255
            pixels[mask > 0] = 250
            save(pixels, f"test/{kind}/{i:03}.png")
            if kind == "spot":
                save(mask, f"ground_truth/{kind}/{i:03}_mask.png")
    return root
