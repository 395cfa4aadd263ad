"""Pictures for the demo: texture photographs that scikit-image ships, cut into tiles.

Normal tiles come from the upper three quarters of each photograph, test tiles from the last, so
that no pixel is in both. The photographs are real; the defects (scratches, stains, pieces of
another material) are made from a seed (`features.images.made`), with masks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from features.images.made.defects import make_defect
from features.images.pixels import write_image

TEXTURES = ("brick", "gravel")
#: The folder of each kind, and what is made in it.
KINDS = {"scratch": "scratch", "blob": "stain", "patch": "paste"}
TILE = 128
#: Against the usual size of made defects, a tile being a part of a picture, and plain to see: what
#: hides in gravel from who looks at it shows nobody what a heat map is.
_SIZE, _CONTRAST = 2.4, 2.0
_VERSION = 5


def make_demo_images(folder: Path, seed: int = 0) -> Path:
    """Write the demo's image set in MVTec layout; does nothing where it is there already.

    Parameters
    ----------
    folder
        Where ``train/good``, ``test/KIND`` and ``ground_truth/KIND`` go.
    seed
        Of places, shapes and grey values of the defects.

    Returns
    -------
    Path
        `folder`.
    """
    stamp = folder / "made.json"
    drawn = {"version": _VERSION, "seed": seed}
    if stamp.exists() and json.loads(stamp.read_text()) == drawn:
        return folder
    from skimage import data

    rng = np.random.default_rng(seed)
    photographs = {name: np.asarray(getattr(data, name)(), dtype=np.uint8) for name in TEXTURES}
    for name, photograph in photographs.items():
        edge = photograph.shape[0] * 3 // 4
        for y in range(0, edge - TILE + 1, TILE // 2):
            for x in range(0, photograph.shape[1] - TILE + 1, TILE // 2):
                tile = photograph[y : y + TILE, x : x + TILE]
                write_image(tile, folder / f"train/good/{name}_{y}_{x}.png")
        bottom = photograph.shape[0] - TILE
        for x in range(0, photograph.shape[1] - TILE + 1, TILE // 2):
            tile = photograph[bottom : bottom + TILE, x : x + TILE]
            write_image(tile, folder / f"test/good/{name}_{x}.png")
        # A stone on bricks, a piece of brick on gravel.
        other = photographs["gravel" if name == "brick" else "brick"]
        for folder_of, kind in KINDS.items():
            for number in range(6):
                x = int(rng.integers(0, photograph.shape[1] - TILE + 1))
                tile = photograph[bottom : bottom + TILE, x : x + TILE]
                made = make_defect(tile, kind, rng, other=other, size=_SIZE, contrast=_CONTRAST)
                mask = np.where(made.mask, 255, 0).astype(np.uint8)
                write_image(made.image, folder / f"test/{folder_of}/{name}_{number}.png")
                write_image(mask, folder / f"ground_truth/{folder_of}/{name}_{number}_mask.png")
    stamp.write_text(json.dumps(drawn))
    return folder
