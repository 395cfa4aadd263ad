"""Pictures for the demo: texture photographs that scikit-image ships, cut into tiles.

Normal tiles come from the upper three quarters of each photograph, test tiles from the last, so
that no pixel is in both. Defects (scratches, blobs, pasted patches) are drawn from a seed, with
masks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from features.images.pixels import write_image

TEXTURES = ("brick", "grass", "gravel")
KINDS = ("scratch", "blob", "patch")
TILE = 128
_VERSION = 2


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
    made = {"version": _VERSION, "seed": seed}
    if stamp.exists() and json.loads(stamp.read_text()) == made:
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
        other = photographs[TEXTURES[(TEXTURES.index(name) + 1) % len(TEXTURES)]]
        for kind in KINDS:
            for number in range(4):
                x = int(rng.integers(0, photograph.shape[1] - TILE + 1))
                tile = photograph[bottom : bottom + TILE, x : x + TILE]
                image, mask = draw_defect(tile, kind, rng, other)
                write_image(image, folder / f"test/{kind}/{name}_{number}.png")
                write_image(mask, folder / f"ground_truth/{kind}/{name}_{number}_mask.png")
    stamp.write_text(json.dumps(made))
    return folder


def draw_defect(
    tile: np.ndarray, kind: str, rng: np.random.Generator, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one defect.

    Parameters
    ----------
    tile
        ``[H, W]`` uint8.
    kind
        One of `KINDS`.
    rng
        Source of all randomness.
    other
        Another photograph, from which a patch is cut.

    Returns
    -------
    tuple of numpy.ndarray
        The image and its mask (0 or 255), both ``[H, W]`` uint8.
    """
    height, width = tile.shape
    canvas = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(canvas)
    centre = rng.uniform(0.3, 0.7, 2) * (width, height)
    if kind == "scratch":
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.3, 0.55) * width
        steps = np.linspace(-0.5, 0.5, 12)
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        bend = rng.uniform(-12, 12)
        line = centre + steps[:, None] * length * along + (4 * steps[:, None] ** 2) * bend * across
        pen.line([tuple(p) for p in line], fill=255, width=int(rng.integers(3, 6)), joint="curve")
    elif kind == "blob":
        radius = rng.uniform(8, 16)
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        wobble = radius * (1 + 0.25 * np.sin(3 * turn + rng.uniform(0, 6)))
        ring = centre + np.stack([np.cos(turn), np.sin(turn)], 1) * wobble[:, None]
        pen.polygon([tuple(p) for p in ring], fill=255)
    else:
        half = rng.uniform(9, 18, 2)
        pen.rectangle([*(centre - half), *(centre + half)], fill=255)
    mask = np.asarray(canvas)
    soft = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float32) / 255
    if kind == "patch":
        y, x = (int(rng.integers(0, other.shape[i] - (height, width)[i] + 1)) for i in (0, 1))
        paint = other[y : y + height, x : x + width].astype(np.float32)
    else:
        mean = float(tile.mean())
        level = rng.uniform(5, 35) if mean > 110 else rng.uniform(200, 245)
        paint = level + rng.normal(0, 6, tile.shape).astype(np.float32)
    image = tile * (1 - soft) + paint * soft
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask
