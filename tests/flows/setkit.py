"""Small sets of images and of pairs on disk, and their settings, as the tests of flows use them."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from flows.command.demo_images import make_demo_images
from flows.extraction.extract import extract_set
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from storage.store.feature_store import FeatureStore

QUIET = Reporter(quiet=True)
#: A tiny pair_diff: what is learnt is other tests' business.
TINY = {"width": 4, "embedding": 16, "mlp": 16, "heads": 2, "layers": 1}


def save(pixels, path):
    """Write an image, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_tiles(folder: Path) -> None:
    """Make ``images`` in MVTec layout: 12 normal images, and 4 good and 4 defective to test."""
    made = make_demo_images(folder / "made")
    for part, count in (("train/good", 12), ("test/good", 4), ("test/blob", 4)):
        (folder / "images" / part).mkdir(parents=True)
        for path in sorted((made / part).iterdir())[:count]:
            shutil.copy(path, folder / "images" / part)
    masks = folder / "images/ground_truth/blob"
    masks.mkdir(parents=True)
    for path in sorted((made / "ground_truth/blob").iterdir())[:4]:
        shutil.copy(path, masks)


class SmallSet:
    """A set of noise images, its home, and one way to extract it."""

    def __init__(self, folder):
        self.folder, self.images = folder, folder / "images"
        self.home = Home.at(folder / "home")
        self.heads = {"patchcore": {}}
        self.extraction = {"size": 48, "batch": 4, "precision": "float32"}

    def draw(self, number, part="train/good"):
        """Make an image; its content is its number's. Return the file."""
        path = self.images / part / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    def settings(self):
        return Settings.model_validate(
            {
                "image_set": "s",
                "images": self.images,
                "heads": self.heads,
                "backbone": {"name": "resnet18"},
                "extraction": self.extraction,
                "training": {"preset": "small"},
            }
        )

    def run(self, seed=3, **options):
        return extract_set(self.settings(), self.home, QUIET, untrained_seed=seed, **options)

    @property
    def store(self):
        return FeatureStore.open(self.home.store, "s", create=False)


def make_pairs(root: Path, split: str, numbers, changed, seed: int = 0) -> None:
    """Textures; in `changed` ones a bright square is new. Pairs 0 and 1 have one template."""
    for n in numbers:
        rng = np.random.default_rng((seed, 1 if n == 0 else n))
        before = rng.integers(60, 120, (64, 64, 3), dtype=np.uint8)
        now = np.clip(before + np.random.default_rng(n).integers(-4, 5, before.shape), 0, 255)
        mask = np.zeros((64, 64), np.uint8)
        if n in changed:
            mask[16 : 36 + n % 5, 20:44] = 255
            now[mask > 0] = 240
        for side, pixels in (("history", before), ("current", now), ("mask", mask)):
            path = root / split / side / f"{n:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def pair_settings(work, **more) -> Settings:
    """Return the settings of the set `boards` in a folder that the fixture `boards` made."""
    return Settings.model_validate(
        {
            "image_set": "boards",
            "pairs": work / "boards",
            "backbone": {"name": "resnet18", "weights": work / "resnet18.safetensors"},
            "extraction": {"size": 64, "precision": "float32"},
            "training": {"epochs": 2, "preset": "small"},
            "heads": {"pair_diff": {}},
            **more,
        }
    )
